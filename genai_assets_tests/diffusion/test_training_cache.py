"""The training cache holds the very pictures, and each prompt once."""

import numpy as np
import pytest
import torch

from genai_assets.diffusion.prompts import encode_prompts
from genai_assets.diffusion.training_cache import build_training_cache, to_model_range
from genai_assets_tests.diffusion.drawings import drawn_picture


def test_the_pictures_are_what_was_read(cache, rows):
    assert cache.pictures.shape == (len(rows), 64, 64, 3) and cache.pictures.dtype == np.uint8
    assert list(cache.rows["id"]) == list(rows["id"])
    for number, record_id in enumerate(rows["id"]):
        assert np.array_equal(cache.pictures[number], drawn_picture(record_id))


def test_the_empty_prompt_comes_first_and_each_picture_knows_its_own(cache, rows, tiny_pipeline):
    plain = [f"{caption}, plain style" for caption in rows["caption"]]
    embeddings, mask = encode_prompts(tiny_pipeline, ["", *plain])
    firsts = [numbers[0] for numbers in cache.rows["prompts"]]
    assert np.array_equal(cache.mask[[0, *firsts]], mask.numpy())
    assert np.allclose(cache.embeddings[[0, *firsts]], embeddings.numpy(), atol=2e-3)
    assert cache.embeddings.dtype == np.float16
    assert [len(numbers) for numbers in cache.rows["prompts"]] == [2 if words else 1 for words in rows["keywords"]]


def test_equal_prompts_are_encoded_once(rows, tiny_pipeline, tmp_path):
    twice = rows.iloc[[0, 0, 3]].assign(id=["red-disc", "blue-disc", "yellow-disc"])
    told = []
    summary = build_training_cache(
        twice,
        drawn_picture,
        tiny_pipeline,
        tmp_path,
        resolution=64,
        prompt_template="{caption}",
        on_progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    # The empty prompt, and two forms of two captions.
    assert (summary["pictures"], summary["prompts"]) == (3, 5)
    assert np.load(tmp_path / "embeddings.npy").shape[0] == np.load(tmp_path / "mask.npy").shape[0] == 5
    assert told == [("pictures", 1, 3), ("pictures", 3, 3), ("prompts", 5, 5)]


def test_skin_tone_variants_weigh_little(cache, rows):
    assert list(cache.rows["weight"]) == [0.15 if variant else 1.0 for variant in rows["variant"]]


def test_a_split_is_selected_by_style_too(cache):
    assert list(cache.rows["split"].iloc[cache.select("validation")].unique()) == ["validation"]
    assert len(cache.select("train")) + len(cache.select("validation")) == len(cache.rows)
    assert list(cache.select("train", "plain")) == list(cache.select("train"))
    assert len(cache.select("train", "other")) == len(cache.select("absent")) == 0


def test_a_cache_is_opened_without_reading_it_into_memory(cache):
    for array in (cache.pictures, cache.embeddings, cache.mask):
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_pictures_in_the_models_range_have_channels_first():
    pictures = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pictures[0, 1, 2] = (255, 0, 51)
    values = to_model_range(pictures)
    assert values.shape == (2, 3, 4, 4) and values.dtype == torch.float32
    assert values[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_prompts_are_encoded_alike_in_any_batch(tiny_pipeline):
    prompts = ["", "red disc", "a very long prompt " * 20]
    told = []
    embeddings, mask = encode_prompts(tiny_pipeline, prompts, dtype=torch.float32, batch_size=1, on_batch=told.append)
    together, together_mask = encode_prompts(tiny_pipeline, prompts, dtype=torch.float32)
    torch.testing.assert_close(embeddings, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(mask, together_mask)
    assert mask.sum(dim=1).tolist() == [2, 4, 20]
    assert told == [1, 2, 3]
