"""Checkpoints of a training run: complete or absent, verified when read.

Belongs here: how the state of a run reaches the disk, stays there, and comes back. What the state is (weights, their
average, the optimizer's moments, the best weights so far) and when it is saved belongs to ``training``.
"""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets import durable

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_STATE, _RECEIPT, _SUMS = "state.safetensors", "checkpoint.json", "SHA256SUMS"
# While a step is saved anew, the earlier save of it waits under ".replaced", where readers look for it, too.
_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})(\.replaced)?")
_UNFINISHED = ".step-*.partial"
# What reading a checkpoint that was damaged, or lies on a damaged disk, can meet. Any other failure (no permission, too
# many open files) says nothing about the checkpoint and must not pass for "there is none".
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written: above all, the disk is full. Those saved before are as they were."""


class CheckpointFolder:
    """The checkpoints of one run: ``FOLDER/step-00000100/`` and so on.

    A checkpoint is a folder with ``state.safetensors``, its receipt ``checkpoint.json``, and ``SHA256SUMS`` over both
    (``sha256sum --check`` reads it). It gets its name when all of it has reached the disk, and is believed only while
    its digests hold: one flipped bit anywhere makes it no checkpoint. One process writes; any number may read.

    Args:
        folder: made when the first checkpoint is saved.
        keep: so many of the newest steps stay.
        keep_every: steps divisible by this stay as well; None for no others.

    Raises:
        ValueError: ``keep`` or ``keep_every`` is below 1.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int | None = None):
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep and keep_every must be at least 1, not {keep} and {keep_every}")
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self._told: set[tuple[str, str]] = set()

    def save(self, step: int, tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, durably; only then drop what is no longer to be kept.

        Whatever claims to be ahead of ``step`` goes, too: either it was damaged and passed over, or the run went back.

        Args:
            step: steps done.
            tensors: every tensor the run needs to go on.
            facts: plain JSON values to go with them.

        Returns:
            Path: the checkpoint's folder.

        Raises:
            CheckpointNotSaved: the disk is full or not writable; checkpoints already there are as they were.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target, aside = self._places(step)
        workplace = None
        try:
            self._make_folder()
            for leftover in self.folder.glob(_UNFINISHED):  # of a process that was killed
                shutil.rmtree(leftover)
            workplace = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{target.name}.", suffix=".partial"))
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, workplace / _STATE)
            durable.write_json(workplace / _RECEIPT, {"step": step, "facts": dict(facts)})
            durable.write_text(workplace / _SUMS, _sums(workplace))
            durable.sync_tree(workplace)
            if target.exists():
                _drop(aside)
                os.rename(target, aside)
            os.rename(workplace, target)
            durable.sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            raise self._not_saved(target, tensors, error) from error
        finally:
            if workplace is not None:
                shutil.rmtree(workplace, ignore_errors=True)
        _drop(aside)
        self._retain(step)
        return target

    def newest_valid(self) -> "tuple[int, dict[str, Tensor], dict[str, Any]] | None":
        """The newest checkpoint whose digests hold, as (steps done, tensors, facts); None when there is none.

        What is passed over on the way is told of, once, as a warning of this module's logger.

        Raises:
            OSError: a checkpoint could not be read for a reason that is not its own, such as missing permission.
        """
        for step in self._steps():
            for folder in self._places(step):
                if folder.exists() and (read := self._read(folder, step)):
                    return step, *read
        return None

    def clear(self) -> None:
        """Remove every checkpoint of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_folder(self) -> None:
        """Make the folder so that it, too, is still there after a power cut."""
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in made:
            durable.sync_folder(folder.parent)

    def _not_saved(self, target: Path, tensors: "Mapping[str, Tensor]", error: Exception) -> CheckpointNotSaved:
        needed = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        try:
            free = f"{shutil.disk_usage(self.folder).free / 1e6:.1f} MB are free"
        except OSError:
            free = "how much is free cannot be told"
        number = error.errno if isinstance(error, OSError) else None
        message = (
            f"{target} could not be saved ({os.strerror(number) if number else error}): it needs {needed:.1f} MB, and "
            f"{free}. Earlier checkpoints are as they were: make room, or see that the folder can be written to, and "
            "run it again; it goes on from the newest"
        )
        return CheckpointNotSaved(number, message) if number else CheckpointNotSaved(message)

    def _retain(self, saved: int) -> None:
        """Drop what is not to be kept now that step ``saved`` is durable."""
        steps = self._steps()
        # What is ahead was damaged and passed over, or is a future given up: it must not push valid ones out.
        unwanted = [step for step in steps if step > saved]
        for step in steps[len(unwanted) + self.keep :]:
            if self.keep_every is None or step % self.keep_every:
                unwanted.append(step)
        for step in unwanted:
            for folder in self._places(step):
                _drop(folder)

    def _steps(self) -> list[int]:
        """Steps of what looks like a checkpoint, newest first; what only nearly does is told of."""
        steps = set()
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                steps.add(int(match[1]))
            else:
                unfinished = path.match(_UNFINISHED)
                self._tell(path, "it was never finished" if unfinished else "its name is not that of a checkpoint")
        return sorted(steps, reverse=True)

    def _places(self, step: int) -> tuple[Path, Path]:
        """Where the checkpoint of a step is, and where it waits while a new one takes its place."""
        name = f"step-{step:08d}"
        return self.folder / name, self.folder / f"{name}.replaced"

    def _read(self, folder: Path, step: int) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        """Tensors and facts when every digest holds; else None, and the reason is told."""
        from safetensors.torch import load_file

        try:
            if (folder / _SUMS).read_bytes() != _sums(folder).encode():
                reason = f"its files are not those that its {_SUMS} lists"
            else:
                receipt = json.loads((folder / _RECEIPT).read_text())
                if receipt["step"] == step:
                    return load_file(folder / _STATE), receipt["facts"]
                reason = f"it is the checkpoint of step {receipt['step']}"
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            reason = f"{Path(error.filename or folder).name}: {error.strerror}"
        self._tell(folder, reason)
        return None

    def _tell(self, path: Path, reason: str) -> None:
        if (path.name, reason) not in self._told:
            self._told.add((path.name, reason))
            _log.warning("passed over %s, which is no valid checkpoint: %s", path, reason)


def _sums(folder: Path) -> str:
    """The digest list of a checkpoint, in the format of ``sha256sum``."""
    return "".join(f"{durable.digest_file(folder / name)}  {name}\n" for name in (_RECEIPT, _STATE))


def _drop(folder: Path) -> None:
    """Remove a checkpoint if it is there; a process killed meanwhile leaves nothing that looks like one."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".{folder.name}.partial")
    try:
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:  # the new checkpoint is safe: no reason to end a training
        _log.warning("%s is no longer needed and could not be removed: %s", folder, error)
