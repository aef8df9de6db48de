"""Near duplicates: what is joined, what is not, and that nothing chains or explodes."""

import hashlib
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from genai_assets.datasets.duplicates import (
    CLUSTER_COLUMNS,
    PAIR_COLUMNS,
    cluster,
    cluster_groups,
    colour_differences,
    colour_grid,
    find_duplicates,
    near_hashes,
    near_pairs,
    near_vectors,
    perceptual_groups,
    stars,
)
from genai_assets.datasets.records import Record, to_frame
from genai_assets.settings import CurationSettings

RULES = CurationSettings()


def text(number: int) -> str:
    return f"{number:016x}"


BASE = 0x0F0F_3C3C_55AA_C3A5


def flipped(number: int, *bits: int) -> int:
    for bit in bits:
        number ^= 1 << bit
    return number


def identifier(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


hashes = st.lists(
    st.one_of(
        st.integers(0, 2**64 - 1),
        st.builds(flipped, st.sampled_from([BASE, ~BASE & (2**64 - 1)]), *[st.integers(0, 63)] * 5),
    ),
    max_size=40,
)


@hypothesis_settings(deadline=None, max_examples=150)
@given(hashes, st.integers(0, 16))
def test_every_near_pair_of_hashes_is_found_once(numbers: list[int], most: int) -> None:
    first, second, distance = near_hashes([text(number) for number in numbers], most)
    found = list(zip(first.tolist(), second.tolist(), distance.tolist(), strict=True))
    telling = [8 <= number.bit_count() <= 56 for number in numbers]
    assert found == [
        (one, other, (numbers[one] ^ numbers[other]).bit_count())
        for one in range(len(numbers))
        for other in range(one + 1, len(numbers))
        if numbers[one] == numbers[other]
        or (telling[one] and telling[other] and (numbers[one] ^ numbers[other]).bit_count() <= most)
    ]


@hypothesis_settings(deadline=None, max_examples=100)
@given(hashes, st.integers(0, 10), st.randoms())
def test_no_two_of_a_group_are_further_apart_than_twice_the_distance(numbers, most, random) -> None:
    named = {f"{place:02d}": text(number) for place, number in enumerate(numbers)}
    groups = perceptual_groups(named, most)
    members = [member for group in groups for member in group]
    assert len(members) == len(set(members)) and all(len(group) >= 2 for group in groups)
    for centre, *others in groups:
        for other in others:
            assert (int(named[centre], 16) ^ int(named[other], 16)).bit_count() <= most
    shuffled = list(named.items())
    random.shuffle(shuffled)
    assert perceptual_groups(dict(shuffled), most) == groups, "the order they come in changes nothing"


def test_a_chain_of_small_steps_is_cut() -> None:
    chain = {f"{step:02d}": text(flipped(BASE, *range(step))) for step in range(40)}
    groups = perceptual_groups(chain, 2)
    assert max(len(group) for group in groups) <= 5, "a centre and two steps to either side"
    assert sum(len(group) for group in groups) > 30, "yet most are in a group"


def test_hashes_of_nearly_blank_pictures_are_grouped_with_their_equals_only() -> None:
    blank = {f"{bit:02d}": text(1 << bit) for bit in range(64)}
    assert perceptual_groups(blank, 4) == []
    assert perceptual_groups({**blank, "twin": text(1 << 7)}, 4) == [("07", "twin")]


def test_a_mass_of_equal_hashes_is_one_group_and_makes_no_mass_of_pairs() -> None:
    many = {f"{number:05d}": text(BASE) for number in range(20_000)}
    assert len(near_hashes(list(many.values()), 4)[0]) < 22_000
    assert [len(group) for group in perceptual_groups(many, 4)] == [20_000]


@pytest.mark.parametrize(("given_hash", "most"), [("", 4), ("xyz", 4), ("0" * 15, 4), ("g" * 16, 4), ("+" * 16, 4)])
def test_what_is_no_hash_is_named(given_hash: str, most: int) -> None:
    with pytest.raises(ValueError, match="is no perceptual hash: those have 16 hexadecimal digits"):
        perceptual_groups({"a": given_hash}, most)


def test_a_distance_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 64 bits; 65 is out of range"):
        perceptual_groups({}, 65)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3))
def test_near_vectors_are_those_of_the_plain_formula(seed: int, most: float) -> None:
    dice = np.random.default_rng(seed)
    vectors = dice.normal(size=(30, 6)) + dice.normal(size=(5, 6)).repeat(6, axis=0) * 3
    vectors[7] = 0
    first, second, _ = near_vectors(vectors, most)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    distance = 1 - unit @ unit.T
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    for one in range(30):
        for other in range(one + 1, 30):
            if abs(distance[one, other] - most) > 1e-5:
                assert ((one, other) in found) == (distance[one, other] <= most)
    assert 7 not in {place for pair in found for place in pair}, "a zero vector is near nothing"


def test_blocks_of_vectors_miss_no_pair_and_tell_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    whole = near_vectors(vectors, 0.2)
    monkeypatch.setattr("genai_assets.datasets.duplicates._VECTORS_AT_ONCE", 7)
    for one, other in zip(near_vectors(vectors, 0.2), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# Pictures.


def face(skin: tuple[int, int, int] = (240, 190, 140), mouth: int = 0) -> Image.Image:
    image = Image.new("RGB", (96, 96), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((12, 12, 84, 84), skin, (60, 40, 30), 3)
    canvas.ellipse((32, 34, 42, 46), (20, 20, 20))
    canvas.ellipse((54, 34, 64, 46), (20, 20, 20))
    canvas.arc((32, 44 + mouth, 64, 70 + mouth), 20, 160, (120, 20, 20), 5)
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


PICTURES = {
    "plain": face(),
    "jpeg": jpeg(face(), 60),
    "smaller": face().resize((56, 56)),
    "other skin": face((190, 120, 80)),
    "other mouth": face(mouth=9),
    "square": Image.new("RGB", (64, 64), (10, 90, 200)),
}


@pytest.fixture(scope="module")
def facts() -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Hashes, vectors and colour grids of the pictures, by the real extractors."""
    import imagehash

    from genai_assets.datasets.decoding import to_square
    from genai_assets.evaluation.features import PictureFeatures

    vectors = PictureFeatures(resolution=64).extract(np.stack([to_square(one, 64) for one in PICTURES.values()]))
    found = {name: str(imagehash.phash(image)) for name, image in PICTURES.items()}
    return found, vectors, np.stack([colour_grid(image) for image in PICTURES.values()])


def test_copies_are_joined_and_another_skin_or_mouth_is_not(facts) -> None:
    hashes, vectors, grids = facts
    names = list(PICTURES)
    asked: list[str] = []

    def read(ids):
        asked.extend(ids)
        return grids[[names.index(name) for name in ids]]

    pairs = near_pairs(hashes, (names, vectors), read, RULES)
    assert list(pairs.columns) == list(PAIR_COLUMNS)
    assert set(zip(pairs["id"], pairs["other"], strict=True)) == {
        ("jpeg", "plain"), ("jpeg", "smaller"), ("plain", "smaller"),
    }  # fmt: skip
    assert set(pairs["by"]) == {"perceptual"}
    assert (pairs["colour_difference"] <= RULES.max_colour_difference).all()
    assert "square" not in asked, "colours are read of candidates only"
    skin, mouth = (colour_differences(grids, np.array([0]), np.array([place]))[0] for place in (3, 4))
    assert min(skin, mouth) > 2 * RULES.max_colour_difference
    loose = RULES.model_copy(update={"max_colour_difference": 255.0})
    assert ("other skin", "plain") in set(
        near_pairs(hashes, (names, vectors), read, loose)[["id", "other"]].itertuples(index=False, name=None)
    ), "by hash and features alone it would be a copy"


def test_what_hashes_miss_features_find(facts) -> None:
    hashes, vectors, grids = facts
    names = list(PICTURES)
    hashes = hashes | {"jpeg": text(~int(hashes["jpeg"], 16) & (2**64 - 1))}
    pairs = near_pairs(hashes, (names, vectors), lambda ids: grids[[names.index(name) for name in ids]], RULES)
    by = {(one, other): kind for one, other, kind in pairs[["id", "other", "by"]].itertuples(index=False)}
    assert by["plain", "smaller"] == "perceptual"
    assert by["jpeg", "plain"] == "features"


def test_nothing_near_gives_empty_tables() -> None:
    pairs = near_pairs({}, ([], np.empty((0, 4))), lambda ids: np.empty((0, 16, 16, 3), np.uint8), RULES)
    assert len(pairs) == 0 and list(pairs.columns) == list(PAIR_COLUMNS)
    assert list(cluster(manifest(["a"]), pairs, "all").columns) == list(CLUSTER_COLUMNS)


def manifest(names: list[str], **more: list[object]) -> pd.DataFrame:
    records = [
        Record(
            id=identifier(name),
            caption=name,
            concept=name,
            style="fluent",
            source="folder:x",
            licence="MIT",
            width=64,
            height=64,
            added_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=place),
        ).model_copy(update={field: values[place] for field, values in more.items()})
        for place, name in enumerate(names)
    ]
    return to_frame(records)


def pairs_of(*named: tuple[str, str], by: str = "perceptual") -> pd.DataFrame:
    rows = [(*sorted((identifier(one), identifier(other))), by, 2.0, 0.01, 1.0) for one, other in named]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))


def test_stars_take_the_best_connected_first_and_each_member_once() -> None:
    first, second = np.array([0, 0, 0, 4, 5]), np.array([1, 2, 4, 5, 6])
    assert stars(8, first, second) == [[0, 1, 2, 4], [5, 6]]
    assert stars(3, np.empty(0, np.int64), np.empty(0, np.int64)) == []


@pytest.mark.parametrize(
    ("keep", "stays"),
    [("all", {"a", "b", "c"}), ("first", {"a"}), ("largest", {"c"}), ("real_before_synthetic", {"b"})],
)
def test_the_policy_says_which_one_stays(keep: str, stays: set[str]) -> None:
    rows = manifest(["a", "b", "c"], width=[64, 64, 128], synthetic=[True, False, False])
    table = cluster(rows, pairs_of(("a", "b"), ("a", "c"), ("b", "c")), keep)
    assert table["cluster"].nunique() == 1
    assert set(table.loc[table["kept"], "id"]) == {identifier(name) for name in stays}
    if keep != "all":
        assert sorted(table["preference"]) == [0, 1, 2]


def test_pictures_that_are_gone_are_in_no_cluster_and_shared_ones_are_told() -> None:
    rows = manifest(["a", "b", "shared", "shared"], caption=["a", "b", "one", "other"])
    table = cluster(rows, pairs_of(("a", "gone"), ("b", "gone")), "all")
    assert table[["id", "by"]].to_numpy().tolist() == [[identifier("shared"), "content"]]
    (group,) = cluster_groups(rows, table)
    assert [member.joined for member in group] == ["2 records share it"]


def test_the_artifact_holds_pairs_and_clusters_with_their_reasons(tmp_path: Path, facts) -> None:
    hashes, vectors, grids = facts
    names = list(PICTURES)
    ids = [identifier(name) for name in names]
    rows = manifest(names)
    summary = find_duplicates(
        rows,
        {identifier(name): value for name, value in hashes.items()},
        (ids, vectors),
        lambda asked: grids[[ids.index(one) for one in asked]],
        RULES,
        tmp_path,
    )
    assert summary == {
        "pictures": 6, "clusters": 1, "pictures_in_clusters": 3, "largest": 3, "shared_by_records": 0,
        "pairs": {"perceptual": 3, "features": 0}, "not_kept": 0, "keep": "all",
    }  # fmt: skip
    table = pd.read_parquet(tmp_path / "clusters.parquet")
    splits = rows[["id"]].assign(split="held_out")
    (group,) = cluster_groups(rows, table, splits)
    assert {member.caption for member in group} == {"plain", "jpeg", "smaller"}
    assert group[0].joined == "centre of the cluster" and group[1].joined.startswith("hash: ")
    assert {member.split for member in group} == {"held out"}
    assert len(pd.read_parquet(tmp_path / "pairs.parquet")) == 3
