"""Which device and which arithmetic a computation runs with."""

import contextlib
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
