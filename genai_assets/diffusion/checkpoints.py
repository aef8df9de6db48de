"""Checkpoints of a training run: complete or absent, verified when read.

Belongs here: how the state of a run reaches the disk and comes back. What the state is belongs to ``training``.
"""

import json
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

_STATE, _RECEIPT = "state.safetensors", "checkpoint.json"


class CheckpointFolder:
    """The checkpoints of one run: ``FOLDER/step-00000100/`` and so on; the newest ``keep`` are kept."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps, durably, then drop the oldest beyond ``keep``.

        Args:
            step: steps done.
            tensors: every tensor the run needs to go on, contiguous.
            facts: plain JSON values to go with them.

        Raises:
            OSError: the disk is full or not writable; checkpoints already there are as they were.
        """
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.partial"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover)
        target = self.folder / f"step-{step:08d}"
        workplace = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{target.name}.", suffix=".partial"))
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, workplace / _STATE)
            receipt = {"step": step, "digest": durable.digest_file(workplace / _STATE), "facts": dict(facts)}
            durable.write_json(workplace / _RECEIPT, receipt)
            durable.sync_tree(workplace)
            if target.exists():
                shutil.rmtree(target)
            os.rename(workplace, target)
            durable.sync_folder(self.folder)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
        done = self._newest_first()
        # What claims to be ahead of this step was damaged and passed over: it must not push valid ones out.
        ahead = [folder for folder in done if folder.name > target.name]
        for old in ahead + done[len(ahead) + self.keep :]:
            shutil.rmtree(old)
        return target

    def newest_valid(self) -> "tuple[int, dict[str, Tensor], dict[str, Any]] | None":
        """The newest checkpoint whose digest holds, as (steps done, tensors, facts); None when there is none."""
        from safetensors.torch import load_file

        for folder in self._newest_first():
            state, receipt_path = folder / _STATE, folder / _RECEIPT
            if not (state.is_file() and receipt_path.is_file()):
                continue
            try:
                receipt = json.loads(receipt_path.read_text())
            except ValueError:  # a damaged receipt vouches for nothing
                continue
            if receipt.keys() < {"step", "digest", "facts"} or folder.name != f"step-{receipt['step']:08d}":
                continue
            if durable.digest_file(state) == receipt["digest"]:
                return receipt["step"], load_file(state), receipt["facts"]
        return None

    def clear(self) -> None:
        """Remove every checkpoint of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name)), reverse=True)
