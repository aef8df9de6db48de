"""Checkpoints are complete or absent, and a damaged one is passed over."""

import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from genai_assets import durable
from genai_assets.diffusion.checkpoints import CheckpointFolder


def save(folder: Path, *steps: int, keep: int = 2) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, {"weights": torch.full((64,), float(step))}, {"note": f"after {step}"})
    return checkpoints


def newest_step(checkpoints: CheckpointFolder) -> int | None:
    found = checkpoints.newest_valid()
    return found[0] if found else None


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


def test_the_newest_few_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 10)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_a_step_saved_again_replaces_the_one_before(tmp_path):
    assert newest_step(save(tmp_path, 3, 3)) == 3
    assert names(tmp_path) == ["step-00000003"]


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


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, remove])
@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, damage):
    checkpoints = save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / file)
    assert newest_step(checkpoints) == 1


def test_a_bit_flipped_anywhere_in_the_state_is_found(tmp_path):
    checkpoints = save(tmp_path, 1, 2)
    state = tmp_path / "step-00000002" / "state.safetensors"
    whole = state.read_bytes()
    for place in range(0, len(whole), 7):
        state.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert newest_step(checkpoints) == 1
    state.write_bytes(whole)
    assert newest_step(checkpoints) == 2


def test_a_receipt_of_another_step_or_of_nothing_is_passed_over(tmp_path):
    checkpoints = save(tmp_path, 1, 2)
    receipt = tmp_path / "step-00000002" / "checkpoint.json"
    says = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(says | {"step": 3}))
    assert newest_step(checkpoints) == 1
    receipt.write_text("{}")
    assert newest_step(checkpoints) == 1


def test_damaged_checkpoints_ahead_never_push_valid_ones_out(tmp_path):
    checkpoints = save(tmp_path, 8, 9)
    for name in ("step-00000008", "step-00000009"):
        truncate(tmp_path / name / "state.safetensors")
    save(tmp_path, 1, 2)
    assert newest_step(checkpoints) == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("fails", ["state", "receipt", "sync"])
def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path, monkeypatch, fails):
    checkpoints = save(tmp_path, 1, 2)
    before = durable.digest_tree(tmp_path)

    def fail(*arguments, **_):
        for path in arguments:
            if isinstance(path, Path) and not path.is_dir():
                path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "state": (safetensors.torch, "save_file"),
        "receipt": (durable, "write_json"),
        "sync": (durable, "sync_tree"),
    }[fails]
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(*target, fail)
        save(tmp_path, 3)
    assert durable.digest_tree(tmp_path) == before
    assert names(tmp_path) == ["step-00000001", "step-00000002"], "nothing half-written stays"
    assert newest_step(checkpoints) == 2


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    checkpoints = save(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.abcd.partial"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert newest_step(checkpoints) == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_cleared_run_has_no_folder(tmp_path):
    checkpoints = save(tmp_path / "run", 1)
    checkpoints.clear()
    assert not (tmp_path / "run").exists()
    checkpoints.clear()
