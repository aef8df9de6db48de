"""Batches: a pure function of (seed, step), with the promised shares of pictures, prompts and changes."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.augmentation import change
from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.batches import Batch, BatchSource, DataNotFinite, picture_chances
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache, to_model_range
from genai_assets_tests.diffusion.drawings import drawn_picture
from genai_assets_tests.diffusion.families.tiny_unet import save_stable_diffusion

PLAIN = Augmentation(flip=0)


def make_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"steps": 1, "batch_size": 8} | changes)


@pytest.fixture(scope="module")
def family(tiny_pipeline: Any) -> Family:
    return family_of(tiny_pipeline)


@pytest.fixture
def train(cache: TrainingCache) -> np.ndarray:
    return cache.select("train")


@pytest.fixture(scope="module")
def latent_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A Stable Diffusion that draws 16 px."""
    folder = tmp_path_factory.mktemp("latent") / "model"
    save_stable_diffusion(folder)
    return family_of(load_pipeline(folder))


@pytest.fixture(scope="module")
def latent_cache(rows: pd.DataFrame, latent_family: Family, tmp_path_factory: pytest.TempPathFactory) -> TrainingCache:
    """Mirrored, and with two croppings besides the whole picture."""
    folder = tmp_path_factory.mktemp("latents")
    build_training_cache(
        rows,
        lambda record_id, size: np.ascontiguousarray(drawn_picture(record_id)[::4, ::4]),
        latent_family,
        folder,
        resolution=16,
        prompt_template="{caption}",
        augmentation=Augmentation(crop=0.3),
        latent_variants=3,
    )
    return TrainingCache.open(folder)


def with_rows(cache: TrainingCache, **columns: Any) -> TrainingCache:
    return dataclasses.replace(cache, rows=cache.rows.assign(**columns))


def in_two_buckets(cache: TrainingCache) -> TrainingCache:
    """The last four of the twelve pictures made wide."""
    (codes,) = cache.codes.values()
    return dataclasses.replace(
        with_rows(cache, bucket=["64x64"] * 8 + ["32x64"] * 4, slot=[*range(8), *range(4)]),
        codes={"64x64": codes[:8], "32x64": codes[8:, :32]},
    )


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.prompts == other.prompts and one.conditions.keys() == other.conditions.keys()
    for name in ("clean", "noise", "level", "weight"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert all(torch.equal(value, other.conditions[name]) for name, value in one.conditions.items())


def drawn_ids(cache: TrainingCache, batch: Batch) -> list[str]:
    """Whose pictures these are, when none was changed."""
    whose = {code.tobytes(): cache.rows["id"][number] for number, code in enumerate(cache.codes["64x64"])}
    pixels = ((batch.clean + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [whose[picture.contiguous().numpy().tobytes()] for picture in pixels]


def test_a_batch_depends_on_seed_and_step_alone(cache, family, train):
    config = make_config(augmentation=Augmentation(crop=0.2, colour=0.2, rotation=10))
    forwards = [BatchSource(cache, family, train, config).batch(step) for step in (0, 1, 2)]
    source = BatchSource(cache, family, train, config)
    torch.randn(3)  # the global generator has no say
    backwards = [source.batch(step) for step in (2, 1, 0)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert_equal(one, other)
    assert not torch.equal(forwards[0].noise, forwards[1].noise)
    another = BatchSource(cache, family, train, config.model_copy(update={"seed": 1})).batch(0)
    assert not torch.equal(forwards[0].noise, another.noise)


def test_a_batch_has_the_promised_shapes_and_ranges(cache, family, train):
    batch = BatchSource(cache, family, train, make_config()).batch(0)
    assert len(batch) == 8
    assert batch.clean.shape == batch.noise.shape == (8, 3, 64, 64)
    assert batch.clean.dtype == batch.noise.dtype == batch.weight.dtype == torch.float32
    assert batch.clean.min() >= -1 and batch.clean.max() <= 1
    assert batch.conditions["embeddings"].shape[:2] == batch.conditions["mask"].shape == (8, 20)
    assert batch.conditions["embeddings"].dtype == torch.float32 and batch.conditions["mask"].dtype == torch.bool
    assert batch.level.shape == (8,) and batch.level.min() > 0 and batch.level.max() < 1
    assert batch.weight.tolist() == [1.0] * 8


def test_the_parts_of_a_batch_are_the_batch(cache, family, train):
    batch = BatchSource(cache, family, train, make_config()).batch(0)
    parts = [batch.part(0, 3), batch.part(3, 8)]
    assert [len(part) for part in parts] == [3, 5]
    together = Batch(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("clean", "noise", "level")),
        {name: torch.cat([part.conditions[name] for part in parts]) for name in batch.conditions},
        torch.cat([part.weight for part in parts]),
        [prompt for part in parts for prompt in part.prompts],
    )
    assert_equal(together, batch)


def test_a_batch_goes_to_a_device_whole(cache, family, train):
    moved = BatchSource(cache, family, train, make_config()).batch(0).to(torch.device("meta"))
    tensors = [moved.clean, moved.noise, moved.level, moved.weight, *moved.conditions.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} and len(moved) == 8


def test_prompts_and_conditions_belong_to_the_pictures(cache, family, train):
    batch = BatchSource(cache, family, train, make_config(augmentation=PLAIN, prompt_dropout=0)).batch(0)
    texts = dict(zip(cache.rows["id"], cache.rows["texts"], strict=True))
    for number, record_id in enumerate(drawn_ids(cache, batch)):
        assert batch.prompts[number] in texts[record_id]
        kept = cache.conditions["embeddings"][cache.texts.index(batch.prompts[number])]
        assert torch.equal(batch.conditions["embeddings"][number], torch.from_numpy(np.array(kept)).float())


def test_a_mirrored_picture_is_mirrored_left_to_right_and_the_cache_stays_as_it_is(cache, family, train):
    before = durable.digest_bytes(cache.codes["64x64"].tobytes())
    plain, mirrored = (
        BatchSource(cache, family, train[:1], make_config(augmentation=Augmentation(flip=flip))).batch(0).clean[0]
        for flip in (0, 1)
    )
    assert torch.equal(mirrored, plain.flip(-1)) and not torch.equal(mirrored, plain)
    assert durable.digest_bytes(cache.codes["64x64"].tobytes()) == before


def test_a_picture_that_must_not_be_mirrored_never_is(cache, family, train):
    config = make_config(augmentation=Augmentation(flip=1))
    one_way = with_rows(cache, may_flip=False)
    plain = BatchSource(cache, family, train, make_config(augmentation=PLAIN)).batch(0)
    assert torch.equal(BatchSource(one_way, family, train, config).batch(0).clean, plain.clean)


def test_pixels_are_changed_by_seed_step_and_place(cache, family, train):
    changes = Augmentation(flip=0, crop=0.2, colour=0.2, rotation=10)
    batch = BatchSource(cache, family, train[:1], make_config(augmentation=changes)).batch(3)
    for number in range(8):
        picture = cache.codes["64x64"][train[0]]
        expected = change(picture, changes, np.random.default_rng([0, 3, number]))
        assert torch.equal(batch.clean[number], to_model_range(expected[None])[0])
    assert len({picture.numpy().tobytes() for picture in batch.clean}) == 8


def test_dropped_prompts_are_the_empty_prompt(cache, family, train):
    batch = BatchSource(cache, family, train, make_config(prompt_dropout=0.999)).batch(0)
    assert batch.prompts == [""] * 8
    for name, values in batch.conditions.items():
        expected = torch.from_numpy(np.array(cache.conditions[name][[0] * 8]))
        assert torch.equal(values, expected.to(values.dtype))


def test_the_plain_prompt_is_drawn_half_of_the_time_and_others_share_the_rest(cache, family):
    rows = np.array([0])
    spoken = with_rows(cache, prompts=[[1, 2, 3]] * 12)
    source = BatchSource(spoken, family, rows, make_config(batch_size=4000, prompt_dropout=0, augmentation=PLAIN))
    picked = source._pick_prompts(np.zeros(1000, dtype=int), np.linspace(0, 0.9999, 1000))
    assert {number: list(picked).count(number) for number in (1, 2, 3)} == pytest.approx(
        {1: 500, 2: 250, 3: 250}, abs=2
    )
    alone = BatchSource(with_rows(cache, prompts=[[1]] * 12), family, rows, make_config())
    assert set(alone._pick_prompts(np.zeros(10, dtype=int), np.linspace(0, 0.9999, 10))) == {1}


def test_chances_follow_weights_and_classes():
    table = pd.DataFrame({"weight": [1.0, 1.0, 1.0, 0.5, 0.5], "category": ["food"] * 3 + ["animals"] * 2})
    assert picture_chances(table, 0) == pytest.approx(np.array([1, 1, 1, 0.5, 0.5]) / 4)
    assert picture_chances(table, 1) == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)
    balanced = picture_chances(table, 0.5)
    assert balanced.sum() == pytest.approx(1)
    assert balanced[:3].sum() / balanced[3:].sum() == pytest.approx(3**0.5)


def test_classes_that_are_not_known_cannot_be_balanced(cache, family, train):
    with pytest.raises(ValueError, match=r"class_balance is 0\.5, but the pictures have no category"):
        BatchSource(cache, family, train, make_config(class_balance=0.5))


def test_pictures_are_drawn_as_often_as_their_chances_say(cache, family, train):
    categories = ["rare" if record_id == "red-disc" else "common" for record_id in cache.rows["id"]]
    config = make_config(batch_size=600, class_balance=1, augmentation=PLAIN)
    sourced = with_rows(cache, category=categories)
    share = drawn_ids(cache, BatchSource(sourced, family, train, config).batch(0)).count("red-disc") / 600
    assert share == pytest.approx(0.5, abs=0.07)
    assert not set(cache.rows["id"][cache.select("validation")]) & set(
        drawn_ids(cache, BatchSource(sourced, family, train, config).batch(1))
    )


def test_a_picture_of_no_weight_is_never_drawn(cache, family):
    weightless = with_rows(cache, weight=[0.0] * 11 + [1.0])
    batch = BatchSource(weightless, family, np.arange(12), make_config(augmentation=PLAIN)).batch(0)
    assert set(drawn_ids(cache, batch)) == {cache.rows["id"][11]}
    with pytest.raises(ValueError, match="weight 0"):
        BatchSource(weightless, family, np.arange(11), make_config())


@pytest.mark.parametrize(("size", "share", "expected"), [(8, 0.25, {2}), (8, 0, {0}), (6, 0.25, {1, 2})])
def test_prior_pictures_have_their_share_of_every_batch_and_their_weight(size, share, expected, cache, family):
    prior = cache.rows["id"].str.endswith("disc")
    split = with_rows(cache, split=np.where(prior, "prior", "train"))
    config = make_config(batch_size=size, prior_share=share, prior_weight=0.5, augmentation=PLAIN)
    source = BatchSource(split, family, np.arange(12), config)
    counts = set()
    for step in range(12):
        batch = source.batch(step)
        is_prior = [record_id.endswith("disc") for record_id in drawn_ids(cache, batch)]
        assert batch.weight.tolist() == [0.5 if one else 1.0 for one in is_prior]
        counts.add(sum(is_prior))
    assert counts == expected


def test_without_prior_pictures_nothing_is_set_aside_for_them(cache, family, train):
    config = make_config(prior_share=0.5)
    assert BatchSource(cache, family, train, config).batch(0).weight.tolist() == [1.0] * 8


def test_prior_pictures_alone_are_nothing_to_train_on(cache, family):
    with pytest.raises(ValueError, match="training split is empty"):
        BatchSource(with_rows(cache, split="prior"), family, np.arange(12), make_config())


def test_a_batch_is_of_one_bucket_and_buckets_come_as_often_as_their_pictures(cache, family):
    source = BatchSource(in_two_buckets(cache), family, np.arange(12), make_config(batch_size=2))
    weights = cache.rows["weight"].to_numpy()
    shapes = [tuple(source.batch(step).clean.shape[2:]) for step in range(400)]
    assert set(shapes) == {(64, 64), (32, 64)}
    assert shapes.count((32, 64)) / 400 == pytest.approx(weights[8:].sum() / weights.sum(), abs=0.07)


def test_prior_pictures_of_another_shape_keep_their_share_over_many_batches(cache, family):
    split = with_rows(in_two_buckets(cache), split=["train"] * 8 + ["prior"] * 4)
    source = BatchSource(split, family, np.arange(12), make_config(batch_size=2, prior_share=0.3, prior_weight=0.5))
    weights = torch.cat([source.batch(step).weight for step in range(400)])
    assert (weights == 0.5).float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_latents_are_drawn_mirrored_and_changed(latent_cache, latent_family):
    config = make_config(batch_size=300, augmentation=Augmentation(flip=0.25, crop=0.3))
    batch = BatchSource(latent_cache, latent_family, np.array([0]), config).batch(0)
    kept = [latent.astype(np.float32).tobytes() for latent in latent_cache.codes["16x16"][0]]
    drawn = [kept.index(latent.numpy().tobytes()) for latent in batch.clean]
    shares = np.bincount(drawn, minlength=6) / 300
    assert batch.clean.shape == batch.noise.shape == (300, 4, 8, 8)
    assert shares == pytest.approx([0.25, 1 / 12] * 3, abs=0.07)
    one_way = with_rows(latent_cache, may_flip=False)
    batch = BatchSource(one_way, latent_family, np.array([0]), config).batch(0)
    assert {kept.index(latent.numpy().tobytes()) for latent in batch.clean} == {0, 2, 4}


def test_a_run_may_leave_changed_latents_out(latent_cache, latent_family):
    batch = BatchSource(latent_cache, latent_family, np.array([0]), make_config(augmentation=PLAIN)).batch(0)
    plain = torch.from_numpy(np.array(latent_cache.codes["16x16"][0, 0])).float()
    assert torch.equal(batch.clean, plain.expand(8, -1, -1, -1))


@pytest.mark.parametrize("asked", [{"crop": 0.2}, {"crop": 0.3, "rotation": 5.0}])
def test_latents_made_otherwise_than_the_run_asks_are_a_clear_error(asked, latent_cache, latent_family):
    with pytest.raises(ValueError, match="build the cache with the same one"):
        BatchSource(latent_cache, latent_family, np.arange(12), make_config(augmentation=Augmentation(**asked)))


def test_latents_without_mirror_images_cannot_be_mirrored(latent_cache, latent_family):
    unmirrored = dataclasses.replace(latent_cache, augmentation=PLAIN)
    with pytest.raises(ValueError, match="build the cache with the same one"):
        BatchSource(unmirrored, latent_family, np.arange(12), make_config(augmentation=Augmentation(flip=0.1)))


def test_validation_has_every_picture_once_as_it_is_at_even_levels(cache, family, train):
    rows = cache.select("validation")
    changes = Augmentation(flip=1, crop=0.3)
    source = BatchSource(cache, family, train, make_config(augmentation=changes, prompt_dropout=0.9))
    source.batch(0)
    (batch,) = source.validation_batches(rows)
    assert drawn_ids(cache, batch) == list(cache.rows["id"][rows])
    assert batch.prompts == [texts[0] for texts in cache.rows["texts"][rows]]
    assert torch.equal(batch.level, family.even_levels(len(rows)))
    assert batch.weight.tolist() == [1.0] * len(rows)
    (again,) = BatchSource(cache, family, train[:1], make_config()).validation_batches(rows)
    assert_equal(batch, again)
    assert source.validation_batches(np.array([], dtype=int)) == []


def test_validation_batches_are_of_one_bucket_and_not_too_large(cache, family):
    source = BatchSource(in_two_buckets(cache), family, np.arange(12), make_config())
    rows = np.tile(np.arange(12), 9)  # 72 square pictures and 36 wide ones
    batches = source.validation_batches(rows)
    assert [(len(batch), batch.clean.shape[2]) for batch in batches] == [(36, 32), (64, 64), (8, 64)]
    levels = torch.cat([batch.level for batch in batches])
    assert torch.equal(levels.sort().values, family.even_levels(108))
    assert not torch.equal(batches[1].noise[:8], batches[2].noise)


def test_a_damaged_prompt_is_named(cache, family, train):
    embeddings = np.array(cache.conditions["embeddings"])
    embeddings[cache.texts.index("red disc, plain style"), 3, 5] = np.nan
    hurt = dataclasses.replace(cache, conditions={**cache.conditions, "embeddings": embeddings})
    source = BatchSource(hurt, family, train, make_config(batch_size=100))
    with pytest.raises(DataNotFinite, match="embeddings of the prompt 'red disc, plain style' are not finite"):
        source.batch(0)
    with pytest.raises(DataNotFinite, match="red disc"):
        source.validation_batches(train)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_damaged_latent_is_named(value, latent_cache, latent_family):
    codes = np.array(latent_cache.codes["16x16"])
    codes[2, 0, 1, 0, 0] = value
    hurt = dataclasses.replace(latent_cache, codes={"16x16": codes})
    source = BatchSource(hurt, latent_family, np.array([0, 2]), make_config(augmentation=PLAIN))
    with pytest.raises(DataNotFinite, match=f"latents of the picture {latent_cache.rows['id'][2]} are not finite"):
        source.batch(0)


def test_no_training_pictures_is_a_clear_error(cache, family):
    with pytest.raises(ValueError, match="training split is empty"):
        BatchSource(cache, family, np.array([], dtype=int), make_config())
