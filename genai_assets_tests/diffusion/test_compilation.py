"""When compiling repays itself, and that it computes the same."""

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*lru_cache:UserWarning")  # the compiler's
def test_a_compiled_unet_has_the_gradient_of_the_eager_one(tmp_path):
    """Torch 2.13 loses it below an upsampler when it lays convolutions out anew; the outputs stay right."""
    from diffusers import UNet2DConditionModel

    from genai_assets.diffusion.attention import training_attention
    from genai_assets.diffusion.devices import mixed_precision

    def gradient(compiled: bool) -> torch.Tensor:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            norm_num_groups=8,
        )
        called = compilation.compile_denoiser(unet, tmp_path) if compiled else unet
        noisy, told = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
        with training_attention(CPU), mixed_precision(CPU):
            called(noisy, torch.tensor([3, 700]), told, return_dict=False)[0].float().square().mean().backward()
        return torch.cat([weight.grad.flatten() for weight in unet.parameters() if weight.grad is not None])

    eager, compiled = gradient(compiled=False), gradient(compiled=True)
    assert len(eager) == len(compiled)
    assert (compiled - eager).norm() < 0.05 * eager.norm()
    assert any(tmp_path.rglob("*.so")), "the compiled code lies where it was asked for"
