"""A tiny real pipeline, and a training cache of simple drawn pictures, made once."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets_tests.diffusion.drawings import drawn_picture, drawn_rows
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

TINY = DenoiserConfig(hidden_size=64, depth=1, num_heads=2, axes_dim=(16, 16), bottleneck_size=16)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no crowd of threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete pipeline folder with a random denoiser of one block, 64 px."""
    folder = tmp_path_factory.mktemp("tiny-base") / "model"
    save_tiny_pipeline(folder, TINY)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_base: Path) -> Any:
    """The tiny base, loaded; whoever trains takes a ``tiny_denoiser``."""
    return load_pipeline(tiny_base)


def fresh(family: Family) -> Family:
    """The same model with a denoiser of its own, to be trained."""
    pipeline = copy.copy(family.pipeline)
    pipeline.transformer = copy.deepcopy(pipeline.transformer)
    return type(family)(pipeline)


@pytest.fixture
def tiny_family(tiny_pipeline: Any) -> Family:
    """The tiny base with a fresh copy of its denoiser."""
    return fresh(family_of(tiny_pipeline))


@pytest.fixture(scope="session")
def rows() -> pd.DataFrame:
    """What a dataset says of the drawn pictures."""
    return drawn_rows()


@pytest.fixture(scope="session")
def cache_folder(rows: pd.DataFrame, tiny_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_training_cache(
        rows,
        lambda record_id, size: drawn_picture(record_id),
        family_of(tiny_pipeline),
        folder,
        resolution=64,
        prompt_template="{caption}, {style} style",
    )
    return folder


@pytest.fixture(scope="session")
def cache(cache_folder: Path) -> TrainingCache:
    return TrainingCache.open(cache_folder)
