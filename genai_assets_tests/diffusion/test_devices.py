"""Which device is chosen, and with which arithmetic."""

import ctypes
import platform
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


_ALLOCATES_AGAIN_AND_AGAIN = """
import resource, sys
import torch
from genai_assets.diffusion.devices import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    parts = [torch.ones(7_000_000) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_asked_for_again():
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _ALLOCATES_AGAIN_AND_AGAIN, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") * 10 < faults("give back")


def test_where_there_is_no_such_setting_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
