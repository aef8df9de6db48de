"""Every claim about a manifest can fail, and its failure is told in the Data Docs."""

import hashlib
import re

import pandas as pd
import pytest

from genai_assets.datasets import records
from genai_assets.datasets.expectations import EXPECTATIONS, ValidationOutcome, run_suite
from genai_assets.settings import Settings


def manifest(size: int = 20) -> pd.DataFrame:
    """Good records in a known order."""
    return records.to_frame(
        records.Record(
            id=hashlib.sha256(str(number).encode()).hexdigest(),
            caption=f"thing {number}",
            concept=f"thing {number}",
            style="fluent",
            source="icons:test",
            licence="MIT",
            width=64,
            height=64,
        )
        for number in range(size)
    )


PLANTED: dict[str, tuple[int, str, object]] = {
    "ids_are_present": (1, "id", None),
    "ids_are_content_hashes": (2, "id", "../../etc/passwd"),
    "captions_are_present": (4, "caption", "  "),
    "captions_are_short_enough": (5, "caption", "a" * 301),
    "concepts_are_present": (6, "concept", ""),
    "styles_are_present": (7, "style", None),
    "licences_are_present": (8, "licence", " "),
    "licences_are_allowed": (9, "licence", "CC-BY-SA-4.0"),
    "widths_are_large_enough": (10, "width", 31),
    "heights_are_large_enough": (11, "height", 0),
    "sources_are_present": (12, "source", ""),
}
"""Claim to row, column and the value that breaks it; row 3 is a repeated record."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def good(settings: Settings) -> ValidationOutcome:
    frame = manifest()
    frame.loc[0, "licence"] = "mit"  # SPDX identifiers are compared without regard to case
    return run_suite(frame, settings, run_name="good")


@pytest.fixture(scope="module")
def planted(settings: Settings, good: ValidationOutcome) -> ValidationOutcome:
    frame = manifest()
    for row, column, value in PLANTED.values():
        frame.loc[row, column] = value
    frame.loc[3, ["id", "caption"]] = frame.loc[0, ["id", "caption"]]
    return run_suite(frame, settings, run_name="planted")


def test_a_good_manifest_meets_every_claim(good: ValidationOutcome) -> None:
    assert good.success
    assert [result.name for result in good.results] == [expectation.name for expectation in EXPECTATIONS]
    assert all(result.success and not result.unexpected_count for result in good.results)


@pytest.mark.parametrize("claim", PLANTED)
def test_a_planted_defect_breaks_its_claim_and_is_found_in_its_row(planted: ValidationOutcome, claim: str) -> None:
    (result,) = [result for result in planted.results if result.name == claim]
    row, _, value = PLANTED[claim]
    assert not result.success
    assert result.unexpected_rows == (row,)
    assert result.unexpected_count == 1
    assert 0 < result.unexpected_percent < 10
    assert result.sample == [None if value is None or str(value).strip() == "" else value]


def test_a_record_given_twice_is_not_distinct(planted: ValidationOutcome) -> None:
    (result,) = [result for result in planted.results if result.name == "records_are_distinct"]
    assert not result.success
    assert result.unexpected_rows == (0, 3)


def test_no_claim_is_left_without_a_planted_defect() -> None:
    about_the_table = {"manifest_has_records", "manifest_has_the_columns_of_a_record"}
    assert {*PLANTED, "records_are_distinct"} | about_the_table == {claim.name for claim in EXPECTATIONS}


def test_an_empty_manifest_breaks_the_claim_that_there_are_records(settings: Settings) -> None:
    outcome = run_suite(manifest(0), settings, run_name="empty")
    failed = [(result.name, result.severity) for result in outcome.results if not result.success]
    assert failed == [("manifest_has_records", "critical")]


def test_a_missing_column_breaks_the_claims_on_it_and_no_exception_escapes(settings: Settings) -> None:
    outcome = run_suite(manifest().drop(columns="caption"), settings, run_name="missing_column")
    failed = {result.name: result.sample for result in outcome.results if not result.success}
    assert failed.keys() >= {"manifest_has_the_columns_of_a_record", "captions_are_present"}
    assert "caption" in failed["captions_are_present"][0]


def test_the_data_docs_list_every_run_and_load_nothing_from_elsewhere(
    good: ValidationOutcome, planted: ValidationOutcome, settings: Settings
) -> None:
    again = run_suite(manifest(), settings, run_name="good")
    assert again.success
    index = again.data_docs.read_text()
    links = re.findall(r'href="(validations/[^"]+)">(good|planted)<', index)
    assert [name for _, name in links] == ["good", "planted", "good"], "newest first"
    assert "some claims fail" in index and "all claims hold" in index
    newest = (again.data_docs.parent / links[1][0]).read_text()
    assert "Every record has a caption that is not blank." in newest
    for page in again.data_docs.parent.rglob("*.html"):
        assert not re.search(r"<script|<(link|img)[^>]*https?://", page.read_text()), page


def test_the_run_is_silent(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    run_suite(manifest(2), settings, run_name="silent")
    assert capfd.readouterr() == ("", "")
