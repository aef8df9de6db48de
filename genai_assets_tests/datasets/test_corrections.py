"""Corrections: nothing is lost, everything can be taken back, and no record changes its concept."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_assets.datasets.corrections import (
    CAPTION_BY,
    CAPTION_ORIGINAL,
    AutoCaption,
    Correction,
    CorrectionLog,
    LogUnreadable,
    NoSuchCorrection,
    apply_captions,
    corrections_version,
)
from genai_assets.datasets.records import Record, from_frame, manifest_version, to_frame
from genai_assets.datasets.splits import concept_split
from genai_assets.settings import SplitSettings

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
IDS = [f"{number:x}" * 64 for number in range(1, 10)]


def record(number: int, caption: str, concept: str = "cup", **more: object) -> Record:
    fields = {"style": "plain", "source": "folder:x", "licence": "MIT", "width": 64, "height": 64, "added_at": NOON}
    return Record(id=IDS[number], caption=caption, concept=concept, provenance={"file": "x.png"}, **fields, **more)  # pyright: ignore[reportArgumentType]


def correction(number: int, original: str, caption: str, *, hours: float = 0, by: str = "7", shown: str | None = None):
    at = NOON + timedelta(hours=hours)
    return Correction(IDS[number], original, original if shown is None else shown, caption, by, at, task="12")


@pytest.fixture
def log(tmp_path: Path):
    with CorrectionLog(f"sqlite:///{tmp_path / 'corrections.sqlite'}") as log:
        yield log


def test_a_correction_replaces_the_caption_and_keeps_the_old_one_in_the_provenance(log):
    log.add([correction(1, "a cpu", "a cup")], import_digest="d")
    (changed,) = from_frame(apply_captions(to_frame([record(1, "a cpu")]), log.effective()))
    assert changed.caption == "a cup"
    assert changed.provenance == {"file": "x.png", CAPTION_ORIGINAL: "a cpu", CAPTION_BY: "annotator 7, 2026-05-04"}
    assert (changed.concept, changed.added_at) == ("cup", NOON)


def test_importing_the_same_again_changes_nothing(log):
    ones = [correction(1, "a", "b"), correction(2, "a", "c")]
    assert log.add(ones, import_digest="d").added == 2
    before, version = log.entries(), corrections_version(log.effective())
    again = log.add(ones, import_digest="other file, same corrections")
    assert (again.added, again.known, again.conflicts) == (0, 2, ())
    assert log.entries() == before
    assert corrections_version(log.effective()) == version


def test_the_one_made_last_counts_whatever_comes_first(log):
    newer, older = correction(1, "a", "newer", hours=2, by="8"), correction(1, "a", "older", hours=1)
    log.add([newer], import_digest="d")
    added = log.add([older], import_digest="e")
    assert [one.caption for one in log.effective().values()] == ["newer"]
    assert [(one.used, one.unused) for one in added.conflicts] == [(newer, older)]


def test_who_saw_a_correction_and_betters_it_is_no_conflict(log):
    log.add([correction(1, "a", "b")], import_digest="d")
    better = correction(1, "a", "c", hours=1, by="8", shown="b")
    assert log.add([better], import_digest="e").conflicts == ()
    assert [one.caption for one in log.effective().values()] == ["c"]


def test_two_people_who_did_not_see_each_others_caption_are_told(log):
    log.add([correction(1, "a", "b")], import_digest="d")
    conflicts = log.add([correction(1, "a", "c", hours=1, by="8")], import_digest="e").conflicts
    assert [(one.used.caption, one.unused.caption) for one in conflicts] == [("c", "b")]


def test_a_forgotten_correction_no_longer_counts_and_stays_forgotten_when_it_is_imported_again(log):
    ones = [correction(1, "a", "b"), correction(2, "a", "c")]
    log.add(ones, import_digest="d")
    assert log.forget(IDS[1][:8]) == (IDS[1], 1)
    assert [one.picture for one in log.effective().values()] == [IDS[2]]
    assert log.add(ones, import_digest="d").known == 2
    assert [one.picture for one in log.effective().values()] == [IDS[2]]
    assert len(log.entries()) == 3, "the log keeps what was forgotten"
    log.add([correction(1, "a", "anew", hours=9)], import_digest="e")
    assert [one.caption for one in log.effective().values() if one.picture == IDS[1]] == ["anew"]


@pytest.mark.parametrize(
    ("digits", "told"), [("1111", "too short"), ("9" * 64, "no correction"), ("2" * 63, "2 pictures")]
)
def test_what_cannot_be_forgotten_is_told(log, digits, told):
    other = Correction("2" * 63 + "3", "a", "a", "b", "7", NOON, "1")
    log.add([correction(1, "a", "b"), other], import_digest="d")
    with pytest.raises(NoSuchCorrection, match=told):
        log.forget(digits)
    assert len(log.effective()) == 2


def test_a_correction_of_a_picture_that_is_gone_is_kept_and_ignored_until_it_comes_back(log):
    log.add([correction(1, "a", "b")], import_digest="d")
    without = to_frame([record(2, "a")])
    assert apply_captions(without, log.effective()).equals(without)
    with_it = apply_captions(to_frame([record(1, "a"), record(2, "a")]), log.effective())
    assert sorted(with_it["caption"]) == ["a", "b"]


def test_a_caption_that_the_source_changed_since_counts_before_the_correction(log):
    log.add([correction(1, "a cpu", "a cup")], import_digest="d")
    manifest = to_frame([record(1, "a blue cup")])
    assert apply_captions(manifest, log.effective()).equals(manifest)


def test_only_the_record_with_that_caption_is_corrected_when_a_picture_has_two(log):
    log.add([correction(1, "a cpu", "a cup")], import_digest="d")
    changed = apply_captions(to_frame([record(1, "a cpu"), record(1, "mug")]), log.effective())
    assert changed["caption"].tolist() == ["a cup", "mug"]


def test_a_model_never_takes_the_place_of_a_given_caption_and_a_person_goes_before_a_model(log):
    log.add([correction(3, "", "by a person", shown="by a model")], import_digest="d")
    auto = {picture: AutoCaption("by a model", "tiny@abc") for picture in IDS}
    manifest = to_frame([record(1, "given"), record(2, "  ", concept=""), record(3, "")])
    changed = {one.id: one for one in from_frame(apply_captions(manifest, log.effective(), auto))}
    assert [changed[IDS[number]].caption for number in (1, 2, 3)] == ["given", "by a model", "by a person"]
    assert CAPTION_BY not in changed[IDS[1]].provenance
    assert changed[IDS[2]].provenance[CAPTION_BY] == "model tiny@abc"
    assert changed[IDS[2]].provenance[CAPTION_ORIGINAL] == "  "
    assert changed[IDS[2]].concept == f"picture {IDS[2][:16]}", "a concept of its own, whatever the model says"
    assert changed[IDS[3]].provenance[CAPTION_BY].startswith("annotator 7")


def test_an_annotators_address_is_whole_in_the_log_and_masked_in_the_manifest(log):
    log.add([correction(1, "a", "b", by="anna.smith@example.com")], import_digest="d")
    (changed,) = from_frame(apply_captions(to_frame([record(1, "a")]), log.effective()))
    assert changed.provenance[CAPTION_BY] == "annotator a…@e…, 2026-05-04"
    assert log.entries()[0].correction.by == "anna.smith@example.com"


captions = st.sampled_from(["", " ", "a", "b", "a red cup", "cafÃ©"])
histories = st.lists(
    st.tuples(st.integers(0, 8), captions, captions.filter(str.strip), st.integers(0, 5), st.sampled_from("xyz")),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), captions, st.sampled_from(["", "cup", "hat"])),
        max_size=9,
        unique_by=lambda one: one[:2],
    ),
    histories,
)
def test_no_history_of_corrections_moves_a_record_or_loses_its_caption(given_records, history):
    manifest = to_frame(record(number, caption, concept) for number, caption, concept in given_records)
    counting = {}
    for number, original, caption, hours, by in history:
        one = correction(number, original, caption, hours=hours, by=by)
        counting[one.picture, one.original] = one
    changed = apply_captions(manifest, counting)
    assert len(changed) == len(manifest)
    rules = SplitSettings()
    found = {(one.id, one.provenance.get(CAPTION_ORIGINAL, one.caption)): one for one in from_frame(changed)}
    for before in from_frame(manifest):
        after = found[before.id, before.caption]
        if before.concept:
            assert concept_split(after.concept, rules) == concept_split(before.concept, rules)
        assert before.model_dump(exclude={"caption", "concept", "provenance"}) == after.model_dump(
            exclude={"caption", "concept", "provenance"}
        )
    assert apply_captions(changed, counting).equals(changed), "done twice, it changes nothing more"
    assert manifest_version(apply_captions(manifest, {})) == manifest_version(manifest)


def test_a_damaged_log_is_no_empty_log_and_is_left_as_it_is(tmp_path):
    path = tmp_path / "corrections.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"damaged" * 300)
    before = path.read_bytes()
    with CorrectionLog(f"sqlite:///{path}") as log:
        with pytest.raises(LogUnreadable, match="only copy"):
            log.effective()
        with pytest.raises(LogUnreadable):
            log.add([correction(1, "a", "b")], import_digest="d")
    assert path.read_bytes() == before


def test_reading_a_log_that_is_not_there_creates_none(tmp_path):
    with CorrectionLog(f"sqlite:///{tmp_path / 'none' / 'corrections.sqlite'}") as log:
        assert log.effective() == {}
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_half_way_keeps_nothing_of_it(log, tmp_path):
    log.add([correction(1, "a", "b")], import_digest="d")
    with sqlite3.connect(tmp_path / "corrections.sqlite") as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON corrections WHEN NEW.picture = '" + IDS[3] + "' "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(LogUnreadable, match="disk full"):
        log.add([correction(2, "a", "c"), correction(3, "a", "d")], import_digest="e")
    assert [one.picture for one in log.effective().values()] == [IDS[1]]


def test_types_of_columns_stay_so_that_a_manifest_is_written_as_before():
    manifest = to_frame([record(1, "a", keywords=("x", "y")), record(2, "")])
    changed = apply_captions(manifest, {(IDS[1], "a"): correction(1, "a", "b")})
    pd.testing.assert_series_equal(changed.dtypes, manifest.dtypes)
    assert changed["keywords"].tolist() == [["x", "y"], []]
