"""Prior pictures: drawn by the base of generic prompts, saved, and handed to a training cache."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from genai_assets import durable
from genai_assets.diffusion.batches import BatchSource
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.prior import draw_prior_pictures, prior_reader, prior_rows
from genai_assets.diffusion.sampling import Drawer
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache, to_model_range
from genai_assets_tests.diffusion.drawings import drawn_picture

PROMPTS = ["a disc", "a square"]


@pytest.fixture(scope="module")
def draw(tiny_pipeline: Any):
    drawer = Drawer(tiny_pipeline, torch.device("cpu"), dtype=torch.float32)
    return lambda prompts, seeds: drawer.draw(prompts, seeds=seeds, steps=1, guidance_scale=1)


@pytest.fixture(scope="module")
def folder(draw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior")
    assert draw_prior_pictures(draw, PROMPTS, 5, 7, out) == {"pictures": 5, "prompts": 2}
    return out


def test_prompts_take_turns_and_every_picture_is_another(folder):
    rows = prior_rows(folder)
    assert list(rows["caption"]) == ["a disc", "a square", "a disc", "a square", "a disc"]
    assert rows["id"].is_unique and set(rows["split"]) == {"prior"}
    assert list(rows["width"]) == list(rows["height"]) == [64] * 5
    assert {path.stem for path in folder.glob("*.png")} == set(rows["id"])


def test_the_pictures_are_what_the_base_draws_with_seeds_of_their_own(folder, draw, tmp_path):
    seeds: list[int] = []

    def remember(prompts, own_seeds):
        seeds.extend(own_seeds)
        return draw(prompts, own_seeds)

    told = []
    draw_prior_pictures(remember, PROMPTS, 5, 7, tmp_path, on_progress=lambda *done: told.append(done))
    assert durable.digest_tree(tmp_path) == durable.digest_tree(folder), "the same seed, the same pictures"
    assert len(set(seeds)) == 5 and told == [(5, 5)]
    (expected,) = draw(["a square"], [seeds[1]])
    with Image.open(folder / f"{prior_rows(folder)['id'][1]}.png") as saved:
        assert np.array_equal(np.array(saved), np.array(expected))


def test_they_are_trained_along_with_their_own_prompts_and_weight(folder, rows, tiny_pipeline, tmp_path):
    family = family_of(tiny_pipeline)
    read = prior_reader(folder, lambda record_id, size: drawn_picture(record_id))
    both = pd.concat([rows, prior_rows(folder)], ignore_index=True)
    build_training_cache(both, read, family, tmp_path, resolution=64, prompt_template="{caption}, {style} style")
    cache = TrainingCache.open(tmp_path)
    config = TrainingConfig(
        steps=1, batch_size=8, prior_weight=0.5, prompt_dropout=0, augmentation=Augmentation(flip=0)
    )
    learnt = np.concatenate((cache.select("train"), cache.select("prior")))
    batch = BatchSource(cache, family, learnt, config).batch(0)
    assert batch.weight.tolist() == [1.0] * 6 + [0.5] * 2
    assert all(prompt in PROMPTS for prompt in batch.prompts[6:])
    assert all(prompt.endswith(", plain style") for prompt in batch.prompts[:6])
    drawn = to_model_range(np.stack([read(record_id, (64, 64)) for record_id in prior_rows(folder)["id"]]))
    assert all((picture == drawn).flatten(1).all(dim=1).any() for picture in batch.clean[6:])


def test_a_changed_prior_picture_is_a_clear_error(draw, tmp_path):
    draw_prior_pictures(draw, PROMPTS, 1, 0, tmp_path)
    (record_id,) = prior_rows(tmp_path)["id"]
    Image.new("RGB", (64, 64)).save(tmp_path / f"{record_id}.png")
    with pytest.raises(ValueError, match=f"{record_id} in .* was changed"):
        prior_reader(tmp_path, lambda *_: np.zeros(0))(record_id, (64, 64))


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [([], 3, "generic prompts"), (["a dog", " "], 3, "none of them empty"), (["a dog"], 0, "at least one")],
)
def test_what_cannot_be_drawn_is_a_clear_error(prompts, count, message, draw, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_prior_pictures(draw, prompts, count, 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
