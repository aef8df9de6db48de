"""A tiny teacher and trajectories of it, drawn once."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.distillation.levels import Way, drawn_levels, few_step_noise_scheduler, require_flow
from genai_assets.diffusion.distillation.trajectories import Recipe, Trajectories, draw_trajectories
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.flow import FlowFamily
from genai_assets.diffusion.training_cache import TrainingCache


def prepared(folder: Path, steps: int, way: Way = "trajectory") -> FlowFamily:
    """The model of a folder, ready to draw in fp32 with a few-step noise scheduler."""
    family = require_flow(family_of(load_pipeline(folder)))
    family.prepare_for_drawing(torch.device("cpu"), torch.float32)
    family.pipeline.scheduler = few_step_noise_scheduler(family, steps, way=way)
    return family


@pytest.fixture(scope="session")
def teacher_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as if it had been fine-tuned: with facts."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(tiny_base, folder)
    facts = {"model_version": "m-teacher", "style": "plain", "prompt_template": "{caption}, {style} style"}
    (folder / "model.json").write_text(json.dumps(facts | {"resolution": 64}))
    return folder


@pytest.fixture(scope="session")
def recipe(tiny_base: Path) -> Recipe:
    """Two steps of the student, four of the teacher, with guidance."""
    levels = drawn_levels(prepared(tiny_base, 2), 2, 64)
    return Recipe(tuple(levels), way="trajectory", teacher_steps=4, guidance_scale=2.0, count=6, seed=3)


@pytest.fixture(scope="session")
def trajectories(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Trajectories:
    folder = tmp_path_factory.mktemp("trajectories")
    return draw_trajectories(prepared(tiny_base, 2), cache, cache.select("train"), recipe, folder)
