"""The training cache holds the very pictures or their latents, and each prompt once."""

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from genai_assets.diffusion.aspect_buckets import to_bucket
from genai_assets.diffusion.augmentation import mirror
from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.config import Augmentation
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training_cache import (
    DataNotFinite,
    TrainingCache,
    build_training_cache,
    to_model_range,
    variant_count,
)
from genai_assets_tests.diffusion.drawings import drawn_picture
from genai_assets_tests.diffusion.families.tiny_unet import save_stable_diffusion

CHANGES = Augmentation(flip=0.5, crop=0.2, colour=0.2, rotation=10)


@pytest.fixture(scope="module")
def latent_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A Stable Diffusion that draws 16 px."""
    folder = tmp_path_factory.mktemp("latent") / "model"
    save_stable_diffusion(folder)
    return family_of(load_pipeline(folder))


def read_small(record_id: str, size: tuple[int, int]) -> np.ndarray:
    """A drawn picture, made smaller."""
    return to_bucket(Image.fromarray(drawn_picture(record_id)), *size)


def build(rows: pd.DataFrame, family: Family, folder: Path, **more: Any) -> TrainingCache:
    made = {"read_picture": read_small, "resolution": 16, "prompt_template": "{caption}, {style} style"} | more
    build_training_cache(rows, family=family, out=folder, **made)
    return TrainingCache.open(folder)


def by_id(cache: TrainingCache) -> dict[str, np.ndarray]:
    columns = zip(cache.rows["id"], cache.rows["bucket"], cache.rows["slot"], strict=True)
    return {record_id: cache.codes[bucket][slot] for record_id, bucket, slot in columns}


def test_pictures_for_a_family_that_learns_pixels_are_what_was_read(cache, rows):
    (codes,) = cache.codes.values()
    assert codes.shape == (len(rows), 64, 64, 3) and codes.dtype == np.uint8
    assert list(cache.rows["id"]) == list(rows["id"])
    assert all(np.array_equal(picture, drawn_picture(record_id)) for record_id, picture in by_id(cache).items())
    assert (cache.resolution, cache.augmentation) == (64, None)


def test_the_empty_prompt_comes_first_and_each_picture_knows_its_own(cache, rows, tiny_pipeline):
    plain = [f"{caption}, plain style" for caption in rows["caption"]]
    with torch.no_grad():
        expected = family_of(tiny_pipeline).encode_prompts(["", *plain])
    firsts = [numbers[0] for numbers in cache.rows["prompts"]]
    assert [cache.texts[number] for number in (0, *firsts)] == ["", *plain]
    assert np.array_equal(cache.conditions["mask"][[0, *firsts]], expected["mask"].numpy())
    assert np.allclose(cache.conditions["embeddings"][[0, *firsts]], expected["embeddings"].numpy(), atol=2e-3)
    assert [len(numbers) for numbers in cache.rows["prompts"]] == [2 if words else 1 for words in rows["keywords"]]
    for own, texts in zip(cache.rows["prompts"], cache.rows["texts"], strict=True):
        assert [cache.texts[number] for number in own] == list(texts)


def test_floats_are_kept_in_half_precision_and_masks_as_they_are(cache):
    assert {name: array.dtype for name, array in cache.conditions.items()} == {"embeddings": np.float16, "mask": bool}


def test_equal_prompts_are_encoded_once(rows, tiny_pipeline, tmp_path):
    twice = rows.iloc[[0, 0, 3]].assign(id=["red-disc", "blue-disc", "yellow-disc"])
    told = []
    summary = build_training_cache(
        twice,
        lambda record_id, size: drawn_picture(record_id),
        family_of(tiny_pipeline),
        tmp_path,
        resolution=64,
        prompt_template="{caption}",
        on_progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    # The empty prompt, and two forms of two captions.
    assert (summary["pictures"], summary["prompts"], summary["buckets"]) == (3, 5, {"64x64": 3})
    assert {len(array) for array in TrainingCache.open(tmp_path).conditions.values()} == {5}
    assert told == [("pictures", 3, 3), ("prompts", 5, 5)]


def test_skin_tone_variants_weigh_little(cache, rows):
    assert list(cache.rows["weight"]) == [0.15 if variant else 1.0 for variant in rows["variant"]]


def test_a_split_is_selected_by_style_too(cache):
    assert list(cache.rows["split"].iloc[cache.select("validation")].unique()) == ["validation"]
    assert len(cache.select("train")) + len(cache.select("validation")) == len(cache.rows)
    assert list(cache.select("train", "plain")) == list(cache.select("train"))
    assert len(cache.select("train", "other")) == len(cache.select("absent")) == 0


def test_a_cache_is_opened_without_reading_it_into_memory(cache):
    for array in (*cache.codes.values(), *cache.conditions.values()):
        assert isinstance(array, np.memmap) and not array.flags.writeable


@pytest.mark.parametrize("learns", ["pixels", "latents"])
def test_a_build_never_holds_more_pictures_than_it_works_on_at_a_time(
    learns, rows, tiny_pipeline, latent_family, tmp_path
):
    many = pd.concat([rows] * 25).assign(id=[f"{number}" for number in range(300)])
    read_so_far: list[weakref.ref[np.ndarray]] = []
    held: list[int] = []

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        picture = np.full((*size, 3), int(record_id) % 256, dtype=np.uint8)
        read_so_far.append(weakref.ref(picture))
        held.append(sum(reference() is not None for reference in read_so_far))
        return picture

    family = family_of(tiny_pipeline) if learns == "pixels" else latent_family
    cache = build(many, family, tmp_path, read_picture=read)
    assert len(cache.rows) == 300
    assert max(held) <= 64


def test_latents_are_those_of_the_plain_picture_and_of_its_mirror_image(rows, latent_family, tmp_path):
    captions = ["red disc", "disc on the left", *rows["caption"][2:]]
    cache = build(rows.assign(caption=captions), latent_family, tmp_path)
    assert list(cache.codes) == ["16x16"] and cache.codes["16x16"].dtype == np.float16
    assert list(cache.rows["may_flip"]) == [True, False] + [True] * 10
    for (record_id, latents), may_flip in zip(by_id(cache).items(), cache.rows["may_flip"], strict=True):
        picture = read_small(record_id, (16, 16))
        pair = np.stack([picture, mirror(picture) if may_flip else picture])
        expected = latent_family.encode_pictures(to_model_range(pair)).numpy()
        assert latents.shape == expected.shape == (2, 4, 8, 8)
        assert np.allclose(latents, expected, atol=2e-3)
        assert np.array_equal(latents[0], latents[1]) is not may_flip


def test_how_many_latents_a_picture_has_follows_from_what_is_changed():
    assert variant_count(Augmentation(flip=0), 4) == 1
    assert variant_count(Augmentation(flip=0.5), 4) == 2
    assert variant_count(Augmentation(flip=0, crop=0.1), 4) == 4
    assert variant_count(CHANGES, 4) == 8


def test_a_latent_depends_on_the_seed_the_picture_and_its_number_alone(rows, latent_family, tmp_path):
    folders = [tmp_path / name for name in ("one", "backwards", "other")]
    for folder in folders:
        folder.mkdir()
    made = {"augmentation": CHANGES, "latent_variants": 3}
    one, backwards, other = (
        by_id(build(table, latent_family, folder, seed=seed, **made))
        for table, folder, seed in zip((rows, rows[::-1], rows), folders, (1, 1, 2), strict=True)
    )
    for record_id, latents in one.items():
        assert latents.shape[0] == 6
        assert np.allclose(backwards[record_id], latents, atol=2e-3)
        assert np.allclose(other[record_id][:2], latents[:2], atol=2e-3), "plain and mirrored: no chance in it"
        assert not any(np.allclose(other[record_id][number], latents[number], atol=2e-3) for number in range(2, 6))
        assert len({latent.tobytes() for latent in latents}) == 6


def test_two_pictures_are_not_changed_alike(rows, latent_family, tmp_path):
    cache = build(
        rows[:2],
        latent_family,
        tmp_path,
        augmentation=CHANGES,
        latent_variants=2,
        read_picture=lambda _, size: read_small("red-disc", size),
    )
    one, other = cache.codes["16x16"]
    assert np.array_equal(one[:2], other[:2]), "the same picture under two ids"
    assert not np.allclose(one[2], other[2], atol=2e-3)


def test_pictures_go_to_the_bucket_of_their_shape(rows, latent_family, tmp_path):
    sized = rows.assign(width=[200, 100] * 6, height=[100, 200] * 6)
    asked = []

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        asked.append((record_id, size))
        return read_small(record_id, size)

    cache = build(sized, latent_family, tmp_path, buckets=True, read_picture=read)
    wide, tall = sorted(cache.codes, key=lambda name: int(name.split("x")[0]))
    assert wide == "x".join(reversed(tall.split("x"))) and wide != tall
    assert list(cache.rows["bucket"]) == [wide, tall] * 6
    assert list(cache.rows["slot"]) == [number // 2 for number in range(12)]
    assert len(cache.codes[wide]) == len(cache.codes[tall]) == 6
    height, width = map(int, wide.split("x"))
    assert dict(asked) == {
        record_id: (height, width) if number % 2 == 0 else (width, height)
        for number, record_id in enumerate(sized["id"])
    }
    assert cache.codes[wide].shape[2:] == (4, height // 2, width // 2)


def test_buckets_without_known_sizes_are_a_clear_error(rows, latent_family, tmp_path):
    with pytest.raises(ValueError, match="need the columns width and height"):
        build(rows, latent_family, tmp_path, buckets=True)


def test_a_prior_picture_is_described_by_its_prompt_alone(rows, latent_family, tmp_path):
    cache = build(rows.assign(split=["prior"] + ["train"] * 11), latent_family, tmp_path)
    assert cache.rows["texts"][0][0] == "red disc"
    assert cache.rows["texts"][1][0] == "green disc, plain style"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "no pictures"),
        ({"resolution": 18}, "the resolution 18 is no multiple of 4.*take 16"),
        ({"latent_variants": 0}, "at least one latent"),
        ({"read_picture": lambda *_: np.zeros((8, 16, 3), np.uint8)}, r"red-disc was read as uint8 \[8, 16, 3\]"),
        ({"read_picture": lambda *_: np.zeros((16, 16, 3))}, "red-disc was read as float64"),
    ],
)
def test_what_cannot_be_a_cache_is_a_clear_error(changes, message, rows, latent_family, tmp_path):
    table = rows.iloc[: changes.pop("rows", 1)]
    with pytest.raises(ValueError, match=message):
        build(table, latent_family, tmp_path, **changes)


@pytest.mark.parametrize(("part", "named"), [("vae", "the picture red-disc"), ("text_encoder", "the prompt ''")])
def test_an_encoder_that_overflows_is_noticed_when_the_cache_is_built(part, named, rows, latent_family, tmp_path):
    pipeline = copy.copy(latent_family.pipeline)
    setattr(pipeline, part, copy.deepcopy(getattr(pipeline, part)))
    with torch.no_grad():
        for weight in getattr(pipeline, part).parameters():
            weight.fill_(torch.inf)
    with pytest.raises(DataNotFinite, match=f"{named} was encoded to values that are not finite"):
        build(rows, family_of(pipeline), tmp_path)


def test_a_folder_that_is_no_cache_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cache\.json.*build it anew"):
        TrainingCache.open(tmp_path)


def test_pictures_in_the_models_range_have_channels_first():
    pictures = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    pictures[0, 1, 2] = (255, 0, 51)
    values = to_model_range(pictures)
    assert values.shape == (2, 3, 4, 5) and values.dtype == torch.float32 and values.is_contiguous()
    assert values[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])
