"""Pictures to train and to validate on, read by number: from a memory-mapped file, an array, or any function.

Belongs here: the one form in which the loop asks for pictures, their range in the model, and writing the file. Which
pictures is for others to say.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Square RGB pictures of one size.

    Attributes:
        read: gives the pictures of some numbers (int [N], each in [0, count)) as uint8 [N, S, S, 3].
        count: how many there are.
    """

    read: Callable[[np.ndarray], np.ndarray]
    count: int

    @classmethod
    def of_array(cls, array: np.ndarray) -> "Pictures":
        """Pictures of an array uint8 [N, S, S, 3]; a memory map is read as far as it is asked for."""
        return cls(functools.partial(_take, array), len(array))

    @classmethod
    def of_file(cls, path: Path, rows: Sequence[int] | np.ndarray | None = None) -> "Pictures":
        """Pictures of a ``.npy`` file, all or those of ``rows``. Only the path goes along to another process."""
        chosen = np.arange(len(np.load(path, mmap_mode="r"))) if rows is None else np.asarray(rows, dtype=np.int64)
        return cls(functools.partial(_take_from_file, path, chosen), len(chosen))

    def __len__(self) -> int:
        return self.count

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Pictures of some numbers, checked.

        Raises:
            ValueError: what was read is not uint8 [N, S, S, 3].
        """
        pictures = self.read(numbers)
        wanted = (len(numbers), *pictures.shape[1:2] * 2, 3)
        if pictures.dtype != np.uint8 or pictures.shape != wanted:
            raise ValueError(
                f"pictures must be uint8 [{len(numbers)}, S, S, 3], square RGB of 0–255; "
                f"got {pictures.dtype} {list(pictures.shape)}"
            )
        return pictures


def write_pictures(
    path: Path, read_picture: Callable[[str], np.ndarray], ids: Sequence[str], *, resolution: int
) -> Pictures:
    """Write the pictures of ``ids`` to a ``.npy`` file and open it.

    Args:
        path: the file; replaced when it is there.
        read_picture: gives the picture of an id as uint8 [S, S, 3] RGB.
        ids: in the order of their numbers.
        resolution: S, pixels a side.
    """
    pictures = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(ids), resolution, resolution, 3))
    for number, record_id in enumerate(ids):
        pictures[number] = read_picture(record_id)
    pictures.flush()
    return Pictures.of_file(path)


def to_model_range(pictures: np.ndarray) -> "Tensor":
    """uint8 [N, S, S, 3] RGB to float32 [N, 3, S, S] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_pixels(values: "Tensor") -> np.ndarray:
    """The way back: float [N, 3, S, S], clamped to [-1, 1], to uint8 [N, S, S, 3]."""
    return values.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _take(array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return array[numbers]


def _take_from_file(path: Path, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.load(path, mmap_mode="r")[rows[numbers]]
