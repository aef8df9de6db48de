"""The Drawer draws what the stock pipeline draws, many prompts at once."""

import numpy as np
import pytest
import torch

from genai_assets.diffusion.base_model import BaseModelError, load_pipeline
from genai_assets.diffusion.sampling import Drawer, load

PROMPTS = ["red disc, plain style", "a blue square", ""]


@pytest.fixture(scope="module")
def drawer(tiny_base) -> Drawer:
    return load(tiny_base, device="cpu", exact=True)


def draw(drawer: Drawer, prompts, seeds, *, steps=3, guidance_scale=3.0, **more) -> np.ndarray:
    pictures = drawer.draw(prompts, seeds=seeds, steps=steps, guidance_scale=guidance_scale, **more)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


@pytest.mark.parametrize(("steps", "guidance_scale"), [(1, 3.0), (4, 3.0), (4, 1.0)])
def test_in_exact_mode_it_draws_the_very_picture_of_the_stock_pipeline(drawer, tiny_pipeline, steps, guidance_scale):
    tiny_pipeline.set_progress_bar_config(disable=True)
    ours = draw(drawer, PROMPTS, [5, 6, 7], steps=steps, guidance_scale=guidance_scale)
    for number, prompt in enumerate(PROMPTS):
        stock = tiny_pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(5 + number),
            use_resolution_binning=False,
        ).images[0]
        difference = np.abs(ours[number] - np.asarray(stock).astype(int))
        assert difference.max() <= 1, "another order of sums may tip a value over to the next"
        assert (difference > 0).mean() < 0.001


def test_a_picture_does_not_depend_on_the_batch_it_is_drawn_in(drawer):
    together = draw(drawer, PROMPTS, [5, 6, 7])
    alone = draw(drawer, PROMPTS, [5, 6, 7], batch_size=1)
    turned = draw(drawer, PROMPTS[::-1], [7, 6, 5], batch_size=2)[::-1]
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together - turned).max() <= 1


def test_seed_and_prompt_and_guidance_each_make_another_picture(drawer):
    reference = draw(drawer, PROMPTS[:1], [5])
    assert np.array_equal(draw(drawer, PROMPTS[:1], [5]), reference)
    assert not np.array_equal(draw(drawer, PROMPTS[:1], [6]), reference)
    assert not np.array_equal(draw(drawer, PROMPTS[1:2], [5]), reference)
    assert not np.array_equal(draw(drawer, PROMPTS[:1], [5], guidance_scale=6.0), reference)


def test_bf16_draws_nearly_the_same(drawer, tiny_base):
    quick = draw(load(tiny_base, device="cpu"), PROMPTS, [5, 6, 7])
    assert np.abs(quick - draw(drawer, PROMPTS, [5, 6, 7])).mean() < 8


def test_pictures_are_rgb_of_the_models_size_and_progress_is_told(drawer):
    told = []
    pictures = drawer.draw(
        PROMPTS,
        seeds=range(3),
        steps=2,
        guidance_scale=1,
        batch_size=2,
        on_step=lambda done, total: told.append((done, total)),
    )
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (64, 64))] * 3
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_prompts_are_no_pictures(drawer):
    assert drawer.draw([], seeds=[], steps=1, guidance_scale=1) == []


def test_another_number_of_seeds_than_prompts_is_a_clear_error(drawer):
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        draw(drawer, PROMPTS[:2], [1])


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_a_clear_error(drawer, steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, not {steps}"):
        draw(drawer, PROMPTS[:1], [1], steps=steps)


def test_drawing_leaves_the_pipelines_own_noise_scheduler_alone(tiny_base):
    pipeline = load_pipeline(tiny_base)
    before = pipeline.scheduler.timesteps.clone()
    draw(Drawer(pipeline, torch.device("cpu"), dtype=torch.float32), PROMPTS[:1], [1])
    assert torch.equal(pipeline.scheduler.timesteps, before)


def test_a_folder_that_is_no_model_is_a_clear_error(tmp_path):
    with pytest.raises(BaseModelError, match=str(tmp_path)):
        load(tmp_path)
