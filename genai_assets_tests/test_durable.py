"""Writes are all or nothing, and content names are stable."""

import errno
import hashlib
import json
import math
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets import durable

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def turned(value):
    """The same value with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, step, existed):
    path = tmp_path / "file.txt"
    if existed:
        path.write_text("old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, step, fail)
        durable.write_text(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == ([("file.txt", "old")] if existed else [])


def test_a_block_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), durable.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.txt", "old")]


def test_what_takes_a_files_place_is_on_the_disk_before_it_does(tmp_path, monkeypatch):
    done: list[str] = []
    real = {"fsync": os.fsync, "replace": os.replace}

    def spy_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real["fsync"](descriptor)

    def spy_replace(source, target) -> None:
        done.append("rename")
        real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    durable.write_text(tmp_path / "file.txt", "new")
    assert done == ["file", "rename", "folder"]


def test_a_written_file_can_be_read_by_others_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    durable.write_json(path, {"ü": 1})
    assert path.read_text() == '{\n  "ü": 1\n}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_who_may_read_it(tmp_path, mode):
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(mode)
    durable.write_text(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@given(value=plain_values)
def test_the_order_of_keys_changes_no_fingerprint(value):
    assert durable.canonical_json(turned(value)) == durable.canonical_json(value)
    assert durable.digest_json(turned(value)) == durable.digest_json(value)


@given(one=plain_values, other=plain_values)
def test_equal_text_means_equal_values(one, other):
    assert json.loads(durable.canonical_json(one)) == one
    if durable.canonical_json(one) == durable.canonical_json(other):
        assert one == other


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": object()}, {"a": {1, 2}}])
def test_a_value_json_has_no_form_for_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        durable.canonical_json(value)


@given(data=st.binary(max_size=100))
def test_a_files_digest_is_its_bytes_digest(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(data)
    assert durable.digest_file(path) == durable.digest_bytes(data) == hashlib.sha256(data).hexdigest()


def test_a_file_longer_than_a_chunk_is_digested_whole(tmp_path):
    data = bytes(range(256)) * 4100
    (tmp_path / "long").write_bytes(data)
    assert durable.digest_file(tmp_path / "long") == hashlib.sha256(data).hexdigest()


def test_a_trees_digests_name_every_file_by_its_path(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "two").write_text("2")
    (tmp_path / "a").write_text("1")
    assert durable.digest_tree(tmp_path) == {"a": durable.digest_bytes(b"1"), "b/c/two": durable.digest_bytes(b"2")}
    assert list(durable.digest_tree(tmp_path)) == ["a", "b/c/two"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which file a descriptor is of")
def test_syncing_a_tree_flushes_every_file_and_folder(tmp_path, monkeypatch):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "two").write_text("2")
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    durable.sync_tree(tmp_path)
    assert sorted(flushed) == sorted(str(tmp_path / name) for name in ("", "b", "b/c", "b/c/two"))
