"""Which sources the settings ask for, and closed batches coming back as data."""

import os
from datetime import UTC, datetime

import pytest

from genai_assets.child_process import environment_of
from genai_assets.datasets import records
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record
from genai_assets.datasets.sources.closed_batches import ClosedBatchesSource
from genai_assets.datasets.sources.configured import source_kinds, sources_from
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.settings import DatasetSettings, Settings

OWN = ["feedback", "synthetic"]
FIRST_RATED = datetime(2026, 1, 2, tzinfo=UTC)


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
            concept=f"feedback:prompt-{number}",
            style="fluent",
            source="feedback",
            licence="LicenseRef-own-output",
            width=64,
            height=64,
            added_at=FIRST_RATED,
            provenance={"model_version": "m-1"},
        )
        for number, picture in enumerate(pictures)
    ]
    if not keep:
        drawn.path(found[0].id).unlink()
    path = settings.paths.feedback_batches / name
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_manifest(path, records.to_frame(found))
    return found


def feedback(settings):
    return ClosedBatchesSource("feedback", settings.paths.feedback_batches, PictureStore(settings.paths.drawn))


def test_the_icon_sets_are_the_default_and_a_folder_or_any_table_takes_their_place(tmp_path):
    table = {"kind": "folder", "path": tmp_path / "yours"}
    assert names(settings_of(tmp_path)) == ["icons:noto", "icons:twemoji", "icons:fluent-emoji-3d", *OWN]
    assert names(settings_of(tmp_path, folder=tmp_path / "mine")) == ["folder:mine", *OWN]
    assert names(settings_of(tmp_path, sources=[table])) == ["folder:yours", *OWN]
    assert names(settings_of(tmp_path, folder=tmp_path / "mine", sources=[table])) == [
        "folder:mine",
        "folder:yours",
        *OWN,
    ]


@pytest.mark.parametrize("asked", [{}, {"folder": "mine"}, {"folder": "mine", "icon_sets": ("noto",)}])
def test_a_program_that_is_started_with_these_settings_has_the_same_sources(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    settings = settings_of(tmp_path, **asked)
    for name in [name for name in os.environ if name.startswith("GENAI_")]:
        monkeypatch.delenv(name)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert names(Settings()) == names(settings)


def test_icon_sets_that_are_set_come_beside_a_folder(tmp_path):
    both = settings_of(tmp_path, folder=tmp_path / "mine", icon_sets=("noto", "noto"))
    assert names(both) == ["folder:mine", "icons:noto", *OWN]


def test_an_unknown_icon_set_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown icon set 'apple'.*known are noto, twemoji"):
        sources_from(settings_of(tmp_path, icon_sets=("apple",)))


def test_the_kinds_that_come_with_the_package_are_found_by_entry_points():
    assert {"archive", "folder", "icon-set", "table", "hugging-face", "sql", "url", "url-list"} <= source_kinds().keys()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"kind": "folders", "path": "x"}, r"table 1, has the unknown kind 'folders'; known are .*folder, "),
        ({"path": "x"}, r"table 1, has no kind; known are .*folder, "),
        ({"kind": "folder", "path": "x", "caption": "names"}, r"table 1 \(folder\): caption: .*options are .*captions"),
        ({"kind": "folder"}, r"table 1 \(folder\): path: Field required"),
        ({"kind": "folder", "path": "x", "captions": "guess"}, r"captions: .*'sidecars' or 'file_names'"),
        ({"kind": "icon-set", "set": "apple"}, r"table 1 \(icon-set\): unknown icon set 'apple'"),
        ({"kind": "icon-set", "set": "noto", "style": "x"}, "has a style and a licence of its own"),
    ],
)
def test_a_table_that_is_not_understood_is_named_with_what_there_is(tmp_path, table, complaint):
    with pytest.raises(ValueError, match=complaint):
        sources_from(settings_of(tmp_path, sources=[table]))


def test_two_sources_of_one_name_are_an_error_that_a_name_mends(tmp_path):
    tables = [{"kind": "folder", "path": tmp_path / side / "cups"} for side in ("left", "right")]
    with pytest.raises(ValueError, match="two sources are called 'folder:cups'"):
        sources_from(settings_of(tmp_path, sources=tables))
    tables[0]["name"] = "left cups"
    assert names(settings_of(tmp_path, sources=tables)) == ["left cups", "folder:cups", *OWN]


def test_sources_can_be_set_in_the_environment_and_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genai.toml").write_text('[[dataset.sources]]\nkind = "folder"\npath = "cups"\nlicence = "MIT"\n')
    [source, *_] = sources_from(Settings())
    assert (source.name, source.licence) == ("folder:cups", "MIT")
    monkeypatch.setenv("GENAI_DATASET__SOURCES", '[{"kind": "folder", "path": "pots"}]')
    assert sources_from(Settings())[0].name == "folder:pots"


def test_what_a_closed_batch_says_comes_back_and_counts_as_synthetic(tmp_path):
    settings = settings_of(tmp_path)
    written = close_batch(settings, "1.parquet", b"one", b"two")
    source = feedback(settings)
    found = list(source.fetch([item.key for item in source.list()]))
    assert {fetched.data for fetched in found} == {b"one", b"two"}
    said = {fetched.description.caption: fetched.description for fetched in found}
    assert said.keys() == {record.caption for record in written}
    assert said["prompt 0"].concept == "feedback:prompt-0"
    assert said["prompt 0"].provenance == {"model_version": "m-1"}
    assert said["prompt 0"].added_at == FIRST_RATED
    assert all(description.synthetic for description in said.values())


def test_a_new_batch_adds_keys_and_leaves_the_old_as_they_were(tmp_path):
    settings = settings_of(tmp_path)
    close_batch(settings, "1.parquet", b"one")
    before = list(feedback(settings).list())
    close_batch(settings, "2.parquet", b"two", b"one")
    after = list(feedback(settings).list())
    assert after[:1] == before
    assert len({item.key for item in after}) == 3


def test_a_picture_that_is_gone_from_the_drawn_ones_is_refused_and_the_others_come(tmp_path):
    settings = settings_of(tmp_path)
    close_batch(settings, "1.parquet", b"one", b"two", keep=False)
    source = feedback(settings)
    found = list(source.fetch([item.key for item in source.list()]))
    assert sorted(fetched.data for fetched in found) == [b"", b"two"]
    [refused] = [fetched for fetched in found if fetched.refusal]
    assert "bring it back" in refused.refusal and refused.passing


def test_a_batch_that_is_damaged_is_named_and_never_taken_for_an_empty_one(tmp_path):
    settings = settings_of(tmp_path)
    close_batch(settings, "1.parquet", b"one")
    (settings.paths.feedback_batches / "2.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceUnreadable, match=r"the closed batch .*2\.parquet cannot be read"):
        list(feedback(settings).list())
