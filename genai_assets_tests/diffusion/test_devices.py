"""Which device is chosen, and with which arithmetic."""

import pytest
import torch

from genai_assets.diffusion.devices import choose_device, mixed_precision


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
