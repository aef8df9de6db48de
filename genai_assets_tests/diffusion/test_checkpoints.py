"""Checkpoints are complete or absent, and a damaged one is passed over."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_assets import durable
from genai_assets.diffusion.checkpoints import CheckpointFolder, CheckpointNotSaved

FILES = ("state.safetensors", "checkpoint.json", "SHA256SUMS")


def save(folder: Path, *steps: int, **retention: Any) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, **retention)
    for step in steps:
        checkpoints.save(step, {"weights": torch.full((64,), float(step))}, {"note": f"after {step}"})
    return checkpoints


def newest_step(checkpoints: CheckpointFolder) -> int | None:
    """The step of the newest valid checkpoint, which holds just what was saved for it."""
    found = checkpoints.newest_valid()
    if found is None:
        return None
    step, tensors, facts = found
    assert facts == {"note": f"after {step}"}
    assert tensors.keys() == {"weights"}
    assert torch.equal(tensors["weights"], torch.full((64,), float(step)))
    return step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    found = save(tmp_path, 7).newest_valid()
    assert found is not None
    step, tensors, facts = found
    assert (step, facts) == (7, {"note": "after 7"})
    assert torch.equal(tensors["weights"], torch.full((64,), 7.0))


def test_without_checkpoints_there_is_none(tmp_path):
    assert CheckpointFolder(tmp_path).newest_valid() is None
    assert CheckpointFolder(tmp_path / "absent").newest_valid() is None


def test_a_folder_deep_in_nothing_is_made(tmp_path):
    assert newest_step(save(tmp_path / "runs" / "one", 1)) == 1


def test_the_digest_list_is_one_that_sha256sum_reads(tmp_path):
    folder = tmp_path / "step-00000001"
    save(tmp_path, 1)
    assert sorted(names(folder)) == sorted(FILES)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


# What is kept


def test_the_newest_few_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 10)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    save(tmp_path, *range(0, 13, 2), keep=1, keep_every=5)
    assert names(tmp_path) == ["step-00000000", "step-00000010", "step-00000012"]


@pytest.mark.parametrize("retention", [{"keep": 0}, {"keep_every": 0}])
def test_a_retention_that_keeps_nothing_is_a_clear_error(tmp_path, retention):
    with pytest.raises(ValueError, match="must be at least 1"):
        CheckpointFolder(tmp_path, **retention)


def test_a_step_saved_again_replaces_the_one_before(tmp_path):
    checkpoints = save(tmp_path, 3)
    checkpoints.save(3, {"weights": torch.zeros(2)}, {"note": "again"})
    found = checkpoints.newest_valid()
    assert found is not None
    assert found[2] == {"note": "again"}
    assert names(tmp_path) == ["step-00000003"]


def test_between_two_saves_of_a_step_the_earlier_one_is_still_found(tmp_path):
    checkpoints = save(tmp_path, 3)
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000003.replaced")
    assert newest_step(checkpoints) == 3
    save(tmp_path, 3)
    assert newest_step(checkpoints) == 3
    assert names(tmp_path) == ["step-00000003"]


def test_damaged_checkpoints_ahead_never_push_valid_ones_out(tmp_path):
    checkpoints = save(tmp_path, 8, 9)
    for name in ("step-00000008", "step-00000009"):
        truncate(tmp_path / name / "state.safetensors")
    save(tmp_path, 1, 2)
    assert newest_step(checkpoints) == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_cleared_run_has_no_folder(tmp_path):
    checkpoints = save(tmp_path / "run", 1)
    checkpoints.clear()
    assert not (tmp_path / "run").exists()
    checkpoints.clear()


# What is damaged


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, remove, become_a_folder])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, damage):
    checkpoints = save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / file)
    assert newest_step(checkpoints) == 1


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CheckpointFolder, dict[Path, bytes]]]:
    """A checkpoint after step 1 and one after step 2, and every byte of the second."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoints = save(folder, 1, 2)
    yield (
        checkpoints,
        {folder / "step-00000002" / name: (folder / "step-00000002" / name).read_bytes() for name in FILES},
    )


def damaged(whole_files: tuple[CheckpointFolder, dict[Path, bytes]], file: Path, data: bytes) -> int | None:
    checkpoints, whole = whole_files
    file.write_bytes(data)
    try:
        return newest_step(CheckpointFolder(checkpoints.folder))
    finally:
        file.write_bytes(whole[file])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_byte_anywhere_is_ever_believed(whole_files, data):
    file, whole = data.draw(st.sampled_from(sorted(whole_files[1].items())))
    place, change = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    flipped = whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
    assert damaged(whole_files, file, flipped) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_truncation_or_addition_anywhere_is_ever_believed(whole_files, data):
    file, whole = data.draw(st.sampled_from(sorted(whole_files[1].items())))
    cut = data.draw(st.integers(0, len(whole)))
    added = data.draw(st.binary(max_size=20))
    changed = whole[:cut] + added
    assert damaged(whole_files, file, changed) == (2 if changed == whole else 1)


def test_each_byte_of_the_receipt_and_of_the_digest_list_is_vouched_for(whole_files):
    for file, whole in whole_files[1].items():
        if file.name != "state.safetensors":
            for place in range(len(whole)):
                flipped = whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :]  # a letter's case, for one
                assert damaged(whole_files, file, flipped) == 1, (file.name, place)


def test_a_sound_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path):
    checkpoints = save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000003")
    assert newest_step(checkpoints) == 2


def test_what_is_passed_over_is_told_of_once_with_its_reason(tmp_path, caplog):
    checkpoints = save(tmp_path, 1, 2, 3, 4, 5, keep=5)
    flip_a_bit(tmp_path / "step-00000005" / "state.safetensors")
    remove(tmp_path / "step-00000004" / "SHA256SUMS")
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000007")
    (tmp_path / ".step-00000006.abcd.partial").mkdir()
    (tmp_path / "step-0000009").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [newest_step(checkpoints) for _ in range(3)] == [2, 2, 2]
    told = sorted(record.getMessage() for record in caplog.records)
    reasons = {
        ".step-00000006.abcd.partial": "it was never finished",
        "step-00000004": "SHA256SUMS: No such file or directory",
        "step-00000005": "its files are not those that its SHA256SUMS lists",
        "step-00000007": "it is the checkpoint of step 3",
        "step-0000009": "its name is not that of a checkpoint",
    }
    assert told == [
        f"passed over {tmp_path / name}, which is no valid checkpoint: {reason}" for name, reason in reasons.items()
    ]


def test_what_cannot_be_read_for_want_of_permission_is_not_taken_for_damaged(tmp_path, monkeypatch):
    """Root may read everything, so the refusal is injected."""
    checkpoints = save(tmp_path, 1, 2)

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(durable, "digest_file", refuse)
    with pytest.raises(PermissionError):
        checkpoints.newest_valid()


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    checkpoints = save(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.abcd.partial"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert newest_step(checkpoints) == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


# What cannot be written


def in_a_fork(work: Callable[[], str]) -> str:
    """What ``work`` returns in a forked process, whose limits may be lowered for good."""
    reader, writer = os.pipe()  # no file: it could not be written within the limits
    with warnings.catch_warnings():
        # From Python 3.12 on; the child takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("room", [0, 100, 300])
def test_a_write_that_the_system_refuses_stops_with_a_clear_error_and_the_last_checkpoint(tmp_path, room):
    """A real write that fails half-way: files may not grow beyond so many bytes (the state has 340)."""
    checkpoints = save(tmp_path, 1, 2)
    before = durable.digest_tree(tmp_path)

    def save_within_limits() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with EFBIG, as on a full disk with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            save(tmp_path, 3)
        except CheckpointNotSaved as error:
            return str(error)
        return "saved"

    said = in_a_fork(save_within_limits)
    assert f"{tmp_path / 'step-00000003'} could not be saved" in said
    assert "File too large" in said
    assert "it needs 0.0 MB, and " in said and "MB are free" in said
    assert durable.digest_tree(tmp_path) == before
    assert names(tmp_path) == ["step-00000001", "step-00000002"], "nothing half-written stays"
    assert newest_step(checkpoints) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_when_flushed_leaves_the_last_checkpoint(tmp_path, monkeypatch, number):
    """Each flush of a save in turn: only there do many disks tell that they are full, or broken."""
    flush, flushes = os.fsync, 0

    def failing_at(nth: int) -> Callable[[int], None]:
        calls = iter(range(1, 1000))

        def fail_at_nth(descriptor: int) -> None:
            nonlocal flushes
            flushes = next(calls)
            if flushes == nth:
                raise OSError(number, os.strerror(number))
            flush(descriptor)

        return fail_at_nth

    refused = 0
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        checkpoints = save(folder, 1, 2)
        monkeypatch.setattr(os, "fsync", failing_at(nth))
        try:
            save(folder, 3)
        except CheckpointNotSaved as error:
            refused += 1
            assert error.errno == number
            assert names(folder)[:2] == ["step-00000001", "step-00000002"]
            # When the very last flush fails, the new one is whole, too, only not sure to outlive a power cut.
            assert newest_step(checkpoints) == (3 if "step-00000003" in names(folder) else 2)
        else:
            break
        finally:
            monkeypatch.setattr(os, "fsync", flush)
    assert refused == flushes >= 8, "every flush was made to fail once"


def test_a_save_flushes_its_files_before_its_name_and_its_name_before_anything_is_dropped(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    seen: list[str] = []

    def watch(module: Any, name: str, tell: Callable[..., str]) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **more: (seen.append(tell(*given)), real(*given, **more))[1])

    def path_of(descriptor: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))

    watch(os, "fsync", lambda descriptor: f"flush {path_of(descriptor).name.split('.')[-1]}")
    watch(os, "rename", lambda source, target: f"{Path(source).suffix or 'step'} becomes {Path(target).name}")
    save(tmp_path, 3)
    named = seen.index(".partial becomes step-00000003")
    dropped = seen.index("step becomes .step-00000001.partial")
    assert {"flush safetensors", "flush json", "flush SHA256SUMS", "flush partial"} <= set(seen[:named])
    assert f"flush {tmp_path.name}" in seen[named:dropped]


def test_a_folder_that_cannot_be_made_is_told_of_as_such(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointNotSaved, match=r"file/run/step-00000001 could not be saved \(Not a directory\)"):
        save(tmp_path / "file" / "run", 1)


def test_an_old_checkpoint_that_cannot_be_removed_is_no_reason_to_end(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1, 2)
    real = shutil.rmtree

    def refuse(path: Path, **more: Any) -> None:
        if "step-00000001" in str(path):
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path, **more)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        assert newest_step(save(tmp_path, 3)) == 3
    assert "step-00000001 is no longer needed and could not be removed" in caplog.text


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    folder = save(tmp_path, 4).folder / "step-00000004"
    assert safetensors.torch.load_file(folder / "state.safetensors")["weights"][0] == 4
    assert json.loads((folder / "checkpoint.json").read_text())["facts"] == {"note": "after 4"}
