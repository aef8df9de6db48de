"""Which device and which arithmetic a computation runs with, and how this process keeps its memory."""

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str = "auto") -> "torch.device":
    """CUDA when there is one and it is wanted, else the CPU.

    Raises:
        ValueError: ``"cuda"`` was asked for and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no CUDA device; set device to 'auto' or 'cpu'")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def mixed_precision(device: "torch.device") -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast: large products in bf16, weights and sums in fp32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16)


def frozen_dtype(device: "torch.device") -> "torch.dtype":
    """What weights that are not trained are kept in: bf16 on a GPU, where memory is short; fp32 on a CPU."""
    import torch

    return torch.float32 if device.type == "cpu" else torch.bfloat16


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of giving it back and asking for it anew.

    On a CPU each training step allocates and frees the same hundreds of megabytes. glibc gives large pieces back to the
    system at once, and each page that is taken again costs a fault: 115,000 a step of the embedded base, a seventh of
    its time. The process never holds more than it needed at its largest.

    Returns:
        bool: whether there is such a setting here; there is with glibc (``mallopt(3)``).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE) and mallopt(_TRIM_THRESHOLD, _NEVER))


# Parameters of mallopt, from malloc.h. The first one's value is bounded: larger pieces are the system's.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_PIECE, _NEVER = 1 << 25, (1 << 31) - 1
