"""A concept's split follows from its name alone, whatever comes and goes; nothing leaks from one split into another."""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from genai_assets.datasets import records, release
from genai_assets.datasets.duplicates import PAIR_COLUMNS, cluster
from genai_assets.datasets.leakage import find_leaks
from genai_assets.datasets.splits import (
    PARTED,
    VARIANT_WEIGHT,
    assign,
    assign_split,
    class_weights,
    concept_position,
    concept_split,
    split,
    training_rows,
)
from genai_assets.diffusion.batches import picture_chances
from genai_assets.settings import Settings

SETTINGS = Settings()
LATER = "animals-nature"
NONE_RELEASED: frozenset[str] = frozenset()


def manifest(names: list[tuple[str, str, str]]) -> pd.DataFrame:
    """A manifest of (concept, style, category)."""
    return records.to_frame(
        records.Record(
            id=hashlib.sha256(f"{concept}/{style}".encode()).hexdigest(),
            caption=concept,
            concept=concept,
            style=style,
            category=category,
            source="icons:test",
            licence="MIT",
            width=64,
            height=64,
        )
        for concept, style, category in names
    )


def many(number: int, style: str = "fluent", category: str = "objects") -> list[tuple[str, str, str]]:
    return [(f"{category} {index}", style, category) for index in range(number)]


concepts = st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=30)


@hypothesis_settings(deadline=None)
@given(earlier=concepts, arriving=concepts, category=st.sampled_from(["objects", LATER, ""]))
def test_a_record_never_moves_as_data_grows(earlier: list[str], arriving: list[str], category: str) -> None:
    def table(names: list[str]) -> dict[str, str]:
        return {name: assign_split(name, category, SETTINGS.splits, NONE_RELEASED) for name in names}

    grown = table([*arriving, *earlier])
    assert table(earlier).items() <= grown.items()


@hypothesis_settings(deadline=None)
@given(concept=st.text(max_size=40), key=st.text(max_size=200))
def test_the_position_is_a_fraction_and_ignores_case_and_blanks(concept: str, key: str) -> None:
    position = concept_position(concept, key)
    assert 0 <= position < 1
    assert concept_position(f"  {concept}\n", key) == position


def test_spellings_of_one_concept_share_a_split() -> None:
    assert concept_position("Café", "k") == concept_position("cafe\u0301", "k") == concept_position("CAFÉ ", "k")


def test_the_shares_are_met_and_another_key_is_another_split() -> None:
    names = [f"concept {number}" for number in range(20_000)]
    decided = [concept_split(name, SETTINGS.splits) for name in names]
    assert decided.count("held_out") / len(names) == pytest.approx(SETTINGS.splits.held_out_share, abs=0.01)
    assert decided.count("validation") / len(names) == pytest.approx(SETTINGS.splits.validation_share, abs=0.01)
    assert decided.count("test") / len(names) == pytest.approx(SETTINGS.splits.test_share, abs=0.01)
    other = SETTINGS.splits.model_copy(update={"key": "another"})
    moved = sum(concept_split(name, other) != before for name, before in zip(names, decided, strict=True))
    assert moved > 0.1 * len(names)


def test_the_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert concept_position("slice of pizza", "genai-splits-1") == 0.37898490535572804


def test_a_kept_back_category_is_later_in_the_house_style_only(tmp_path: Path) -> None:
    data = manifest([*many(60), *many(40, category=LATER), *many(40, "noto", LATER)])
    summary = split(data, SETTINGS, NONE_RELEASED, tmp_path)
    table = pd.read_parquet(tmp_path / "splits.parquet")
    assert list(table.columns)[:6] == ["id", "caption", "concept", "style", "category", "split"]
    assert sorted(table["id"]) == sorted(data["id"])
    later = table["split"] == "later"
    assert set(zip(table.loc[later, "style"], table.loc[later, "category"], strict=True)) == {("fluent", LATER)}
    assert summary["records"]["later"] == later.sum() == 40
    assert summary["other_records"]["later"] == 0
    assert summary["later_categories"] == [LATER]


def test_a_released_category_goes_where_its_hash_says_and_the_others_stay(tmp_path: Path) -> None:
    data = manifest([*many(60), *many(40, category=LATER), *many(40, "noto", LATER)])
    tables = []
    for released in (NONE_RELEASED, frozenset({LATER})):
        split(data, SETTINGS, released, tmp_path)
        tables.append(pd.read_parquet(tmp_path / "splits.parquet"))
    before, after = tables
    stayed = before["split"] != "later"
    assert (before.loc[stayed, "split"] == after.loc[stayed, "split"]).all()
    assert (after.groupby("concept")["split"].nunique() == 1).all(), "all styles of a concept share its split"


def test_no_record_of_the_house_style_names_the_styles_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"house style 'fluent'; the styles present are: noto, twemoji\..*house_style"):
        split(manifest([*many(5, "noto"), *many(5, "twemoji")]), SETTINGS, NONE_RELEASED, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_left_to_train_on_names_what_to_release(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"left to train on .*release a category that is kept back \({LATER}\)"):
        split(manifest(many(20, category=LATER)), SETTINGS, NONE_RELEASED, tmp_path)


def test_no_concept_held_out_tells_how_to_mend_it(tmp_path: Path) -> None:
    trained = [name for name in many(50) if concept_split(name[0], SETTINGS.splits) == "train"]
    with pytest.raises(ValueError, match=r"nothing could be evaluated.*raise splits\.held_out_share"):
        split(manifest(trained), SETTINGS, NONE_RELEASED, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_release_lasts_and_an_unknown_category_is_refused(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "splits": {"later_categories": [LATER, "flags"]}})
    assert release.released_categories(settings.paths) == frozenset()
    assert release.release_category(settings.paths, LATER, settings) == {LATER}
    assert release.release_category(settings.paths, LATER, settings) == {LATER}
    assert release.released_categories(Settings(home=tmp_path).paths) == {LATER}
    with pytest.raises(ValueError, match=r"'animals' is not .* kept back; those kept back are: flags"):
        release.release_category(settings.paths, "animals", settings)


@pytest.mark.parametrize("text", ["", '{"released": "animals-nature"}', "[]", '{"released": [1]}', "{}"])
def test_a_damaged_list_of_releases_is_not_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "released.json").write_text(text)
    with pytest.raises(ValueError, match=r"released\.json is damaged"):
        release.released_categories(Settings(home=tmp_path).paths)


def test_the_test_split_is_taken_from_training_alone() -> None:
    names = [f"concept {number}" for number in range(3000)]
    before = SETTINGS.splits.model_copy(update={"test_share": 0.0})
    moved = [
        (concept_split(name, before), concept_split(name, SETTINGS.splits))
        for name in names
        if concept_split(name, before) != concept_split(name, SETTINGS.splits)
    ]
    assert set(moved) == {("train", "test")}


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.2; they must leave something to train on"):
        Settings.model_validate({"splits": {"held_out_share": 0.4, "validation_share": 0.4, "test_share": 0.4}})


# Histories of growth.


@dataclass(frozen=True)
class Grown:
    """A record of a history; two with the same number are the same picture."""

    number: int
    concept: str
    caption: str
    style: str
    category: str
    source: str
    synthetic: bool


def in_split(wanted: str, count: int) -> list[str]:
    names = (f"thing {number}" for number in range(10_000))
    return list(islice((name for name in names if concept_split(name, SETTINGS.splits) == wanted), count))


CONCEPTS = [name for wanted in PARTED for name in in_split(wanted, 3)]
RECORDS = st.builds(
    Grown,
    number=st.integers(0, 11),
    concept=st.sampled_from(CONCEPTS),
    caption=st.sampled_from(["a", "A ", "b", *CONCEPTS]),
    style=st.sampled_from(["fluent", "noto"]),
    category=st.sampled_from([LATER, "objects"]),
    source=st.sampled_from(["folder:x", "folder:x", "feedback"]),
    synthetic=st.sampled_from([False, False, True]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(RECORDS, min_size=1, max_size=6)),
        st.tuples(st.just("remove"), st.sets(st.integers(0, 11), min_size=1, max_size=4)),
        st.tuples(st.just("near"), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=6)),
        st.tuples(st.just("release"), st.none()),
        st.tuples(st.just("keep"), st.sampled_from(["all", "first", "largest", "real_before_synthetic"])),
    ),
    min_size=2,
    max_size=8,
)


def identifier(number: int) -> str:
    return f"{number:064x}"


def frame(living: list[Grown]) -> pd.DataFrame:
    """A manifest of records; quicker than to make Records of them."""
    return pd.DataFrame(
        {
            "id": [identifier(grown.number) for grown in living],
            **{
                name: [getattr(grown, name) for grown in living] for name in ("caption", "concept", "style", "category")
            },
            "source": [grown.source for grown in living],
            "synthetic": [grown.synthetic for grown in living],
            "variant": False,
            "width": [64 + grown.number for grown in living],
            "height": 64,
            "added_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
    )


def near(numbers: list[tuple[int, int]]) -> pd.DataFrame:
    """Pairs of near duplicates."""
    both = sorted({tuple(sorted((identifier(one), identifier(other)))) for one, other in numbers if one != other})
    rows = [(one, other, "perceptual", 1.0, np.nan, 1.0) for one, other in both]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))


def grow(steps: list[tuple[str, object]]) -> None:
    """Live through a history, and claim after every step what is promised."""
    living: dict[tuple[object, ...], Grown] = {}
    pairs, released, settings = near([]), NONE_RELEASED, SETTINGS
    seen: dict[tuple[object, ...], set[str]] = {}
    for what, value in steps:
        if what == "add":
            living |= {(one.number, one.caption, one.concept, one.style): one for one in value}  # type: ignore[union-attr]
            # One picture of one caption is one record, as validation has it.
            living = {(one.number, one.caption): one for one in living.values()}  # type: ignore[misc]
        elif what == "remove":
            living = {key: one for key, one in living.items() if one.number not in value}  # type: ignore[operator]
        elif what == "near":
            pairs = near(value)  # type: ignore[arg-type]
        elif what == "release":
            released = frozenset({LATER})
        else:
            settings = settings.model_copy(update={"curation": settings.curation.model_copy(update={"keep": value})})
        if not living:
            continue
        manifest = frame(list(living.values()))
        clusters = cluster(manifest, pairs, settings.curation.keep)
        table = assign(manifest, settings, released, clusters, pairs)
        assert len(table) == len(manifest)
        assert not find_leaks(table, clusters, pairs)
        aside = table["split"] == "set_aside"
        assert (aside == (table["reason"] != "")).all(), "whoever is set aside is told why, and nobody else"
        told = table.merge(manifest, on=["id", "caption", "concept", "style", "category"])
        for row in told.itertuples():
            assert row.split in (row.own_split, "set_aside")
            if row.own_split == "test" and not row.synthetic:
                assert row.split == "test", "a test picture stays where it is"
            if row.synthetic or row.source == "feedback":
                assert row.split in ("train", "set_aside"), "what a model drew is never tested with"
            record = (row.id, row.caption, row.concept, row.style, row.category, row.source, row.synthetic)
            been = seen.setdefault(record, set())
            been |= {str(row.split)} & set(PARTED)
            assert len(been) <= 1, f"{record} was in {been}"


@hypothesis_settings(deadline=None, max_examples=60)
@given(STEPS)
def test_no_record_ever_moves_from_one_split_to_another_and_nothing_leaks(steps: list[tuple[str, object]]) -> None:
    grow(steps)


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=2000)
@given(STEPS)
def test_no_record_ever_moves_in_thousands_of_histories(steps: list[tuple[str, object]]) -> None:
    grow(steps)


def of(concept: str, number: int, **more: object) -> Grown:
    grown = Grown(number, concept, f"picture {number}", "fluent", "objects", "folder:x", False)
    return replace(grown, **more)  # type: ignore[arg-type]


TRAIN, VALIDATION, HELD_OUT, TEST = (in_split(wanted, 1)[0] for wanted in PARTED)


def splits_of(living: list[Grown], pairs: pd.DataFrame, keep: str = "all") -> dict[int, tuple[str, str]]:
    settings = Settings.model_validate({"curation": {"keep": keep}})
    manifest = frame(living)
    table = assign(manifest, settings, NONE_RELEASED, cluster(manifest, pairs, keep), pairs)
    rows = zip(table["id"], table["split"], table["reason"], strict=True)
    return {int(picture, 16): (split, reason) for picture, split, reason in rows}


def test_of_near_duplicates_the_training_side_is_set_aside_and_comes_back() -> None:
    living = [of(TRAIN, 1), of(TEST, 2), of(HELD_OUT, 3), of(TRAIN, 4)]
    assert splits_of(living, near([(1, 2), (2, 3)])) == {
        1: ("set_aside", "a near duplicate is in test"),
        2: ("test", ""),
        3: ("set_aside", "a near duplicate is in test"),
        4: ("train", ""),
    }
    without = [one for one in living if one.number != 2]
    assert {split for split, _ in splits_of(without, near([(1, 2), (2, 3)])).values()} == {"train", "held_out"}


def test_a_pair_that_no_cluster_joined_does_not_leak_either() -> None:
    # 5 has most partners, so it takes 6 to 9; 1 is then nobody's, but is as near to 9 as before.
    pairs = near([(5, 6), (5, 7), (5, 8), (5, 9), (9, 1)])
    living = [of(TRAIN, 5), *(of(TRAIN, number) for number in (6, 7, 8, 9)), of(VALIDATION, 1)]
    assert set(cluster(frame(living), pairs, "all")["id"]) == {identifier(number) for number in range(5, 10)}
    found = splits_of(living, pairs)
    assert found[9] == ("set_aside", "a near duplicate is in validation")
    assert found[5] == ("train", "")


def test_the_same_caption_of_another_concept_is_set_aside_in_its_style_only() -> None:
    living = [
        of(TRAIN, 1, caption="Bank "),
        of(HELD_OUT, 2, caption="bank"),
        of(TRAIN, 3, caption="bank", style="noto"),
    ]
    found = splits_of(living, near([]))
    assert found[1] == ("set_aside", "the same caption in this style is in held out")
    assert (found[2][0], found[3][0]) == ("held_out", "train")


@pytest.mark.parametrize(("keep", "stays"), [("first", 4), ("largest", 5), ("real_before_synthetic", 5)])
def test_a_policy_leaves_one_training_picture_of_a_cluster_and_style(keep: str, stays: int) -> None:
    # Pictures 4 to 6 are of one cluster; 6 is of another style. Picture 5 is the larger one, 4 is drawn.
    living = [of(TRAIN, 4, synthetic=True), of(TRAIN, 5), of(TRAIN, 6, style="noto")]
    pairs = near([(4, 5), (4, 6), (5, 6)])
    assert {split for split, _ in splits_of(living, pairs).values()} == {"train"}
    found = splits_of(living, pairs, keep)
    assert {number for number, (split, _) in found.items() if split == "train"} == {stays, 6}
    assert found[9 - stays][1] == f"a near duplicate stays (curation.keep is {keep})"


def test_a_policy_never_drops_what_is_tested_with() -> None:
    living = [of(TEST, 1), of(TEST, 2), of(TRAIN, 3)]
    found = splits_of(living, near([(1, 2), (1, 3), (2, 3)]), "first")
    assert [found[number][0] for number in (1, 2, 3)] == ["test", "test", "set_aside"]


@pytest.mark.parametrize("field", ["source", "synthetic"])
def test_what_a_model_drew_of_an_unseen_concept_is_set_aside(field: str) -> None:
    drawn = {"source": "feedback"} if field == "source" else {"synthetic": True}
    living = [
        of(HELD_OUT, 1), of(HELD_OUT, 2, **drawn), of(TRAIN, 3, **drawn), of(TEST, 4, **drawn),
        of(TRAIN, 5, category=LATER), of(in_split("train", 2)[1], 6, caption="picture 5", **drawn),
    ]  # fmt: skip
    found = splits_of(living, near([]))
    assert found[2] == ("set_aside", "a model drew it, and its concept is in held out")
    assert found[3][0] == "set_aside", "its concept is kept back until later"
    assert found[4] == ("train", ""), "no real picture of the concept is there to be given away"
    assert found[6] == ("set_aside", "a model drew it, and its caption is in later")


@pytest.mark.parametrize(("real", "drawn"), [("bank", "Bank, Fluent style."), ("bank, fluent style", "bank")])
def test_what_a_model_drew_is_set_aside_whichever_of_the_two_captions_names_the_style(real: str, drawn: str) -> None:
    living = [of(HELD_OUT, 1, caption=real), of(TRAIN, 2, caption=drawn, source="feedback")]
    table = assign(frame(living), SETTINGS, NONE_RELEASED)
    reasons = dict(zip(table["id"], table["reason"], strict=True))
    assert reasons[identifier(2)] == "a model drew it, and its caption is in held out"


# The claim that nothing leaks, with a planted defect of each kind.


def sound() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    living = [of(TRAIN, 1), of(VALIDATION, 2), of(HELD_OUT, 3), of(TEST, 4), of(TRAIN, 5), of(TRAIN, 6)]
    manifest, pairs = frame(living), near([(1, 5)])
    clusters = cluster(manifest, pairs, "all")
    return assign(manifest, SETTINGS, NONE_RELEASED, clusters, pairs), clusters, pairs


@pytest.mark.parametrize("kind", ["picture", "concept", "caption", "near duplicate", "near pair"])
@pytest.mark.parametrize("other", ["validation", "held_out", "test"])
def test_a_planted_leak_is_found(kind: str, other: str) -> None:
    table, clusters, pairs = sound()
    assert find_leaks(table, clusters, pairs) == []
    trained, looked_at = table.index[table["id"] == identifier(6)][0], table.index[table["split"] == other][0]
    if kind == "near duplicate":
        row = {"id": table.at[looked_at, "id"], "cluster": clusters["cluster"].iloc[0]}
        clusters = pd.concat([clusters, pd.DataFrame([row])])
    elif kind == "near pair":
        row = {"id": table.at[trained, "id"], "other": table.at[looked_at, "id"]}
        pairs = pd.concat([pairs, pd.DataFrame([row])])
    else:
        column = "id" if kind == "picture" else kind
        value = str(table.at[trained, column])
        table.at[looked_at, column] = value if kind == "picture" else f" {value.upper()}"
    (leak,) = find_leaks(table, clusters, pairs)
    assert leak.kind == ("near duplicate" if kind == "near pair" else kind)
    assert leak.splits == tuple(sorted(("train", other)))
    assert f"is in {' and '.join(leak.splits)}" in str(leak)


def test_what_is_set_aside_or_comes_later_does_not_leak() -> None:
    table, clusters, pairs = sound()
    for elsewhere in ("set_aside", "later"):
        twin = table[table["split"] == "test"].assign(split=elsewhere)
        assert find_leaks(pd.concat([table, twin]), clusters, pairs) == []


# Shares and weights.


def test_a_category_whose_shares_are_far_off_is_named(tmp_path: Path) -> None:
    trained = [name for name in many(400, category="odd") if concept_split(name[0], SETTINGS.splits) == "train"]
    few = [(name, "fluent", "few") for name in in_split("train", 15)]
    shares = split(manifest([*many(100), *trained, *few]), SETTINGS, NONE_RELEASED, tmp_path)["shares"]
    assert shares["odd"]["far_off"] == ["validation", "held_out", "test"]
    assert shares["objects"]["far_off"] == []
    assert (shares["few"]["concepts"], shares["few"]["far_off"]) == (15, []), "too few to say"


def test_the_weights_written_are_those_that_batches_are_drawn_with(tmp_path: Path) -> None:
    data = manifest([*many(90), *many(30, category="food"), *many(12, category="signs")])
    data.loc[data["category"] == "food", "variant"] = [number % 3 == 0 for number in range(30)]
    split(data, SETTINGS, NONE_RELEASED, tmp_path)
    weights = pd.read_parquet(tmp_path / "class_weights.parquet").set_index("category")
    rows = training_rows(data, pd.read_parquet(tmp_path / "splits.parquet"), SETTINGS)
    rows = rows[rows["split"] == "train"]
    pd.testing.assert_frame_equal(weights.reset_index(), class_weights(rows))
    assert (weights["share"] * weights["weight"]).sum() == pytest.approx(1)

    cached = rows.assign(weight=np.where(rows["variant"], VARIANT_WEIGHT, 1.0))
    for balance in (0.0, 0.5, 1.0):
        drawn = pd.Series(picture_chances(cached, balance)).groupby(cached["category"].to_numpy()).sum()
        expected = weights["share"] * weights["weight"] ** balance
        pd.testing.assert_series_equal(drawn, expected / expected.sum(), check_names=False)
