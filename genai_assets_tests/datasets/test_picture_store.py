"""The store: named by content, whole or absent."""

import hashlib

import pytest

from genai_assets import durable
from genai_assets.datasets.picture_store import PictureStore


@pytest.fixture
def store(tmp_path):
    return PictureStore(tmp_path / "pictures")


def files_in(store):
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_a_picture_is_named_by_its_content_and_comes_back_unchanged(store):
    picture = store.put(b"pixels")
    assert picture == hashlib.sha256(b"pixels").hexdigest()
    assert picture in store
    assert store.read(picture, verify=True) == b"pixels"
    assert store.path(picture) == store.root / picture[:2] / picture[2:]


def test_many_pictures_keep_their_order_and_equal_ones_are_kept_once(store):
    ids = store.put_many(data for data in (b"a", b"b", b"a"))
    assert [store.read(picture) for picture in ids] == [b"a", b"b", b"a"]
    assert len(files_in(store)) == 2
    assert store.put_many([b"b", b"c"])[0] == ids[1]


def test_a_picture_cut_short_by_a_power_cut_is_written_again(store):
    [picture] = store.put_many([b"whole"])
    store.path(picture).write_bytes(b"")
    assert store.put_many([b"whole"]) == [picture]
    assert store.read(picture) == b"whole"


@pytest.mark.parametrize("put", [lambda store, data: store.put(data), lambda store, data: store.put_many([data])])
def test_a_failing_disk_leaves_no_half_picture(store, monkeypatch, put):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        put(store, b"pixels")
    assert files_in(store) == []
    assert durable.digest_bytes(b"pixels") not in store


def test_a_picture_that_is_not_there_is_named(store):
    with pytest.raises(FileNotFoundError, match="0" * 64):
        store.read("0" * 64)


def test_a_changed_picture_is_noticed_when_asked(store):
    picture = store.put(b"pixels")
    store.path(picture).write_bytes(b"others")
    with pytest.raises(ValueError, match="changed or damaged"):
        store.read(picture, verify=True)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", "A" * 64, "0" * 63 + "\n"])
def test_only_an_id_names_a_picture(store, name):
    with pytest.raises(ValueError, match="not a picture's id"):
        store.path(name)


def test_a_block_that_fails_keeps_what_was_put_before(store):
    with pytest.raises(RuntimeError, match="the source broke"), store.putting() as put:
        picture = put(b"pixels")
        raise RuntimeError("the source broke")
    assert store.read(picture) == b"pixels"


def test_the_disk_is_flushed_once_and_only_when_something_was_written(store, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.sync", lambda: flushed.append(len(files_in(store))))
    store.put_many([b"a", b"b", b"c"])
    store.put_many([b"a", b"b"])
    assert flushed == [3]


def test_the_state_of_a_picture_changes_when_its_file_is_written_again(store):
    picture = store.put(b"pixels")
    before = store.state(picture)
    assert store.state(store.put(b"pixels")) == before
    store.path(picture).write_bytes(b"others!")
    assert store.state(picture) != before
    with pytest.raises(FileNotFoundError):
        store.state("0" * 64)
