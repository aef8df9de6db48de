"""A concept's split follows from its name alone; what cannot be used is refused with the way to mend it."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from genai_assets.datasets import records, release
from genai_assets.datasets.splits import assign_split, concept_position, concept_split, split
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
    other = SETTINGS.splits.model_copy(update={"key": "another"})
    moved = sum(concept_split(name, other) != before for name, before in zip(names, decided, strict=True))
    assert moved > 0.1 * len(names)


def test_the_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert concept_position("slice of pizza", "genai-splits-1") == 0.37898490535572804


def test_a_kept_back_category_is_later_in_the_house_style_only(tmp_path: Path) -> None:
    data = manifest([*many(60), *many(40, category=LATER), *many(40, "noto", LATER)])
    summary = split(data, SETTINGS, NONE_RELEASED, tmp_path)
    table = pd.read_parquet(tmp_path / "splits.parquet")
    assert list(table.columns) == ["id", "caption", "concept", "style", "category", "split"]
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
