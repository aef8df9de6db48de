"""The teacher's trajectories: what it draws by the way, once, also after a kill."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from genai_assets.diffusion.distillation.levels import drawn_levels
from genai_assets.diffusion.distillation.trajectories import Recipe, Teacher, Trajectories, draw_trajectories
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets_tests.diffusion.distillation.conftest import prepared
from genai_assets_tests.diffusion.families.tiny_transformer import save_sana, save_stable_diffusion_3
from genai_assets_tests.diffusion.test_exact_resume import die, in_a_fork


def test_states_begin_as_noise_and_end_as_what_the_teacher_draws(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, trajectories: Trajectories
):
    assert trajectories.states.shape == trajectories.targets.shape == (6, 2, 3, 64, 64)
    assert trajectories.states.dtype == trajectories.targets.dtype == np.float16
    noise = recipe.noise((3, 64, 64), 2)
    assert np.allclose(trajectories.states[2, 0], noise.numpy(), atol=2e-3)

    family = prepared(tiny_base, 2)
    row, prompt = trajectories.choose(cache, 2)
    assert cache.rows["split"].iloc[row] == "train" and cache.texts[prompt] in cache.rows["texts"].iloc[row]
    # By hand: two Euler steps from the first level to the second, of guided velocities.
    told = family.encode_prompts(["", cache.texts[prompt]])
    above, below = recipe.levels[:2]
    start, end = (sigma / (2 - sigma) for sigma in (above, below))  # before the shift of 2
    times = np.linspace(start, end, 3)
    state, sigmas = noise[None], [2 * time / (1 + time) for time in times]
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            both = family.predict(family.denoiser, torch.cat((state, state)), torch.full((2,), sigma), told)
            clean = both[:1] + 2.0 * (both[1:] - both[:1])
            state = state + (following - sigma) * (state - clean) / sigma
    assert np.allclose(trajectories.states[2, 1], state[0].numpy(), atol=0.02)


def test_of_guidance_the_targets_are_guided_predictions_and_the_last_is_what_the_teacher_draws(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    family = prepared(tiny_base, 3, "guidance")
    levels = drawn_levels(family, 3, 64)
    assert levels == pytest.approx([0.999, 0.799, 0.499, 0])  # thirds, shifted by 2; told in thousandths
    guided = dataclasses.replace(recipe, levels=tuple(levels), way="guidance", count=2)
    assert guided.rows == 6
    found = draw_trajectories(family, cache, cache.select("train"), guided, tmp_path)

    prompt = cache.texts[found.choose(cache, 1)[1]]
    noise = guided.noise((3, 64, 64), 1)
    told = family.encode_prompts(["", prompt])
    with torch.no_grad():
        level = torch.full((2,), levels[0])
        both = family.predict(family.denoiser, torch.stack((noise, noise)), level, told)
    assert np.allclose(found.targets[1, 0], both[0] + 2.0 * (both[1] - both[0]), atol=5e-3)

    monkeypatch.setattr(family, "_noise", lambda seeds, side: noise[None])
    [drawn] = family.draw([prompt], seeds=[0], steps=3, guidance_scale=2.0, side=64, on_step=lambda done: None)
    last = np.clip(found.targets[1, -1].astype(np.float32).transpose(1, 2, 0) * 127.5 + 127.5, 0, 255)
    assert np.abs(np.asarray(drawn, dtype=np.float32) - last).max() <= 2


@pytest.mark.parametrize("save", [save_stable_diffusion_3, save_sana])
def test_of_guidance_latent_teachers_go_the_way_of_their_stock_pipelines(save, tmp_path: Path):
    save(tmp_path / "model")
    family = prepared(tmp_path / "model", 4, "guidance")
    pipeline, side = family.pipeline, family.resolution
    told = family.encode_prompts(["", "red disc"])
    cache = SimpleNamespace(conditions={name: value.detach().numpy() for name, value in told.items()}, codes={})
    levels = drawn_levels(family, 4, side)
    recipe = Recipe(tuple(levels), way="guidance", teacher_steps=1, guidance_scale=3.0, count=1, seed=0)
    across = side // pipeline.vae_scale_factor
    noise = torch.randn((pipeline.transformer.config.in_channels, across, across))
    states, targets = Teacher(family, cast(TrainingCache, cache), recipe).draw([noise], [1])
    assert np.allclose(states[0, 0], noise, atol=2e-3)

    asked = {"num_inference_steps": 4, "height": side, "width": side, "output_type": "latent", "latents": noise[None]}
    stock = pipeline(prompt="red disc", **asked, **(family.drawing_arguments(1, 3.0) | {"guidance_scale": 3.0}))
    assert np.allclose(targets[0, -1], stock.images[0].numpy(), atol=0.01)


def test_without_guidance_the_empty_prompt_is_not_asked(tiny_base: Path, cache: TrainingCache, recipe: Recipe):
    family = prepared(tiny_base, 2)
    seen = []
    family.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    plain = dataclasses.replace(recipe, guidance_scale=1.0)
    Teacher(family, cache, plain).draw([plain.noise((3, 64, 64), 0)], [1])
    assert seen == [1, 1, 1, 1]


def test_a_killed_drawing_goes_on_and_ends_with_the_same_states(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, trajectories: Trajectories, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("genai_assets.diffusion.distillation.trajectories._PIXELS_AT_ONCE", 2 * 64 * 64)

    def draw(**more):
        rows = cache.select("train")
        return draw_trajectories(prepared(tiny_base, 2), cache, rows, recipe, tmp_path, **more)

    assert in_a_fork(lambda: draw(on_drawn=lambda drawn: die() if drawn.done == 4 else None)) == -9
    assert json.loads((tmp_path / "drawn.json").read_text()) == {"drawn": 4, "finished": False}
    told = []
    after = draw(on_drawn=lambda drawn: told.append((drawn.done, drawn.total)))
    assert told == [(6, 6)]
    assert np.allclose(after.states, trajectories.states, atol=2e-3)  # batches of another size round otherwise
    before = os.stat(tmp_path / "states.npy").st_mtime_ns
    draw(on_drawn=lambda drawn: pytest.fail("nothing is left to draw"))
    assert os.stat(tmp_path / "states.npy").st_mtime_ns == before


def test_trajectories_of_another_recipe_are_drawn_anew(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, tmp_path: Path
):
    few = dataclasses.replace(recipe, count=1)
    first = draw_trajectories(prepared(tiny_base, 2), cache, cache.select("train"), few, tmp_path)
    states, targets = first.states.copy(), first.targets.copy()
    other = dataclasses.replace(few, guidance_scale=5.0)
    second = draw_trajectories(prepared(tiny_base, 2), cache, cache.select("train"), other, tmp_path)
    assert np.array_equal(states[:, 0], second.states[:, 0]) and not np.array_equal(targets, second.targets)


def test_when_time_runs_out_it_is_left_at_what_is_there(
    tiny_base: Path, cache: TrainingCache, recipe: Recipe, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("genai_assets.diffusion.distillation.trajectories._PIXELS_AT_ONCE", 2 * 64 * 64)
    rows = cache.select("train")
    short = draw_trajectories(prepared(tiny_base, 2), cache, rows, recipe, tmp_path, out_of_time=lambda: True)
    assert len(short) == 2
    assert len(draw_trajectories(prepared(tiny_base, 2), cache, rows, recipe, tmp_path)) == 2


def test_an_empty_training_split_is_told(tiny_base: Path, cache: TrainingCache, recipe: Recipe, tmp_path: Path):
    with pytest.raises(ValueError, match="no prompts to draw trajectories of"):
        draw_trajectories(prepared(tiny_base, 2), cache, np.array([], dtype=np.int64), recipe, tmp_path)
