"""Which device is chosen, and with which arithmetic."""

import ctypes
import subprocess
import sys

import pytest
import torch

from genai_assets.diffusion.devices import choose_device, keep_freed_memory, mixed_precision


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"), [("cpu", True, "cpu"), ("auto", True, "cuda"), ("auto", False, "cpu")]
)
def test_a_gpu_is_taken_when_there_is_one_and_it_is_wanted(monkeypatch, wanted, there, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(wanted).type == chosen


def test_a_gpu_that_is_asked_for_and_missing_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA device; set device to"):
        choose_device("cuda")


def test_mixed_precision_multiplies_in_bf16_and_keeps_weights_in_fp32():
    layer = torch.nn.Linear(4, 4)
    with mixed_precision(torch.device("cpu")):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


_FREES_A_HUNDRED_MEGABYTES = """
import ctypes, sys
import torch
from genai_assets.diffusion.devices import keep_freed_memory

class State(ctypes.Structure):  # struct mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

state = ctypes.CDLL(None).mallinfo2
state.restype = State
if sys.argv[1] == "keep":
    assert keep_freed_memory()
parts = [torch.ones(7_000_000) for _ in range(4)]
del parts
print(state().fordblks >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="mallinfo2 is of glibc 2.33 and later")
def test_memory_that_is_freed_is_kept_for_the_next_step():
    # glibc's own count of the megabytes that it holds and nobody uses; not every kernel counts page faults.
    def held(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FREES_A_HUNDRED_MEGABYTES, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert held("keep") >= 100 > held("give back")


def test_where_there_is_no_such_setting_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
