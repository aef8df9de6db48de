"""The readiness report says whether the data can be trained on, what to mend first, and needs nothing but itself."""

import hashlib
import io
import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from genai_assets.datasets import duplicates, records
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.readiness import (
    ADVICE,
    Drift,
    Materials,
    Mend,
    charts_of,
    count_straddling,
    find_drift,
    find_mends,
    judge,
    write_readiness,
)
from genai_assets.datasets.records import Record
from genai_assets.datasets.validation import CHECKS, Intake, validate
from genai_assets.settings import Settings

DAY = datetime(2026, 1, 1, tzinfo=UTC)


def drawing(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def records_of(count: int, *, start: int = 0, **changes: Any) -> pd.DataFrame:
    """Records without pictures: what drift and charts look at."""
    fields: dict[str, Any] = {"style": "fluent", "source": "icons:a", "licence": "MIT", "category": "objects"}
    fields |= {"width": 64, "height": 64, "added_at": DAY} | changes
    return records.to_frame(
        Record(
            id=hashlib.sha256(str(number).encode()).hexdigest(),
            caption=f"thing number {number}",
            concept=f"thing {number}",
            **fields,
        )
        for number in range(start, start + count)
    )


class Page(HTMLParser):
    """What a page refers to, and what is said of its pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[str | None] = []
        self.headings: list[str] = []
        self.heads: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "img":
            self.pictures.append(told.get("alt"))
        if tag == "svg":
            assert told["role"] == "img" and told["aria-label"]
        if tag == "th":
            self.heads.append(told)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def materials(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """A small dataset with something of everything, as the stages before leave it."""
    store = PictureStore(settings.paths.pictures)

    def record(picture: bytes, caption: str, **changes: Any) -> Record:
        fields: dict[str, Any] = {"style": "fluent", "source": "icons:a", "licence": "MIT", "category": "objects"}
        told = {"concept": caption, "width": 48, "height": 48, "added_at": DAY} | fields | changes
        return Record(id=store.put(picture), caption=caption, **told)

    rows = [record(drawing(number), f"thing {number}", category=f"kind {number % 3}") for number in range(20)]
    rows += [
        record(drawing(30)[:-200], "truncated"),
        record(drawing(31), "reserved <b>", opt_out="noai sidecar"),
        record(drawing(32), "write to ada.lovelace@example.com"),
    ]
    refused = pd.DataFrame(
        {
            "source": ["icons:openmoji", "folder"],
            "key": ["", "x"],
            "licence": ["CC-BY-SA-4.0", None],
            "reason": ["licence CC-BY-SA-4.0 is not allowed", "leads out of the folder <script>"],
            "count": pd.array([None, 1], dtype="Int64"),
        }
    )
    out = tmp_path_factory.mktemp("validated")
    summary = validate(records.to_frame(rows), store, settings, out, intake=Intake(refused, doubles=2))
    manifest = records.read_manifest(out / "manifest.parquet")
    splits = manifest[["id", "caption", "concept", "style", "category"]].assign(
        split=["train", "train", "validation", "held_out"] * 5 + ["train"]
    )
    pair = sorted(manifest["id"])[:2]
    rows_of_pair = [(pair[0], pair[0], True, 0, "content", 0.0), (pair[1], pair[0], False, 1, "perceptual", 2.0)]
    clusters = pd.DataFrame(rows_of_pair, columns=list(duplicates.CLUSTER_COLUMNS))
    return Materials(
        manifest=manifest,
        quarantine=records.read_manifest(out / "quarantine.parquet"),
        refused=refused,
        summary=summary,
        splits=splits,
        clusters=clusters,
        provenance={"validated_data": "0123456789abcdef"},
    )


@pytest.fixture(scope="module")
def thumbnails(settings: Settings) -> Any:
    from genai_assets.datasets.inspection import Inspections

    with Inspections(settings) as inspections:
        yield inspections.thumbnail


@pytest.fixture(scope="module")
def out(materials: Materials, settings: Settings, thumbnails: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_readiness(folder, materials, settings, thumbnails)
    return folder


def test_the_page_stands_on_its_own_and_is_small(out: Path, materials: Materials) -> None:
    text = (out / "readiness.html").read_text()
    page = Page(text)
    assert len(text) < 2_000_000
    elsewhere = {url for url in page.addresses if not url.startswith(("data:image/webp;base64,", "#"))}
    (link,) = elsewhere
    assert (out / link).resolve() == Path(materials.summary["data_docs"]), "the Data Docs' link, which loads nothing"
    assert not re.search(r"<script|@import|url\(", text), "what a source says is text, whatever it looks like"
    assert "reserved &lt;b&gt;" in text and "&lt;script&gt;" in text
    assert {url[1:] for url in page.addresses if url.startswith("#")} <= set(page.ids)


def test_the_page_can_be_read_by_a_screen_reader(out: Path) -> None:
    page = Page((out / "readiness.html").read_text())
    assert page.headings[0] == "h1" and page.headings.count("h1") == 1 and page.headings.count("h2") > 8
    assert page.pictures and all(page.pictures), "every picture has a text"
    assert all(head.get("scope") in ("col", "row") for head in page.heads)


def test_nothing_is_lost_and_the_facts_are_those_of_validation(out: Path, materials: Materials) -> None:
    facts = json.loads((out / "readiness.json").read_text())
    counts = facts["counts"]
    assert counts["seen"] == counts["kept"] + counts["quarantined"] + counts["refused"] + counts["doubles"] == 26
    assert facts["verdict"] == "Ready, with warnings"
    assert facts["quarantined_by_reason"] == {"undecodable": 1, "opted out": 1}
    assert facts["splits"]["train"]["records"] == 11
    assert facts["drift"]["differs"] == "unknown"
    assert [check["name"] for check in facts["checks"]] == [check.name for check in CHECKS]
    text = (out / "readiness.html").read_text()
    for words in ("undecodable", "opted out: noai sidecar", "icons:openmoji", "captions hold no addresses"):
        assert words in text
    assert "ada.lovelace" not in text + json.dumps(facts), "personal data is masked"


def test_the_same_materials_give_the_same_bytes(
    out: Path, materials: Materials, settings: Settings, thumbnails: Any
) -> None:
    shuffled = Materials(**{**vars(materials), "manifest": materials.manifest.sample(frac=1, random_state=1)})
    again = out.with_name("again")
    again.mkdir()
    write_readiness(again, shuffled, settings, thumbnails)
    for name in ("readiness.html", "readiness.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_pictures_that_cannot_be_shown_are_told(materials: Materials, settings: Settings, tmp_path: Path) -> None:
    def gone(picture: str) -> bytes:
        raise FileNotFoundError(picture)

    write_readiness(tmp_path, materials, settings, gone)
    text = (tmp_path / "readiness.html").read_text()
    assert not Page(text).pictures
    assert "no picture to show" in text


def test_an_empty_dataset_is_not_ready(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "validated"
    folder.mkdir()
    store = PictureStore(settings.paths.pictures)
    summary = validate(records.to_frame([]), store, settings, folder)
    empty = records.to_frame([])
    refused = pd.DataFrame({"source": [], "key": [], "licence": [], "reason": [], "count": []})
    nothing = Materials(empty, empty.assign(reason=""), refused, summary)
    told = write_readiness(tmp_path, nothing, settings, lambda picture: b"")
    assert told["verdict"] == "Not ready"
    assert any("manifest has records" in title for title in told["mend_first"])


def test_what_stops_comes_first_and_then_what_concerns_most(materials: Materials, settings: Settings) -> None:
    checks = [dict(check) for check in materials.summary["checks"]]
    broken = {"manifest_has_records": 1, "sources_are_present": 3, "captions_are_readable": 7}
    for check in checks:
        if check["name"] in broken:
            check |= {"passed": False, "unexpected_count": broken[check["name"]]}
    summary = {**materials.summary, "checks": checks}
    mends = find_mends(Materials(**{**vars(materials), "summary": summary}), Drift("unknown", ""), settings)
    levels = [mend.level for mend in mends]
    assert levels == sorted(levels, key=["stops", "warns", "notes"].index)
    assert "manifest has records" in mends[0].title
    warned = [mend.title.split(":")[0] for mend in mends if mend.level == "warns"]
    assert warned == ["captions are readable", "sources are present", "captions hold no addresses"]
    assert judge(mends) == "Not ready"
    assert all(mend.advice for mend in mends)


def test_every_claim_that_is_not_answered_by_quarantine_has_advice() -> None:
    about_records = {check.name for check in CHECKS if check.severity == "critical" and check.fault}
    assert {check.name for check in CHECKS} - about_records - {"own_expectations_hold"} == set(ADVICE)


def test_notes_alone_leave_the_data_ready() -> None:
    assert judge([Mend("notes", "In quarantine: duplicate", 5, "")]) == "Ready"
    assert judge([]) == "Ready"


def test_near_duplicates_in_two_splits_are_told(materials: Materials, settings: Settings) -> None:
    assert materials.splits is not None and materials.clusters is not None
    pair = list(materials.clusters["id"])
    splits = materials.splits.copy()
    for other, straddling in (("train", 0), ("later", 0), ("held_out", 1)):
        splits.loc[splits["id"] == pair[0], "split"] = "train"
        splits.loc[splits["id"] == pair[1], "split"] = other
        assert count_straddling(materials.clusters, splits) == straddling, other
    mends = find_mends(Materials(**{**vars(materials), "splits": splits}), Drift("no", ""), settings)
    assert any("reach into two splits" in mend.title and mend.level == "warns" for mend in mends)


def test_a_split_without_records_stops(materials: Materials, settings: Settings) -> None:
    assert materials.splits is not None
    without = materials.splits[materials.splits["split"] != "held_out"]
    mends = find_mends(Materials(**{**vars(materials), "splits": without}), Drift("no", ""), settings)
    assert (mends[0].level, mends[0].title) == ("stops", "No record is in the split held out")


# --- drift ----------------------------------------------------------------------------------------------------------


def test_one_batch_is_compared_with_nothing() -> None:
    assert find_drift(records_of(200)).differs == "unknown"


def test_too_few_records_are_unknown_and_not_no() -> None:
    few = records_of(49, start=1000, added_at=DAY + timedelta(days=1), category="animals")
    found = find_drift(pd.concat([records_of(500), few], ignore_index=True))
    assert (found.differs, found.newest, found.shifts) == ("unknown", 49, ())
    assert "too few" in found.why


def test_a_batch_of_another_kind_differs_and_the_report_says_in_what() -> None:
    new = records_of(300, start=1000, added_at=DAY + timedelta(days=1), category="animals", width=256, height=256)
    found = find_drift(pd.concat([records_of(500), new], ignore_index=True))
    assert found.differs == "yes"
    assert {shift.name for shift in found.shifts if shift.differs == "yes"} == {"category", "longer side"}
    (category,) = [shift for shift in found.shifts if shift.name == "category"]
    assert category.gained == "animals: 0% before, 100% now"


@pytest.mark.parametrize("seed", range(5))
def test_two_batches_from_the_same_records_do_not_differ(seed: int) -> None:
    draw = np.random.default_rng(seed)
    frame = records_of(400)
    frame["category"] = draw.choice(["a", "b", "c", "d", "e", "f", "g", "h"], len(frame))
    frame["width"] = draw.integers(50, 500, len(frame))
    frame["caption"] = [" ".join(["word"] * count) for count in draw.integers(1, 12, len(frame))]
    batches = {picture: f"00000{draw.integers(1, 3)}" for picture in frame["id"]}
    found = find_drift(frame, batches)
    assert found.differs == "no", found.shifts


def test_the_batches_of_ingestion_count_before_the_days() -> None:
    frame = pd.concat([records_of(100), records_of(100, start=500, category="animals")], ignore_index=True)
    batches = {
        picture: "000002-b" if category == "animals" else "000001-a"
        for picture, category in zip(frame["id"], frame["category"], strict=True)
    }
    found = find_drift(frame, batches)
    assert (found.differs, found.batch, found.newest) == ("yes", "000002-b", 100)


def test_charts_count_every_record_once() -> None:
    frame = pd.concat([records_of(10), records_of(5, start=20, category="", width=200, height=20)], ignore_index=True)
    charts = {chart.name: dict(chart.bars) for chart in charts_of(frame)}
    assert all(sum(bars.values()) == 15 for bars in charts.values())
    assert charts["category"] == {"objects": 10, "none stated": 5}
    assert charts["longer side, pixels"]["64–95"] == 10 and charts["longer side, pixels"]["192–255"] == 5
    assert charts["aspect, width over height"] == {
        "0.95–1.05": 10,
        "1.05–1.33": 0,
        "1.33–2": 0,
        "2–4": 0,
        "4 and more": 5,
    }
    assert charts["words in a caption"] == {"3": 15}
