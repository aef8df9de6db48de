"""Raw data: all sources in one manifest, licences enforced."""

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from genai_assets.datasets import records
from genai_assets.datasets.ingestion import MANIFEST, REFUSED, ingest, source_fingerprints
from genai_assets.datasets.licences import LicencePolicy
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.settings import DatasetSettings, Settings


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


def test_the_real_icon_sets_become_one_manifest(icon_settings, out):
    settings = icon_settings(limit=12)
    told = []
    summary = ingest(settings, out, on_progress=lambda source, count: told.append((source, count)))
    frame = records.read_manifest(out / MANIFEST)
    assert summary["by_style"] == {"fluent": 12, "noto": 12, "twemoji": 12}
    assert summary["records"] == len(frame) == 36
    assert summary["manifest_version"] == records.manifest_version(frame)
    assert list(frame.columns) == list(records.COLUMNS)
    assert told[:2] == [("icons:noto", 0), ("icons:noto", 12)]
    store = PictureStore(settings.paths.pictures)
    assert all(picture in store for picture in frame["id"])
    assert len(records.from_frame(frame)) == 36
    json.dumps(summary)


def test_nothing_changed_gives_the_same_version(icon_settings, out):
    settings = icon_settings(limit=5, icon_sets=("noto",))
    assert ingest(settings, out)["manifest_version"] == ingest(settings, out)["manifest_version"]


def test_a_source_whose_licence_is_not_allowed_is_refused_unread(tmp_path, out, icon_settings):
    settings = icon_settings(limit=3, icon_sets=("noto", "openmoji"))
    summary = ingest(settings, out)
    refused = pd.read_parquet(out / REFUSED)
    assert summary["by_source"] == {"icons:noto": 3}
    assert summary["refused"][0]["source"] == "icons:openmoji"
    assert refused.loc[0, "licence"] == "CC-BY-SA-4.0"
    assert "not allowed" in refused.loc[0, "reason"]
    assert pd.isna(refused.loc[0, "count"])


def test_single_records_under_another_licence_are_refused_and_counted(folder_settings, out):
    summary = ingest(folder_settings, out)
    assert summary["records"] == 2
    refused = pd.read_parquet(out / REFUSED)
    assert refused[["source", "licence", "count"]].values.tolist() == [["folder:mine", "CC-BY-NC-4.0", 1]]


def test_known_pictures_keep_the_time_they_first_arrived(folder_settings, out):
    ingest(folder_settings, out)
    previous = records.read_manifest(out / MANIFEST)
    arrived = datetime(2024, 2, 29, tzinfo=UTC)
    known = previous["id"][0]
    previous.loc[previous["id"] == known, "added_at"] = arrived
    ingest(folder_settings, out, previous=previous[previous["id"] == known])
    again = records.read_manifest(out / MANIFEST).set_index("id")["added_at"]
    assert again[known] == arrived
    assert (again.drop(known) > arrived).all()


def test_the_same_picture_with_the_same_caption_comes_once(folder_settings, out):
    folder = folder_settings.dataset.folder
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "copy.txt").write_text("cup 0")
    (folder / "other.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "other.txt").write_text("a cup of another name")
    summary = ingest(folder_settings, out)
    assert summary["duplicates"] == 1
    assert summary["records"] == 3


def test_no_picture_left_is_an_error_with_the_reasons_and_no_manifest(icon_settings, out):
    with pytest.raises(
        ValueError, match=r"no picture to work with: icons:openmoji: licence CC-BY-SA-4\.0 is not allowed"
    ):
        ingest(icon_settings(icon_sets=("openmoji",)), out)
    with pytest.raises(ValueError, match=r"set dataset\.icon_sets or dataset\.folder"):
        ingest(icon_settings(icon_sets=()), out)
    assert list(out.iterdir()) == []


def test_the_fingerprints_follow_the_files_and_the_policy(folder_settings):
    before = source_fingerprints(folder_settings)
    assert set(before) == {"folder:mine", "licence policy"}
    assert source_fingerprints(folder_settings) == before
    (folder_settings.dataset.folder / "0.txt").write_text("new")
    assert source_fingerprints(folder_settings)["folder:mine"] != before["folder:mine"]


def test_the_policy_allows_what_it_was_given_and_nothing_else():
    policy = LicencePolicy(["MIT", "CC-BY-4.0"])
    assert policy.refusal("MIT") is None
    assert policy.refusal("cc-by-4.0") is None
    assert "CC-BY-NC-4.0 is not allowed" in (policy.refusal("CC-BY-NC-4.0") or "")
    assert "no licence is stated" in (policy.refusal(" ") or "")
