"""Bad records are set aside with their reason, the rest goes on, and what remains is tested."""

import importlib
import io
import json
import linecache
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from genai_assets.datasets import records
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record
from genai_assets.datasets.validation import CHECKS, Intake, rules_of, validate
from genai_assets.settings import ReadinessSettings, Settings


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drawing(number: int, width: int = 48, height: int = 48) -> bytes:
    """A picture of its own: noise from a seed."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


def hairline() -> bytes:
    image = Image.new("RGB", (256, 256), "white")
    image.paste((0, 0, 0), (128, 20, 129, 236))
    return png(image)


def speck() -> bytes:
    image = Image.new("RGB", (256, 256), "white")
    image.putpixel((100, 100), (0, 0, 0))
    return png(image)


def record(picture: str, caption: str, size: tuple[int, int] = (48, 48), **changes: Any) -> Record:
    fields = {"concept": caption, "style": "fluent", "source": "icons:test", "licence": "MIT"}
    times = {"added_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return Record(
        **{"id": picture, "caption": caption, "width": size[0], "height": size[1], **fields, **times, **changes}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(home: Path) -> Settings:
    return Settings.model_validate({"home": home, "dataset": {"max_pixels": 80_000}})


@pytest.fixture(scope="module")
def store(settings: Settings) -> PictureStore:
    return PictureStore(settings.paths.pictures)


@pytest.fixture(scope="module")
def mixed(store: PictureStore) -> pd.DataFrame:
    """Twelve good records and one of every kind of bad one."""
    good = [record(store.put(drawing(number)), f"good {number}") for number in range(11)]
    good.append(record(store.put(hairline()), "hairline", (256, 256)))
    changed = store.put(drawing(100))
    store.path(changed).write_bytes(drawing(101))
    later = datetime(2026, 2, 1, tzinfo=UTC)
    bad = [
        record(store.put(drawing(102)[:-200]), "truncated"),
        record(store.put(b"<html>not found</html>"), "not a picture", (0, 0)),
        record("0" * 64, "missing"),
        record(changed, "changed"),
        record(store.put(png(Image.new("RGB", (48, 48), "white"))), "blank"),
        record(store.put(speck()), "speck", (256, 256)),
        record(store.put(drawing(103, 160, 38)), "long", (160, 38)),
        record(store.put(drawing(104, 300, 300)), "huge", (300, 300)),
        record(store.put(drawing(105, 16, 16)), "tiny", (16, 16)),
        record(store.put(drawing(106)), "mismeasured", (64, 48)),
        record(store.put(drawing(107)), " ", concept="something"),
        record(store.put(drawing(108)), "unlicensed", licence="CC-BY-SA-4.0"),
        record(store.put(drawing(109)), "reserved", opt_out="noai sidecar"),
        record(good[0].id, "a later name of good 0", added_at=later),
        record(good[0].id, "good 0", added_at=later),
    ]
    return records.to_frame([*good, *bad])


@pytest.fixture(scope="module")
def out(home: Path) -> Path:
    folder = home / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def summary(mixed: pd.DataFrame, store: PictureStore, settings: Settings, out: Path, progress: list) -> dict[str, Any]:
    return validate(mixed, store, settings, out, on_progress=lambda done, total: progress.append((done, total)))


def failed(checks: list[dict[str, Any]]) -> set[str]:
    return {check["name"] for check in checks if not check["passed"]}


def test_a_corrupt_picture_is_quarantined_and_the_rest_goes_on(summary: dict[str, Any], out: Path) -> None:
    kept = records.read_manifest(out / "manifest.parquet")
    assert sorted(kept["caption"]) == sorted([*(f"good {number}" for number in range(11)), "hairline"])
    assert list(kept.columns) == list(records.COLUMNS)
    assert len(records.from_frame(kept)) == summary["kept"] == 12
    assert summary["manifest_version"] == records.manifest_version(kept)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("truncated", "undecodable: damaged or truncated"),
        ("not a picture", "undecodable: not a picture"),
        ("missing", "picture missing"),
        ("changed", "picture changed"),
        ("blank", "blank"),
        ("speck", "blank"),
        ("long", "too long: 160 × 38 pixels"),
        ("huge", "undecodable: 300 × 300 pixels are more than the 80000"),
        ("tiny", "picture too narrow: 16; picture too low: 16"),
        ("mismeasured", "size differs from the record: 48 × 48 pixels, recorded as 64 × 48"),
        (" ", "no caption"),
        ("unlicensed", "licence not allowed: CC-BY-SA-4.0"),
        ("reserved", "opted out: noai sidecar"),
        ("a later name of good 0", "duplicate of "),
        ("good 0", "duplicate of "),
    ],
)
def test_a_bad_record_is_set_aside_whole_with_its_reason(
    summary: dict[str, Any], out: Path, mixed: pd.DataFrame, caption: str, reason: str
) -> None:
    quarantine = records.read_manifest(out / "quarantine.parquet")
    (row,) = quarantine[quarantine["caption"] == caption].to_dict("records")
    assert row["reason"].startswith(reason)
    assert "undecodable" not in reason or "too narrow" not in row["reason"], "what has no size is not too small"
    assert list(quarantine.columns) == [*mixed.columns, "reason"]


def test_of_a_picture_with_several_captions_the_earliest_stays(summary: dict[str, Any], out: Path) -> None:
    quarantine = records.read_manifest(out / "quarantine.parquet")
    duplicates = quarantine[quarantine["reason"].str.startswith("duplicate")]
    assert set(duplicates["added_at"]) == {pd.Timestamp("2026-02-01", tz="UTC")}
    assert all("kept as “good 0”" in reason for reason in duplicates["reason"])


def test_every_record_is_counted_once(summary: dict[str, Any], mixed: pd.DataFrame) -> None:
    assert summary["records"] == len(mixed) == summary["kept"] + summary["quarantined"]
    assert sum(summary["quarantined_by_reason"].values()) == summary["quarantined"]
    assert summary["quarantined_by_reason"]["undecodable"] == 3


def test_the_report_tells_what_came_and_the_checks_tell_what_remained(summary: dict[str, Any], out: Path) -> None:
    assert failed(summary["raw_checks"]) == {
        "captions_are_present",
        "licences_are_allowed",
        "widths_are_large_enough",
        "heights_are_large_enough",
        "aspects_are_moderate",
        "opt_outs_are_honoured",
        "records_are_distinct",
    }
    assert [check["name"] for check in summary["checks"]] == [check.name for check in CHECKS]
    assert failed(summary["checks"]) == {"most_records_are_usable"}, "15 of 27 were quarantined"
    assert not summary["success"]
    written = json.loads((out / "validation.json").read_text())
    assert written["checks"] == summary["checks"]
    assert json.loads(json.dumps(summary)) == summary
    assert Path(summary["data_docs"]).is_file()


def test_progress_ends_at_the_number_of_pictures_that_were_decoded(
    summary: dict[str, Any], progress: list[tuple[int, int]]
) -> None:
    assert progress[-1] == (25, 25), "the copies share one picture"


def test_a_healthy_manifest_passes_and_the_same_input_gives_the_same_bytes(
    summary: dict[str, Any], out: Path, store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    healthy = records.read_manifest(out / "manifest.parquet")
    healthy["source"] = [" ", *healthy["source"].iloc[1:]]
    bytes_of_runs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        again = validate(healthy, store, settings, folder)
        bytes_of_runs.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert again["success"] and again["quarantined"] == 0
    assert failed(again["checks"]) == {"sources_are_present"}, "a warning is kept in sight, and its record is kept"
    assert bytes_of_runs[0] == bytes_of_runs[1]
    assert set(bytes_of_runs[0]) == {"manifest.parquet", "quarantine.parquet", "unexpected.parquet", "validation.json"}


def test_when_nothing_is_left_the_critical_checks_fail_and_the_quarantine_is_still_written(
    store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    nothing = records.to_frame([record("f" * 64, "missing")])
    summary = validate(nothing, store, settings, tmp_path)
    assert failed(summary["checks"]) == {"manifest_has_records", "most_records_are_usable"}
    assert not summary["success"]
    assert len(records.read_manifest(tmp_path / "quarantine.parquet")) == 1
    assert records.read_manifest(tmp_path / "manifest.parquet").empty


def test_an_empty_manifest_fails_and_does_not_crash(store: PictureStore, settings: Settings, tmp_path: Path) -> None:
    summary = validate(records.to_frame([]), store, settings, tmp_path)
    assert failed(summary["checks"]) == {"manifest_has_records", "most_records_are_usable"}


def test_a_manifest_without_a_column_is_refused_with_its_name(
    mixed: pd.DataFrame, store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="lacks the columns caption"):
        validate(mixed.drop(columns="caption"), store, settings, tmp_path)
    assert not list(tmp_path.iterdir())


# --- what only Python can tell --------------------------------------------------------------------------------------


@pytest.fixture
def healthy(store: PictureStore) -> list[Record]:
    return [record(store.put(drawing(number)), f"good {number}", category="things") for number in range(6)]


def checks_of(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in [*summary["checks"], *summary["own_checks"]]}


def test_a_warning_lists_the_ids_that_break_it_and_shows_no_personal_data(
    healthy: list[Record], store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    odd = [
        record(store.put(drawing(200)), "ask ada.lovelace@example.com for it"),
        record(store.put(drawing(201)), "IMG_20240101.jpg"),
    ]
    summary = validate(records.to_frame([*healthy, *odd]), store, settings, tmp_path)
    checks = checks_of(summary)
    assert failed(summary["checks"]) == {"captions_hold_no_addresses", "captions_say_something"}
    assert checks["captions_hold_no_addresses"]["ids"] == [odd[0].id]
    assert checks["captions_say_something"]["ids"] == [odd[1].id]
    assert "lovelace" not in json.dumps(summary)
    assert summary["success"] and summary["kept"] == 8, "they are warnings"
    unexpected = pd.read_parquet(tmp_path / "unexpected.parquet")
    assert set(zip(unexpected["claim"], unexpected["id"], strict=True)) == {
        ("captions_hold_no_addresses", odd[0].id),
        ("captions_say_something", odd[1].id),
    }


def test_an_opt_out_is_honoured_unless_the_team_says_otherwise(
    healthy: list[Record], store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    reserved = record(store.put(drawing(202)), "reserved", opt_out="noai sidecar")
    frame = records.to_frame([*healthy, reserved])
    quarantined = validate(frame, store, settings, tmp_path)
    assert quarantined["quarantined_by_reason"] == {"opted out": 1}
    deaf = settings.model_copy(update={"governance": settings.governance.model_copy(update={"honour_opt_outs": False})})
    kept = validate(frame, store, deaf, tmp_path)
    assert kept["quarantined"] == 0
    assert checks_of(kept)["opt_outs_are_honoured"]["off"] == "governance.honour_opt_outs is false"


def test_pictures_that_look_alike_are_counted_and_variants_are_not_asked(
    healthy: list[Record], store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    image = Image.open(io.BytesIO(drawing(0))).resize((64, 64))
    near = [record(store.put(png(image.resize((64 + n, 64 + n)))), f"near {n}", (64 + n, 64 + n)) for n in range(4)]
    summary = validate(records.to_frame([*healthy, *near]), store, settings, tmp_path)
    share = checks_of(summary)["near_duplicates_are_few"]
    assert (share["passed"], share["observed"]) == (False, 0.4), "four of ten look like good 0"
    variants = [one.model_copy(update={"variant": True}) for one in near]
    summary = validate(records.to_frame([*healthy, *variants]), store, settings, tmp_path)
    assert checks_of(summary)["near_duplicates_are_few"]["observed"] == 0


def test_everything_that_was_seen_is_accepted_quarantined_or_refused(
    healthy: list[Record], store: PictureStore, settings: Settings, tmp_path: Path
) -> None:
    refused = pd.DataFrame(
        {
            "source": ["icons:openmoji", "folder:a", "folder:a"],
            "key": ["", "one", "two"],
            "licence": ["CC-BY-SA-4.0", "", ""],
            "reason": ["licence CC-BY-SA-4.0 is not allowed", "leads out of the folder", "leads out of the folder"],
            "count": pd.array([None, 1, 1], dtype="Int64"),
        }
    )
    frame = records.to_frame([*healthy, record("e" * 64, "missing")])
    summary = validate(frame, store, settings, tmp_path, intake=Intake(refused, doubles=3))
    assert summary["seen"] == summary["kept"] + summary["quarantined"] + summary["refused"] + summary["doubles"] == 12
    assert summary["refused_by_reason"] == {"leads out of the folder": 2}
    assert summary["refused_sources"] == ["icons:openmoji"]


# --- expectations of the team's own ---------------------------------------------------------------------------------


@pytest.fixture
def with_own(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings with own rules; functions of ``our_rules.py`` lie in the working folder."""
    (tmp_path / "our_rules.py").write_text(
        "def captions_are_even(manifest):\n"
        "    return manifest['caption'].str[-1].astype(int) % 2 == 0\n"
        "def ids_of_good_3(manifest):\n"
        "    return manifest.loc[manifest['caption'] == 'good 3', 'id']\n"
        "def broken(manifest):\n"
        "    return manifest['colour'] == 'red'\n"
        "def a_number(manifest):\n"
        "    return 7\n"
        "def too_short(manifest):\n"
        "    return [True]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "our_rules", raising=False)

    def make(**readiness: Any) -> Settings:
        return settings.model_copy(update={"readiness": ReadinessSettings.model_validate(readiness)})

    return make


def test_rules_and_functions_of_the_team_join_the_suite(
    healthy: list[Record], store: PictureStore, with_own: Callable[..., Settings], tmp_path: Path
) -> None:
    rules = [
        {"claim": "no_brand_names", "column": "caption", "matches_not": "(?i)GOOD 5", "severity": "critical"},
        {"claim": "good_3_is_out", "function": "our_rules:ids_of_good_3", "severity": "critical"},
    ]
    own = with_own(expectations=rules, functions=["our_rules:captions_are_even"])
    out = tmp_path / "out"
    out.mkdir()
    summary = validate(records.to_frame(healthy), store, own, out)
    assert summary["quarantined_by_reason"] == {"good_3_is_out does not hold": 1, "no_brand_names does not hold": 1}
    quarantine = records.read_manifest(out / "quarantine.parquet")
    assert "no_brand_names does not hold: good 5" in set(quarantine["reason"])
    checks = checks_of(summary)
    assert not checks["captions_are_even"]["passed"] and checks["captions_are_even"]["unexpected_count"] == 1
    together = checks["own_expectations_hold"]
    assert (together["passed"], together["severity"]) == (False, "warning"), "the critical ones hold on what is left"
    assert [claim["name"] for claim in together["claims"]] == ["no_brand_names", "good_3_is_out", "captions_are_even"]
    pages = "".join(page.read_text() for page in Path(summary["data_docs"]).parent.rglob("expectations/*.html"))
    assert "no brand names." in pages and "captions are even." in pages


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("our_rules:nowhere", "our_rules:nowhere cannot be imported"),
        ("no_such_module:rule", "no_such_module:rule cannot be imported"),
        ("our_rules:broken", "our_rules:broken failed: KeyError: 'colour'"),
        ("our_rules:a_number", "our_rules:a_number returned int; return a boolean Series"),
        ("our_rules:too_short", "our_rules:too_short returned 'True', which is no id"),
    ],
)
def test_a_function_that_cannot_be_asked_is_an_error_that_names_it(
    healthy: list[Record],
    store: PictureStore,
    with_own: Callable[..., Settings],
    tmp_path: Path,
    function: str,
    said: str,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=re.escape(said)):
        validate(records.to_frame(healthy), store, with_own(functions=[function]), out)
    assert not list(out.iterdir())


def test_other_code_of_a_function_is_another_rule(with_own: Callable[..., Settings], tmp_path: Path) -> None:
    own = with_own(functions=["our_rules:captions_are_even"])
    before = rules_of(own)
    assert json.loads(json.dumps(before)) == before == rules_of(own)
    (tmp_path / "our_rules.py").write_text("def captions_are_even(manifest):\n    return []\n")
    sys.modules.pop("our_rules")
    linecache.clearcache()
    importlib.invalidate_caches()
    assert rules_of(own) != before


def test_the_day_counts_only_when_freshness_is_asked_for(settings: Settings) -> None:
    day, next_day = (datetime(2026, 1, number, tzinfo=UTC) for number in (1, 2))
    assert rules_of(settings, today=day) == rules_of(settings, today=next_day)
    asked = settings.model_copy(update={"readiness": ReadinessSettings(max_age_days=7)})
    assert rules_of(asked, today=day) != rules_of(asked, today=next_day)
