"""Every claim about a manifest can fail, two engines agree on which do, and the failure is told in the Data Docs."""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from genai_assets.datasets import expectations, records
from genai_assets.datasets.expectations import (
    CAPTION_PROBLEMS,
    EXPECTATIONS,
    NEAR_DUPLICATE,
    Claim,
    ExpectationResult,
    ValidationOutcome,
    ask_great_expectations,
    claims_of,
    found_by,
    judge_claims,
    run_suite,
)
from genai_assets.settings import Settings

TODAY = datetime(2026, 3, 1, tzinfo=UTC)

OWN: list[dict[str, Any]] = [
    {"claim": "own_not_null", "column": "category", "not_null": True},
    {"claim": "own_unique", "column": "provenance", "unique": True},
    {"claim": "own_between", "column": "width", "between": [48, "inf"]},
    {"claim": "own_in_set", "column": "style", "in_set": ["fluent", "noto"]},
    {"claim": "own_not_in_set", "column": "concept", "not_in_set": ["secret project"]},
    {"claim": "own_matches", "column": "source", "matches": "^[a-z]+:", "severity": "critical"},
    {"claim": "no_brand_names", "column": "caption", "matches_not": "(?i)acme"},
    {"claim": "own_max_share", "column": "concept", "max_share": 0.3},
    {"claim": "own_function", "function": "our_rules:captions_name_a_colour"},
]


def manifest(size: int = 20) -> pd.DataFrame:
    """Good records in a known order, with the columns that are measured."""
    frame = records.to_frame(
        records.Record(
            id=hashlib.sha256(str(number).encode()).hexdigest(),
            caption=f"thing {number}",
            concept=f"thing {number}",
            style="fluent",
            source=f"icons:{'ab'[number % 2]}",
            licence="MIT",
            width=64,
            height=64,
            category=f"category {number % 2}",
            added_at=TODAY,
            provenance={"file": str(number)},
        )
        for number in range(size)
    )
    return with_measured_columns(frame)


def with_measured_columns(frame: pd.DataFrame) -> pd.DataFrame:
    found: dict[str, Any] = {found_by(name): None for name in (*CAPTION_PROBLEMS, "own_function")}
    return frame.assign(**found, **{NEAR_DUPLICATE: pd.array([False] * len(frame), dtype="boolean")})


def put(row: int, column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def planted(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return planted


def fill(rows: int, column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def planted(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[: rows - 1, column] = value
        return frame

    return planted


def repeat(row: int, of: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def planted(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, ["id", "caption"]] = frame.loc[of, ["id", "caption"]].to_numpy()
        return frame

    return planted


PLANTED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[int, ...] | None]] = {
    "manifest_has_records": (lambda frame: frame.iloc[:0], ()),
    "manifest_has_the_columns_of_a_record": (lambda frame: frame.assign(colour="red"), ()),
    "ids_are_present": (put(1, "id", None), (1,)),
    "ids_are_content_hashes": (put(2, "id", "../../etc/passwd"), (2,)),
    "records_are_distinct": (repeat(3, of=0), (0, 3)),
    "captions_are_present": (put(4, "caption", "  "), (4,)),
    "captions_are_short_enough": (put(5, "caption", "a" * 301), (5,)),
    "concepts_are_present": (put(6, "concept", ""), (6,)),
    "styles_are_present": (put(7, "style", None), (7,)),
    "licences_are_present": (put(8, "licence", " "), (8,)),
    "licences_are_allowed": (put(9, "licence", "CC-BY-SA-4.0"), (9,)),
    "opt_outs_are_honoured": (put(10, "opt_out", "noai sidecar"), (10,)),
    "widths_are_large_enough": (put(11, "width", 31), (11,)),
    "heights_are_large_enough": (put(12, "height", 0), (12,)),
    "aspects_are_moderate": (put(13, "width", 257), (13,)),
    "sources_are_present": (put(14, "source", ""), (14,)),
    **{
        name: (put(row, found_by(name), "mojibake: something"), (row,))
        for row, name in enumerate([*CAPTION_PROBLEMS, "own_function"])
    },
    "near_duplicates_are_few": (fill(6, NEAR_DUPLICATE, True), ()),
    "categories_are_balanced": (put(0, "category", "of its own"), ()),
    "no_source_dominates": (lambda frame: fill(1, "source", "icons:a")(fill(20, "source", "icons:b")(frame)), ()),
    "synthetic_records_are_few": (fill(7, "synthetic", True), ()),
    "records_are_fresh": (fill(20, "added_at", TODAY - timedelta(days=8)), ()),
    "own_not_null": (put(15, "category", None), (15,)),
    "own_unique": (put(16, "provenance", '{"file": "17"}'), None),  # whichever record that is, and this one
    "own_between": (put(17, "width", 47), (17,)),
    "own_in_set": (put(18, "style", "twemoji"), (18,)),
    "own_not_in_set": (put(19, "concept", "secret project"), (19,)),
    "own_matches": (put(15, "source", "somewhere"), (15,)),
    "no_brand_names": (put(16, "caption", "the Acme logo"), (16,)),
    "own_max_share": (fill(7, "concept", "the same thing"), ()),
}
"""Claim to what breaks it, and in which rows; no row for a claim about the table."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    readiness = {"max_age_days": 7, "max_class_imbalance": 9, "expectations": OWN}
    return Settings.model_validate({"home": tmp_path_factory.mktemp("home"), "readiness": readiness})


@pytest.fixture(scope="module")
def claims(settings: Settings) -> tuple[Claim, ...]:
    return claims_of(settings, today=TODAY)


def failures(results: tuple[ExpectationResult, ...]) -> dict[str, tuple[int, ...]]:
    return {result.name: result.unexpected_rows for result in results if not result.success}


@pytest.fixture(scope="module")
def good(settings: Settings, claims: tuple[Claim, ...]) -> ValidationOutcome:
    frame = manifest()
    frame.loc[0, "licence"] = "mit"  # SPDX identifiers are compared without regard to case
    assert not failures(judge_claims(frame, claims))
    return run_suite(frame, claims, settings, run_name="good")


def all_defects(*, about_rows: bool, size: int = 20) -> pd.DataFrame:
    """Every planted defect of single records in one manifest, or every one of the table as a whole."""
    frame = manifest(size)
    for name, (plant, rows) in PLANTED.items():
        if (rows != ()) == about_rows and name != "manifest_has_records":
            frame = plant(frame)
    return frame


def test_a_good_manifest_meets_every_claim(good: ValidationOutcome, claims: tuple[Claim, ...]) -> None:
    assert good.success
    assert [result.name for result in good.results] == [claim.name for claim in claims]
    assert all(result.success and not result.unexpected_count and not result.off for result in good.results)


def test_no_claim_is_left_without_a_planted_defect(claims: tuple[Claim, ...]) -> None:
    assert PLANTED.keys() == {claim.name for claim in claims}
    assert {claim.name for claim in claims} >= {expectation.name for expectation in EXPECTATIONS}
    assert all(claim.rule for claim in claims), "none is off in these settings"


@pytest.mark.parametrize("claim", PLANTED)
def test_a_planted_defect_breaks_its_claim_and_is_found_in_its_row(claims: tuple[Claim, ...], claim: str) -> None:
    plant, rows = PLANTED[claim]
    (result,) = [result for result in judge_claims(plant(manifest()), claims) if result.name == claim]
    assert not result.success
    assert len(result.unexpected_rows) == 2 if rows is None else result.unexpected_rows == rows
    assert result.unexpected_count == max(len(result.unexpected_rows), 1)
    assert result.sample


@pytest.mark.parametrize("about_rows", [True, False])
def test_both_engines_find_the_same_planted_defects_in_the_same_rows(
    settings: Settings, claims: tuple[Claim, ...], about_rows: bool
) -> None:
    frame = all_defects(about_rows=about_rows)
    ours = judge_claims(frame, claims)
    theirs = ask_great_expectations(frame, claims)
    assert failures(ours) == failures(theirs)
    expected = {name for name, (_, rows) in PLANTED.items() if (rows != ()) == about_rows}
    assert failures(ours).keys() >= expected - {"manifest_has_records"}
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.unexpected_count, mine.severity) == (other.unexpected_count, other.severity), mine.name
        assert mine.unexpected_percent == pytest.approx(other.unexpected_percent), mine.name


def test_an_empty_manifest_fails_in_both_engines(settings: Settings, claims: tuple[Claim, ...]) -> None:
    empty = manifest(0)
    ours = failures(judge_claims(empty, claims))
    assert ours == failures(ask_great_expectations(empty, claims))
    assert ours.keys() == {"manifest_has_records", "records_are_fresh"}


def test_a_missing_column_breaks_the_claims_on_it_and_no_exception_escapes(
    settings: Settings, claims: tuple[Claim, ...]
) -> None:
    frame = manifest().drop(columns=["caption", "category"])
    ours = judge_claims(frame, claims)
    theirs = ask_great_expectations(frame, claims)
    expected = {"manifest_has_the_columns_of_a_record", "captions_are_present", "records_are_distinct"}
    assert failures(ours).keys() == failures(theirs).keys() >= expected | {"categories_are_balanced", "no_brand_names"}
    for results in (ours, theirs):
        (said,) = [result.sample[0] for result in results if result.name == "captions_are_present"]
        assert "caption" in said


TEXTS = st.sampled_from(["", " ", "\x1c", "acme", "MIT", "mit ", "Apache-2.0", "GPL", "a\n", "é" * 31, None, "x"])
ROWS = st.fixed_dictionaries(
    {
        "id": st.sampled_from([*(letter * 64 for letter in "abc"), "a" * 64 + "\n", "A" * 64, "", None]),
        "caption": TEXTS,
        "concept": TEXTS,
        "source": TEXTS,
        "licence": TEXTS,
        "category": TEXTS,
        "opt_out": TEXTS,
        "width": st.sampled_from([0, 1, 31, 32, 33, 128, 129, 10_000]),
        "height": st.sampled_from([0, 31, 32, 33]),
        "synthetic": st.booleans(),
        NEAR_DUPLICATE: st.sampled_from([True, False, None]),
    }
)


@given(rows=st.lists(ROWS, min_size=1, max_size=12))
@hypothesis_settings(max_examples=10, deadline=None, derandomize=True)
def test_both_engines_agree_on_any_manifest(claims: tuple[Claim, ...], rows: list[dict[str, Any]]) -> None:
    frame = manifest(len(rows))
    for column in rows[0]:
        values = [row[column] for row in rows]
        frame[column] = pd.array(values, dtype="boolean") if column == NEAR_DUPLICATE else values
    assert failures(judge_claims(frame, claims)) == failures(ask_great_expectations(frame, claims))


def test_of_a_large_manifest_the_data_docs_show_a_sample_with_every_failure_in_it(
    settings: Settings, claims: tuple[Claim, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "WHOLE_UP_TO", 100)
    monkeypatch.setattr(expectations, "SAMPLED", 50)
    frame = all_defects(about_rows=True, size=500)
    found = judge_claims(frame, claims)
    outcome = run_suite(frame, claims, settings, run_name="large", results=found)
    assert outcome.looked_at.split(" of ")[1].startswith("500 records")
    assert failures(outcome.results).keys() == failures(found).keys()
    assert set(failures(outcome.results)["records_are_distinct"]) == {0, 3}, "rows of the whole, not of the sample"
    again = run_suite(frame, claims, settings, run_name="large", results=found)
    assert again.results == outcome.results, "the same sample"
    page = max((outcome.data_docs.parent / "validations").rglob("*.html"), key=lambda path: path.stat().st_mtime)
    assert "of 500 records: a sample" in page.read_text()


def test_a_claim_that_is_off_says_how_to_turn_it_on(settings: Settings, tmp_path: Any) -> None:
    usual = Settings.model_validate({"home": tmp_path, "governance": {"honour_opt_outs": False}})
    off = {claim.name: claim.off for claim in claims_of(usual) if not claim.rule}
    assert off == {
        "opt_outs_are_honoured": "governance.honour_opt_outs is false",
        "records_are_fresh": "readiness.max_age_days is not set",
    }
    frame = manifest().drop(columns=found_by("own_function"))
    results = {result.name: result for result in judge_claims(frame, claims_of(usual))}
    assert results["records_are_fresh"].off and results["records_are_fresh"].success
    assert not any(result.off for name, result in results.items() if name not in off)


def test_one_source_alone_cannot_dominate(claims: tuple[Claim, ...]) -> None:
    frame = manifest().assign(source="folder:pictures")
    assert "no_source_dominates" not in failures(judge_claims(frame, claims))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"claim": "ids_are_present", "column": "id", "not_null": True}, "is a built-in claim"),
        ({"claim": "look_behind", "column": "caption", "matches": "(?<!a)b"}, "write a Python function"),
    ],
)
def test_an_expectation_that_cannot_be_used_is_refused_by_its_name(tmp_path: Any, own: dict, said: str) -> None:
    stated = Settings.model_validate({"home": tmp_path, "readiness": {"expectations": [own]}})
    with pytest.raises(ValueError, match=said) as refused:
        claims_of(stated)
    assert own["claim"] in str(refused.value)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"claim": "two", "column": "id", "not_null": True, "unique": True}, "exactly one rule, not not_null, unique"),
        ({"claim": "none", "column": "id"}, "exactly one rule, not none"),
        ({"claim": "where", "unique": True}, "needs a column"),
        ({"claim": "both", "column": "id", "function": "a:b"}, "needs no column"),
        ({"claim": "turned", "column": "width", "between": [3, 2]}, "from the least to the largest"),
        ({"claim": "pattern", "column": "id", "matches": "("}, "no regular expression"),
        ({"claim": "Bad name", "column": "id", "unique": True}, "claim"),
    ],
)
def test_settings_refuse_an_expectation_that_says_nothing_clear(tmp_path: Any, own: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.model_validate({"home": tmp_path, "readiness": {"expectations": [own]}})


def test_the_data_docs_list_every_run_and_load_nothing_from_elsewhere(
    good: ValidationOutcome, claims: tuple[Claim, ...], settings: Settings
) -> None:
    again = run_suite(manifest(), claims, settings, run_name="good")
    assert again.success
    index = again.data_docs.read_text()
    links = re.findall(r'href="(validations/[^"]+)">good<', index)
    assert len(links) == 2, "newest first"
    assert "all claims hold" in index
    newest = (again.data_docs.parent / links[0]).read_text()
    assert "Every record has a caption that is not blank." in newest
    assert "looked at all 20 records" in newest
    assert "own not null." in newest, "the team's own claims are in the Data Docs, too"
    for page in again.data_docs.parent.rglob("*.html"):
        assert not re.search(r"<script|<(link|img)[^>]*https?://", page.read_text()), page


def test_the_run_is_silent(settings: Settings, claims: tuple[Claim, ...], capfd: pytest.CaptureFixture[str]) -> None:
    run_suite(manifest(2), claims, settings, run_name="silent")
    assert capfd.readouterr() == ("", "")
