"""Raw data: what arrives from the sources, batch by batch; only what differs is fetched, and nothing is half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from genai_assets import stages
from genai_assets.cli import app
from genai_assets.datasets import records
from genai_assets.datasets.arrivals import look
from genai_assets.datasets.ingestion import ARRIVALS, CHANGES, LISTING, MANIFEST, REFUSED, Batch, MassRemoval, ingest
from genai_assets.datasets.inspection import Inspections
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.settings import DatasetSettings, Settings
from genai_assets_tests.datasets import shelf_source
from genai_assets_tests.datasets.shelf_source import DROPPED, OUT_OF_REACH, ShelfSource

FIRST = Batch(1, "000001-first")


@pytest.fixture
def out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    return out


@pytest.fixture
def icon_settings(tmp_path, package_cache):
    def icon_settings(**dataset):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        if not (home / "packages").exists():
            package_cache.mkdir(parents=True, exist_ok=True)
            (home / "packages").symlink_to(package_cache)
        return Settings(home=home, dataset=DatasetSettings(**dataset))

    return icon_settings


@pytest.fixture
def folder_settings(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for number, licence in enumerate(["", "", "CC-BY-NC-4.0"]):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"cup {number}", "licence": licence})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Settings(home=tmp_path / "home", dataset=DatasetSettings(folder=folder))


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> Path:
    """A home in which the pictures of the shelves were inspected once: to start the workers takes a second."""
    home = tmp_path_factory.mktemp("inspected")
    with Inspections(Settings(home=home)) as inspections:
        list(inspections.keep_and_inspect(map(shelf_source.picture, range(10)), PictureStore(home / "elsewhere")))
    shutil.rmtree(home / "elsewhere")
    return home


class Shelf:
    """A home with one shelf, whose content a test changes."""

    def __init__(self, folder: Path, inspected: Path, home: str = "home", **dataset):
        self.path = folder / "shelf.json"
        shutil.copytree(inspected, folder / home)
        table = {"kind": "shelf", "path": str(self.path)}
        self.settings = Settings(home=folder / home, dataset=DatasetSettings(sources=(table,), **dataset))

    def holds(self, **items):
        """Replace what is on the shelf: key = (seed, caption) or (seed, caption, licence)."""
        self.path.write_text(json.dumps({key: [*item, "", ""][:3] for key, item in items.items()}))

    def ingest(self, **changes):
        """The newest batch, and the keys that were fetched for it."""
        ShelfSource.fetched.clear()
        dataset = self.settings.dataset.model_copy(update=changes)
        artifact = stages.raw_data(self.settings.model_copy(update={"dataset": dataset}))
        return artifact, sorted(ShelfSource.fetched)


@pytest.fixture
def shelf(tmp_path, inspected, monkeypatch):
    shelf_source.register(tmp_path, monkeypatch)
    return Shelf(tmp_path, inspected)


def captions(artifact):
    return sorted(records.read_manifest(artifact.file(MANIFEST))["caption"])


def changes(artifact):
    return pd.read_parquet(artifact.file(CHANGES))[["change", "source", "key"]].values.tolist()


# One batch


def test_the_real_icon_sets_become_one_manifest(icon_settings, out):
    settings = icon_settings(limit=12)
    told = []
    summary = ingest(
        settings, look(settings), out, batch=FIRST, on_progress=lambda source, count: told.append((source, count))
    )
    frame = records.read_manifest(out / MANIFEST)
    assert summary["by_style"] == {"fluent": 12, "noto": 12, "twemoji": 12}
    assert summary["records"] == len(frame) == 36
    assert summary["manifest_version"] == records.manifest_version(frame)
    assert list(frame.columns) == list(records.COLUMNS)
    assert told[:2] == [("icons:noto", 0), ("icons:noto", 12)]
    store = PictureStore(settings.paths.pictures)
    assert all(picture in store for picture in frame["id"])
    assert len(set(frame["concept"])) < 24, "a small trial has the same concepts in each set"
    pd.testing.assert_frame_equal(records.to_frame(records.from_frame(frame)), frame, check_dtype=False)
    json.dumps(summary)


def test_a_source_whose_licence_is_not_allowed_is_refused_unread(icon_settings, out, tmp_path):
    settings = icon_settings(limit=3, icon_sets=("noto", "openmoji"))
    summary = ingest(settings, look(settings), out, batch=FIRST)
    refused = pd.read_parquet(out / REFUSED)
    assert summary["by_source"] == {"icons:noto": 3}
    assert summary["refused"][0]["source"] == "icons:openmoji"
    assert (refused.loc[0, "licence"], refused.loc[0, "key"]) == ("CC-BY-SA-4.0", "")
    assert "not allowed" in refused.loc[0, "reason"]
    assert pd.isna(refused.loc[0, "count"])
    unread = Settings(home=tmp_path / "bare", dataset=DatasetSettings(icon_sets=("openmoji",), offline=True))
    assert not look(unread).listings.get("icons:openmoji"), "there is no package, and none was asked for"


def test_single_records_under_another_licence_are_refused_one_by_one(folder_settings, out):
    summary = ingest(folder_settings, look(folder_settings), out, batch=FIRST)
    assert summary["records"] == 2
    refused = pd.read_parquet(out / REFUSED)
    assert refused[["source", "key", "licence", "count"]].values.tolist() == [
        ["folder:mine", "2.png", "CC-BY-NC-4.0", 1]
    ]
    assert [row["count"] for row in summary["refused"]] == [1]


def test_a_licence_as_people_write_it_is_recorded_by_its_identifier(shelf):
    shelf.holds(a=(0, "cup", "CC BY 4.0"), b=(1, "jug", "CC-BY-4.0"), c=(2, "pot", "cc by-nc 4.0"))
    batch, _ = shelf.ingest()
    manifest = records.read_manifest(batch.file(MANIFEST))
    assert batch.summary["by_licence"] == {"CC-BY-4.0": 2}
    assert {provenance.get("licence_stated") for provenance in map(json.loads, manifest["provenance"])} == {
        "CC BY 4.0",
        None,
    }
    assert batch.summary["refusals"] == 1
    assert batch.summary["refused"][0]["licence"] == "CC-BY-NC-4.0"


def test_the_same_picture_with_the_same_caption_comes_once(folder_settings, out):
    folder = folder_settings.dataset.folder
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "copy.txt").write_text("cup 0")
    (folder / "other.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "other.txt").write_text("a cup of another name")
    summary = ingest(folder_settings, look(folder_settings), out, batch=FIRST)
    assert summary["duplicates"] == 1
    assert summary["records"] == 3


def test_no_picture_left_is_an_error_with_the_reasons_and_no_manifest(icon_settings, out, tmp_path):
    refused = icon_settings(icon_sets=("openmoji",))
    with pytest.raises(
        ValueError, match=r"no picture to work with: icons:openmoji: licence CC-BY-SA-4\.0 is not allowed"
    ):
        ingest(refused, look(refused), out, batch=FIRST)
    none = icon_settings(icon_sets=())
    with pytest.raises(ValueError, match=r"set dataset\.folder, dataset\.sources or dataset\.icon_sets"):
        ingest(none, look(none), out, batch=FIRST)
    (tmp_path / "bare").mkdir()
    bare = icon_settings(folder=tmp_path / "bare")
    with pytest.raises(ValueError, match="nothing is in folder:bare"):
        ingest(bare, look(bare), out, batch=FIRST)
    assert list(out.iterdir()) == []


def test_a_picture_that_cannot_be_decoded_comes_in_without_a_size(shelf):
    shelf.holds(a=(0, "no picture"), b=(1, "cup"))
    made, _ = shelf.ingest()
    sizes = records.read_manifest(made.file(MANIFEST)).set_index("caption")["width"]
    assert sizes.to_dict() == {"no picture": 0, "cup": 40}


def test_a_description_that_no_record_can_hold_is_refused_and_the_rest_comes(shelf, monkeypatch):
    shelf.holds(a=(1, "cup"), b=(2, 5))
    made, _ = shelf.ingest()
    assert captions(made) == ["cup"]
    refused = pd.read_parquet(made.file(REFUSED))
    assert refused["key"].tolist() == ["b"]
    assert "its description is not valid: caption" in refused["reason"][0]


# Batch after batch


def test_only_what_is_new_or_changed_is_fetched(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    first, fetched = shelf.ingest()
    assert fetched == ["a", "b", "c"]
    shelf.holds(a=(1, "cup"), b=(2, "teapot"), c=(3, "jug"), d=(4, "bowl"))
    second, fetched = shelf.ingest()
    assert fetched == ["b", "d"]
    assert captions(second) == ["bowl", "cup", "jug", "teapot"]
    assert changes(second) == [["added", "shelf", "d"], ["changed", "shelf", "b"]]
    assert (first.summary["number"], second.summary["number"]) == (1, 2)
    assert second.summary["batch"].startswith("000002-")
    assert second.summary["fetched"] == 2


def test_nothing_new_is_the_same_batch_and_nothing_is_fetched(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    first, _ = shelf.ingest()
    again, fetched = shelf.ingest()
    assert (again.path, again.reused, fetched) == (first.path, True, [])


def test_what_is_gone_is_a_tombstone_and_out_of_the_manifest(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    shelf.ingest()
    shelf.holds(a=(1, "cup"), c=(3, "jug"))
    second, fetched = shelf.ingest()
    assert fetched == []
    assert captions(second) == ["cup", "jug"]
    assert changes(second) == [["removed", "shelf", "b"]]
    tombstone = pd.read_parquet(second.file(CHANGES))["id"][0]
    assert tombstone in PictureStore(shelf.settings.paths.pictures), "what was trained on can still be looked up"
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    third, fetched = shelf.ingest()
    assert (captions(third), fetched) == (["cup", "jug", "pot"], ["b"])


def test_the_double_of_a_removed_picture_takes_its_place(shelf):
    shelf.holds(a=(1, "cup"), b=(1, "cup"), c=(3, "jug"))
    first, _ = shelf.ingest()
    assert (captions(first), first.summary["duplicates"]) == (["cup", "jug"], 1)
    shelf.holds(b=(1, "cup"), c=(3, "jug"))
    second, fetched = shelf.ingest()
    assert (captions(second), fetched) == (["cup", "jug"], [])


def test_known_pictures_keep_the_time_and_the_batch_they_first_arrived_with(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    first, _ = shelf.ingest()
    arrived = records.read_manifest(first.file(MANIFEST)).set_index("id")["added_at"]
    shelf.holds(a=(1, "another cup"), b=(2, "pot"), c=(3, "jug"))
    second, _ = shelf.ingest()
    manifest = records.read_manifest(second.file(MANIFEST)).set_index("id")
    assert (manifest.loc[arrived.index, "added_at"] == arrived).all()
    batches = pd.read_parquet(second.file(ARRIVALS)).set_index("id")["batch"]
    came_second = manifest.index[manifest["caption"] == "jug"][0]
    assert batches.to_dict() == {
        **dict.fromkeys(arrived.index, first.summary["batch"]),
        came_second: second.summary["batch"],
    }


def test_a_refusal_stays_listed_and_is_not_asked_for_again(shelf):
    shelf.holds(a=(1, "cup"), b=(2, DROPPED))
    first, _ = shelf.ingest()
    shelf.holds(a=(1, "cup"), b=(2, DROPPED), c=(3, "jug"))
    second, fetched = shelf.ingest()
    assert fetched == ["c"]
    for made in (first, second):
        assert pd.read_parquet(made.file(REFUSED))[["key", "reason"]].values.tolist() == [["b", "it was dropped"]]


def test_a_passing_refusal_is_asked_for_again_and_what_was_there_before_stays(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    shelf.ingest()
    shelf.holds(a=(1, "cup"), b=(2, OUT_OF_REACH), c=(3, OUT_OF_REACH))
    second, fetched = shelf.ingest()
    assert (captions(second), fetched) == (["cup", "pot"], ["b", "c"])
    assert pd.read_parquet(second.file(REFUSED))["key"].tolist() == ["c"]
    third, fetched = shelf.ingest()
    assert (third.path, fetched) == (second.path, ["b", "c"]), "asked again, and nothing came of it"
    shelf.holds(a=(1, "cup"), b=(2, "teapot"), c=(3, "jug"))
    assert captions(shelf.ingest()[0]) == ["cup", "jug", "teapot"]


def test_another_licence_policy_changes_the_manifest_and_fetches_nothing(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot", "CC-BY-NC-4.0"))
    first, _ = shelf.ingest()
    assert captions(first) == ["cup"]
    wider, fetched = shelf.ingest(allowed_licences=("LicenseRef-own", "CC-BY-NC-4.0"))
    assert (captions(wider), fetched) == (["cup", "pot"], [])
    assert changes(wider) == [["added", "shelf", "b"]]
    narrow, fetched = shelf.ingest()
    assert (captions(narrow), fetched) == (["cup"], [])
    with pytest.raises(ValueError, match="no picture to work with: shelf: licence LicenseRef-own is not allowed"):
        shelf.ingest(allowed_licences=("CC-BY-NC-4.0",))


def test_a_picture_that_the_store_lost_is_brought_back(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    first, _ = shelf.ingest()
    store = PictureStore(shelf.settings.paths.pictures)
    lost = pd.read_parquet(first.file(LISTING)).set_index("key")["id"]["b"]
    store.path(lost).unlink()
    again, fetched = shelf.ingest()
    assert (again.path, fetched) == (first.path, ["b"])
    assert lost in store


def test_a_source_that_cannot_be_read_stops_all_and_changes_nothing(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    first, _ = shelf.ingest()
    shelf.path.unlink()
    with pytest.raises(SourceUnreadable, match="there is no shelf"):
        shelf.ingest()
    assert stages.artifact_store(shelf.settings).newest("raw_data").path == first.path


def test_more_than_half_gone_at_once_stops_unless_it_is_allowed(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"), d=(4, "bowl"))
    first, _ = shelf.ingest()
    shelf.holds(a=(1, "cup"))
    with pytest.raises(MassRemoval, match=r"3 of 4 pictures would be removed.*3 of shelf.*dataset\.allow_mass_removal"):
        shelf.ingest()
    assert [made.path for made in stages.batches(shelf.settings)] == [first.path]
    assert captions(shelf.ingest(allow_mass_removal=True)[0]) == ["cup"]


def test_pictures_that_can_be_given_no_more_count_as_gone(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    shelf.ingest()
    shelf.holds(a=(1, DROPPED), b=(2, DROPPED), c=(3, "jug"))
    with pytest.raises(MassRemoval):
        shelf.ingest()


def test_new_names_for_the_same_pictures_and_a_limit_are_no_mass_removal(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    shelf.ingest()
    shelf.holds(x=(1, "cup"), y=(2, "pot"), z=(3, "jug"))
    assert captions(shelf.ingest()[0]) == ["cup", "jug", "pot"]
    assert len(captions(shelf.ingest(limit=1)[0])) == 1
    assert len(captions(shelf.ingest()[0])) == 3


def test_a_source_that_the_settings_name_no_more_is_dropped(shelf, tmp_path):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    shelf.ingest()
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"a": [5, "plate", ""]}))
    made, _ = shelf.ingest(sources=({"kind": "shelf", "path": str(other), "name": "other"},))
    assert captions(made) == ["plate"]
    assert changes(made) == [["added", "other", "a"], ["removed", "shelf", "a"], ["removed", "shelf", "b"]]


def test_a_batch_can_be_named_and_read_again_by_its_name(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    named = stages.raw_data(shelf.settings, batch="spring")
    assert named.summary["batch"] == "spring"
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    newest, _ = shelf.ingest()
    assert stages.raw_data(shelf.settings, batch="spring").path == named.path
    assert stages.raw_data(shelf.settings).path == newest.path
    assert [made.summary["batch"] for made in stages.batches(shelf.settings)] == ["spring", newest.summary["batch"]]


def test_the_batches_are_listed_on_the_command_line(shelf, monkeypatch):
    shelf.holds(a=(1, "cup"), b=(2, "pot"), c=(3, "jug"))
    first, _ = shelf.ingest()
    shelf.holds(a=(1, "cup"), b=(2, "teapot"))
    second, _ = shelf.ingest()
    monkeypatch.setenv("GENAI_HOME", str(shelf.settings.home))
    said = CliRunner().invoke(app, ["data", "batches"], env={"COLUMNS": "120"}).output
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if "│" in line]
    assert cells == [[first.summary["batch"], "3", "3", "0", "0"], [second.summary["batch"], "2", "0", "1", "1"]]


def test_raw_data_from_before_there_were_batches_keeps_its_times_of_arrival(shelf):
    shelf.holds(a=(1, "cup"), b=(2, "pot"))
    arrived = datetime(2024, 2, 29, tzinfo=UTC)

    def old(out):
        known = records.Record(
            id=PictureStore(shelf.settings.paths.pictures).put(shelf_source.picture(1)),
            **{"caption": "cup", "concept": "c-cup", "style": "fluent", "source": "shelf", "licence": "MIT"},
            **{"width": 40, "height": 40, "added_at": arrived},
        )
        records.write_manifest(out / MANIFEST, records.to_frame([known]))
        return {"records": 1}

    stages.artifact_store(shelf.settings).build("raw_data", {"code": "1", "sources": {}}, old)
    made, fetched = shelf.ingest()
    assert (made.summary["number"], fetched) == (1, ["a", "b"])
    times = records.read_manifest(made.file(MANIFEST)).set_index("caption")["added_at"]
    assert times["cup"] == arrived and times["pot"] > arrived


# Killed in the middle


KILLED = """
import sys
from genai_assets import stages
from genai_assets.settings import DatasetSettings, Settings

settings = Settings(home=sys.argv[1], dataset=DatasetSettings(folder=sys.argv[2]))
def tell(source, done, total):
    print(source, done, flush=True)
    if done >= 100:
        sys.stdin.read()  # until the end comes
stages.raw_data(settings, on_progress=tell)
"""


def test_an_ingestion_that_is_killed_leaves_nothing_half_and_the_next_completes_it(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(130):
        (folder / f"{number}.png").write_bytes(shelf_source.picture(number + 1))
    home = tmp_path / "home"
    started = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stdout is not None
    for line in started.stdout:
        if line.split() == ["folder:mine", "100"]:
            break
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    settings = Settings(home=home, dataset=DatasetSettings(folder=folder))
    assert stages.artifact_store(settings).newest("raw_data") is None
    made = stages.raw_data(settings)
    assert made.summary["records"] == 130
    made.verify()
    store = PictureStore(settings.paths.pictures)
    for picture in records.read_manifest(made.file(MANIFEST))["id"]:
        store.read(picture, verify=True)


# Any history

ITEM = st.tuples(
    st.integers(0, 3),  # few pictures and captions, so that there are doubles
    st.sampled_from(["cup", "pot", DROPPED]),
    st.sampled_from(["", "MIT", "CC-BY-NC-4.0"]),
)
SHELF = st.dictionaries(st.sampled_from("abcdef"), ITEM).map(lambda items: {"always": (9, "here", ""), **items})


HISTORY = st.lists(SHELF, min_size=2, max_size=4)
UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@hypothesis_settings(max_examples=10, **UNHURRIED)
@given(history=HISTORY)
def test_any_history_of_batches_gives_the_manifest_of_a_fresh_ingestion(
    tmp_path_factory, inspected, monkeypatch, history
):
    with monkeypatch.context() as patched:
        _check_history(tmp_path_factory.mktemp("history"), inspected, patched, history)


@pytest.mark.slow
@pytest.mark.timeout(900)
@hypothesis_settings(max_examples=100, **UNHURRIED)
@given(history=HISTORY)
def test_a_great_many_histories_give_the_manifest_of_a_fresh_ingestion(
    tmp_path_factory, inspected, monkeypatch, history
):
    with monkeypatch.context() as patched:
        _check_history(tmp_path_factory.mktemp("history"), inspected, patched, history)


def _check_history(root, inspected, patched, history):
    shelf_source.register(root, patched)
    grown = Shelf(root, inspected, allow_mass_removal=True)
    lives: dict[tuple[str, str], str] = {}
    for items in history:
        grown.holds(**items)
        made, _ = grown.ingest()
        lives = _replayed(lives, made)
    anew, _ = Shelf(root, inspected, home="fresh").ingest()
    old, new = (records.read_manifest(one.file(MANIFEST)).drop(columns="added_at") for one in (made, anew))
    pd.testing.assert_frame_equal(old, new)
    pd.testing.assert_frame_equal(*(pd.read_parquet(one.file(REFUSED)) for one in (made, anew)))
    assert set(lives.values()) == set(new["id"]), "the changes alone tell what lives"
    shutil.rmtree(root)


def _replayed(before, made):
    """What lives by the changes: added and changed put in, tombstones taken out."""
    lives = dict(before)
    if made.reused:
        return lives
    for row in pd.read_parquet(made.file(CHANGES)).itertuples():
        if row.change == "removed":
            assert lives.pop((row.source, row.key)) == row.id
        else:
            assert ((row.source, row.key) in lives) == (row.change == "changed")
            lives[row.source, row.key] = row.id
    return lives
