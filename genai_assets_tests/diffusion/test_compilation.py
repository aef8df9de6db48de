"""When compiling repays itself. Compiling itself takes too long to be tested here."""

import shutil

import pytest
import torch

from genai_assets.diffusion import compilation
from genai_assets.diffusion.compilation import can_compile, repays_itself

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "minutes", "steps", "pays"),
    [
        (CPU, 5.0, None, True),
        (CPU, 5.0, 1000, True),
        (CPU, 0.5, None, False),
        (CPU, 5.0, 20, False),
        (GPU, 60.0, None, False),
    ],
)
def test_only_a_long_run_on_a_cpu_is_compiled_for(monkeypatch, device, minutes, steps, pays):
    monkeypatch.setattr(compilation, "can_compile", lambda: True)
    assert repays_itself(device, minutes=minutes, steps=steps) is pays


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile()
    assert not repays_itself(CPU, minutes=60, steps=None)


def test_without_pythons_headers_nothing_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert not can_compile()
    (tmp_path / "Python.h").touch()
    assert can_compile()
