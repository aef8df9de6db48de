"""When compiling repays itself, and that it computes the same."""

import shutil

import pytest
import torch

from genai_assets.diffusion import compilation
from genai_assets.diffusion.compilation import can_compile, way_to_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "minutes", "steps", "way"),
    [
        (CPU, 5.0, None, "blocks"),
        (CPU, 5.0, 1000, "blocks"),
        (CPU, 60.0, None, "whole"),
        (CPU, 0.5, None, None),
        (CPU, 5.0, 20, None),
        (GPU, 60.0, None, None),
    ],
)
def test_only_a_long_run_on_a_cpu_is_compiled_for(monkeypatch, device, minutes, steps, way):
    monkeypatch.setattr(compilation, "can_compile", lambda: True)
    assert way_to_compile(device, minutes=minutes, steps=steps) == way


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile()
    assert not way_to_compile(CPU, minutes=60, steps=None)


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


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="this machine has no C++ compiler or no headers of Python")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*lru_cache:UserWarning")  # the compiler's
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("lora", [False, True])
def test_blocks_that_are_alike_are_compiled_once_with_the_gradient_of_the_eager_ones(lora, tmp_path):
    from genai_assets.diffusion.attention import training_attention
    from genai_assets.diffusion.base_model import new_pipeline
    from genai_assets.diffusion.config import DenoiserConfig, TrainingConfig
    from genai_assets.diffusion.learner import add_lora

    shape = DenoiserConfig(hidden_size=32, depth=4, num_heads=2, axes_dim=(8, 8), bottleneck_size=16)
    denoiser = new_pipeline(shape, resolution=32, seed=0).transformer.train()
    if lora:
        denoiser = add_lora(denoiser, ("to_q", "to_out.0"), TrainingConfig(steps=1, lora_rank=2))
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():  # gates, the last layer and adapters begin at zero, and would pass no gradient on
        for value in denoiser.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=dice))
    told = torch.randn(2, 5, 384, generator=torch.Generator().manual_seed(1))
    noisy = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def gradient() -> torch.Tensor:
        denoiser.zero_grad(set_to_none=True)
        with training_attention(CPU):
            found = denoiser(noisy, torch.tensor([300.0, 700.0]), told, return_dict=False)[0]
        found.float().square().mean().backward()
        return torch.cat([weight.grad.flatten() for weight in denoiser.parameters() if weight.grad is not None])

    eager = gradient()
    assert eager.norm() > 0
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert compilation.compile_denoiser(denoiser, tmp_path, "blocks") is denoiser
    compiled = gradient()
    # One graph for four blocks; with adapters the first block's input needs no gradient, so it has one of its own.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if lora else 1)
    assert (compiled - eager).norm() < 0.01 * eager.norm()
    compilation.forget_compiled(denoiser)
    assert torch.equal(gradient(), eager)
