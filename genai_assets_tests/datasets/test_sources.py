"""Which sources the settings ask for, and feedback coming back as data."""

import pytest

from genai_assets.datasets import records
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record
from genai_assets.datasets.sources import FeedbackSource, sources_from
from genai_assets.settings import DatasetSettings, Settings


def settings_of(tmp_path, **dataset):
    return Settings(home=tmp_path / "home", dataset=DatasetSettings(**dataset))


def names(settings):
    return [source.name for source in sources_from(settings)]


def close_batch(settings, name, *pictures, keep=True):
    drawn = PictureStore(settings.paths.drawn)
    found = [
        Record(
            id=drawn.put(picture),
            caption=f"prompt {number}",
            concept=f"prompt-{number}",
            style="fluent",
            source="feedback",
            licence="LicenseRef-own-output",
            width=64,
            height=64,
        )
        for number, picture in enumerate(pictures)
    ]
    if not keep:
        drawn.path(found[0].id).unlink()
    path = settings.paths.home / "feedback" / "batches" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_manifest(path, records.to_frame(found))
    return found


def test_the_icon_sets_are_the_default_and_a_folder_takes_their_place(tmp_path):
    assert names(settings_of(tmp_path)) == ["icons:noto", "icons:twemoji", "icons:fluent-emoji-3d"]
    assert names(settings_of(tmp_path, folder=tmp_path / "mine")) == ["folder:mine"]
    assert names(settings_of(tmp_path, icon_sets=("noto", "noto"))) == ["icons:noto"]


def test_an_unknown_icon_set_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown icon set 'apple'.*known are noto, twemoji"):
        sources_from(settings_of(tmp_path, icon_sets=("apple",)))


def test_feedback_is_a_source_once_a_batch_is_closed(tmp_path):
    settings = settings_of(tmp_path, icon_sets=("noto",))
    assert names(settings) == ["icons:noto"]
    close_batch(settings, "1.parquet", b"one")
    assert names(settings) == ["icons:noto", "feedback"]


def test_feedback_pictures_are_copied_into_the_store_of_sources(tmp_path):
    settings = settings_of(tmp_path)
    written = close_batch(settings, "1.parquet", b"one", b"two")
    store = PictureStore(settings.paths.pictures)
    found = list(sources_from(settings)[-1].read(store))
    assert {record.id for record in found} == {record.id for record in written}
    assert {store.read(record.id, verify=True) for record in found} == {b"one", b"two"}


def test_a_new_batch_changes_the_fingerprint(tmp_path):
    settings = settings_of(tmp_path)
    source = FeedbackSource(settings.paths.home / "feedback" / "batches", PictureStore(settings.paths.drawn))
    close_batch(settings, "1.parquet", b"one")
    before = source.fingerprint()
    assert source.fingerprint() == before
    close_batch(settings, "2.parquet", b"two")
    assert source.fingerprint() != before


def test_a_batch_whose_picture_is_gone_is_named(tmp_path):
    settings = settings_of(tmp_path)
    close_batch(settings, "1.parquet", b"one", keep=False)
    with pytest.raises(FileNotFoundError, match="1 pictures of the feedback batches"):
        list(sources_from(settings)[-1].read(PictureStore(settings.paths.pictures)))
