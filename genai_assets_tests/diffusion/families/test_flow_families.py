import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families import PIPELINE_CLASSES, family_class, family_of
from genai_assets.diffusion.families.flow import LatentFlowFamily
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets_tests.diffusion.drawings import drawn_picture, drawn_rows
from genai_assets_tests.diffusion.families import tiny_transformer

pytestmark = [
    # DPM-Solver++ of diffusers, which Sana draws with, on numpy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # torch's RMS norm under autocast: right, only not as fast as it could be.
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]

PROMPTS = ["a red apple, flat style", "two owls"]
SEEDS = [3, 4]
SIDE = 32
WIDE = {"height": 32, "width": 64}
"""Not square: which side is which matters to transformers that are told each token's place."""
CONFIG = TrainingConfig(steps=1)


@dataclass(frozen=True)
class Case:
    """A pipeline, and how one asks the stock pipeline for what ``Family.draw`` draws without guidance and with."""

    save: Callable[[Path], None]
    unguided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    guided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 4.0})
    drawing_tolerance: float = 1e-4


CASES = {
    "Stable Diffusion 3": Case(tiny_transformer.save_stable_diffusion_3),
    "Flux": Case(tiny_transformer.save_flux),
    "Flux without a guidance input": Case(lambda folder: tiny_transformer.save_flux(folder, guidance_embeds=False)),
    "Sana": Case(
        tiny_transformer.save_sana,
        unguided={"guidance_scale": 1.0, "use_resolution_binning": False},
        guided={"guidance_scale": 4.0, "use_resolution_binning": False},
        drawing_tolerance=5e-3,  # its noise scheduler begins a little below sigma 1
    ),
    "Z-Image": Case(tiny_transformer.save_z_image, unguided={"guidance_scale": 0.0}, guided={"guidance_scale": 3.0}),
    "Qwen-Image": Case(
        tiny_transformer.save_qwen_image,
        unguided={"true_cfg_scale": 1.0},
        guided={"true_cfg_scale": 4.0, "negative_prompt": ["", ""]},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved pipeline."""
    out = tmp_path_factory.mktemp("base") / "model"
    case.save(out)
    return out


@pytest.fixture
def family(folder: Path) -> LatentFlowFamily:
    """A family with a freshly loaded pipeline."""
    return opened(folder)


def opened(folder: Path) -> LatentFlowFamily:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    family = family_of(pipeline)
    assert isinstance(family, LatentFlowFamily)
    return family


def stock_draw(family: LatentFlowFamily, arguments: dict[str, Any], steps: int = 2, **more: Any) -> Any:
    """Draw with the stock pipeline alone."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    size = {"height": SIDE, "width": SIDE}
    given = {**size, "max_sequence_length": 77, "generator": generators, "num_inference_steps": steps}
    return family.pipeline(list(PROMPTS), **{**given, **arguments, **more}).images


def drawn(family: LatentFlowFamily, guidance_scale: float = 1.0) -> np.ndarray:
    """Draw as the project does, [N, H, W, 3]."""
    pictures = family.draw(
        PROMPTS, seeds=SEEDS, steps=2, guidance_scale=guidance_scale, side=SIDE, on_step=lambda _done: None
    )
    return np.stack([np.asarray(picture) for picture in pictures])


def training_pictures(height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.rand((len(PROMPTS), 3, height, width), generator=torch.Generator().manual_seed(1)) * 2 - 1


def initial_noise(clean: Tensor) -> Tensor:
    """What the stock pipeline begins with for these seeds."""
    one = (1, *clean.shape[1:])
    return torch.cat([torch.randn(one, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])


def train(family: LatentFlowFamily, steps: int = 12) -> list[float]:
    """Train what needs a gradient on one repeated batch with fixed noise; the loss before each step, and at the end."""
    clean = family.encode_pictures(training_pictures())
    noise, level = initial_noise(clean), torch.tensor([0.4, 0.8])
    with torch.no_grad():
        conditions = family.encode_prompts(PROMPTS)
    learnt = [weight for weight in family.denoiser.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = family.losses(family.denoiser, clean, noise, level, conditions, CONFIG).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(family.losses(family.denoiser, clean, noise, level, conditions, CONFIG).mean().item())
    return losses


@contextmanager
def recorded_calls(denoiser: Any) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is called with, by the names of its arguments, and as ``output`` what it gives."""
    calls, signature = [], inspect.signature(denoiser.forward)

    def record(_module: Any, given: tuple, named: dict[str, Any], output: tuple) -> None:
        calls.append({**signature.bind(*given, **named).arguments, "output": output[0]})

    hook = denoiser.register_forward_hook(record, with_kwargs=True)
    yield calls
    hook.remove()


def unpacked(family: LatentFlowFamily, latents: Tensor) -> Tensor:
    """The stock pipeline's latents of wide pictures as [N, C, h, w]."""
    if latents.ndim == 4:
        return latents
    latents = family.pipeline._unpack_latents(latents, **WIDE, vae_scale_factor=family.pipeline.vae_scale_factor)
    return latents.squeeze(2) if latents.ndim == 5 else latents


def test_a_fully_trained_model_is_drawn_by_stock_diffusers_as_by_us(
    case: Case, folder: Path, family: LatentFlowFamily, tmp_path: Path
) -> None:
    before = drawn(family)
    losses = train(family)
    assert losses[-1] < 0.9 * losses[0]
    family.pipeline.save_pretrained(tmp_path / "trained")

    trained = opened(tmp_path / "trained")
    assert (drawn(trained) != before).any()
    assert (drawn(trained) == np.stack([np.asarray(one) for one in stock_draw(trained, case.unguided)])).all()


def test_a_lora_is_drawn_by_stock_diffusers_as_trained(
    case: Case, folder: Path, family: LatentFlowFamily, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    before = drawn(family)
    targets = list(family.lora_targets)
    family.denoiser.requires_grad_(False)
    family.denoiser.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    adapted = {name for name, _ in family.denoiser.named_modules() if name.endswith(".lora_A")}
    assert all(any(name.endswith(f".{target}.lora_A") for name in adapted) for target in targets)
    losses = train(family)
    assert losses[-1] < losses[0]
    after = drawn(family)
    family.save_lora(get_peft_model_state_dict(family.denoiser), tmp_path)

    stock = opened(folder)
    stock.pipeline.load_lora_weights(tmp_path, local_files_only=True)
    assert (after != before).any()
    assert (np.stack([np.asarray(one) for one in stock_draw(stock, case.unguided)]) == after).all()


def test_drawing_with_guidance_is_the_stock_pipelines(case: Case, family: LatentFlowFamily) -> None:
    done = []
    pictures = family.draw(PROMPTS, seeds=SEEDS, steps=2, guidance_scale=4.0, side=SIDE, on_step=done.append)
    assert done == [1, 2]
    assert {picture.size for picture in pictures} == {(SIDE, SIDE)}
    for ours, stock in zip(pictures, stock_draw(family, case.guided), strict=True):
        assert (np.asarray(ours) == np.asarray(stock)).all()


def test_a_picture_is_the_same_in_any_batch(family: LatentFlowFamily) -> None:
    alone = family.draw(
        PROMPTS[1:], seeds=SEEDS[1:], steps=2, guidance_scale=1.0, side=SIDE, on_step=lambda _done: None
    )
    assert np.abs(np.asarray(alone[0]).astype(int) - drawn(family)[1]).max() <= 1


def test_the_denoiser_is_told_in_training_what_the_stock_pipeline_tells_it(
    case: Case, family: LatentFlowFamily
) -> None:
    noisy = [initial_noise(family.encode_pictures(training_pictures(**WIDE)))]

    def keep_latents(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        noisy.append(unpacked(family, tensors["latents"]))
        return tensors

    with recorded_calls(family.denoiser) as stock:
        stock_draw(family, case.unguided, steps=3, callback_on_step_end=keep_latents, **WIDE)
    levels = family.pipeline.scheduler.timesteps / 1000
    # Sana's noise scheduler cuts timesteps to whole numbers.
    assert_close(levels, family.pipeline.scheduler.sigmas[:-1], 1e-3)
    with torch.no_grad(), recorded_calls(family.denoiser) as ours:
        conditions = family.encode_prompts(PROMPTS)
        for latents, level in zip(noisy, levels, strict=False):
            family.predict(family.denoiser, latents, level.expand(len(latents)), conditions)

    assert len(stock) == len(ours) == 3
    for told, tells in zip(stock, ours, strict=True):
        for name in (told.keys() | tells.keys()) - {"joint_attention_kwargs", "attention_kwargs"}:
            wanted, given = told.get(name), tells.get(name)
            if name.startswith("encoder_") and isinstance(given, Tensor):
                # Qwen-Image pads to the longest prompt of the batch. That our padding is not seen, the output shows.
                given = given[:, : wanted.shape[1]]  # pyright: ignore[reportOptionalMemberAccess]
            assert_close(given, wanted, 1e-3 if name == "output" else 1e-5)


def assert_close(ours: Any, stock: Any, tolerance: float) -> None:
    """Tensors within a tolerance, lists of them one by one, all else equal."""
    if isinstance(stock, Tensor):
        torch.testing.assert_close(ours.to(stock.dtype), stock, rtol=1e-5, atol=tolerance)
    elif isinstance(stock, list):
        for one, other in zip(ours, stock, strict=True):
            assert_close(one, other, tolerance)
    else:
        assert ours == stock


@pytest.mark.parametrize("case", [name for name in CASES if "Flux" not in name], indirect=True)
def test_the_empty_prompt_of_training_is_what_drawing_is_guided_away_from(case: Case, family: LatentFlowFamily) -> None:
    noise = initial_noise(family.encode_pictures(training_pictures()))
    with recorded_calls(family.denoiser) as stock:
        stock_draw(family, case.guided, steps=1)
    level = family.pipeline.scheduler.timesteps[0].expand(len(noise)) / 1000
    with torch.no_grad(), recorded_calls(family.denoiser) as ours:
        for prompts in (PROMPTS, ["", ""]):
            family.predict(family.denoiser, noise, level, family.encode_prompts(prompts))
    # Some call once for the empty prompt and once for the other, some once for both.
    told = torch.cat([as_batch(call["output"]) for call in stock]).split(len(noise))
    tells = [as_batch(call["output"]) for call in ours]
    assert len(told) == 2
    prompted, unprompted = [[bool((one - other).abs().max() < 1e-4) for other in told] for one in tells]
    assert sorted(prompted) == sorted(unprompted) == [False, True]
    assert prompted != unprompted


def as_batch(output: Any) -> Tensor:
    return torch.stack(output) if isinstance(output, list) else output


def test_a_perfect_velocity_draws_the_training_pictures(
    case: Case, family: LatentFlowFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = training_pictures(**WIDE)
    clean = family.encode_pictures(pictures)
    noise = initial_noise(clean)

    def perfect(noisy: Any = None, *_given: Any, hidden_states: Any = None, **_named: Any) -> tuple[Any]:
        velocity = noise - clean
        if isinstance(noisy, list):  # Z-Image's, whose velocity is towards the picture
            return ([-one.unsqueeze(1) for one in velocity],)
        packed = hidden_states is not None and hidden_states.ndim == 3
        return (family.pipeline._pack_latents(velocity, *velocity.shape) if packed else velocity,)

    with torch.no_grad():
        conditions = family.encode_prompts(PROMPTS)
        wanted = (reconstructed(family.pipeline.vae, pictures) / 2 + 0.5).clamp(0, 1)
    with monkeypatch.context() as patched:
        patched.setattr(family.denoiser, "forward", lambda *given, **named: perfect(*given, **named))
        level = torch.tensor([0.2, 0.7])
        predicted = family.predict(family.denoiser, family.add_noise(clean, noise, level), level, conditions)
        picture = torch.from_numpy(stock_draw(family, case.unguided, steps=3, output_type="np", **WIDE))
    torch.testing.assert_close(predicted, family.target(clean, noise, level))
    torch.testing.assert_close(picture.permute(0, 3, 1, 2), wanted, rtol=0, atol=case.drawing_tolerance)
    assert wanted.std() > 0.02


def reconstructed(autoencoder: Any, pictures: Tensor) -> Tensor:
    """Pictures coded and decoded by the stock autoencoder, without chance."""
    name = type(autoencoder).__name__
    if name == "AutoencoderKLQwenImage":
        return autoencoder(pictures.unsqueeze(2), sample_posterior=False).sample.squeeze(2)
    return autoencoder(pictures, **({} if name == "AutoencoderDC" else {"sample_posterior": False})).sample


def test_training_levels_are_shifted_as_drawing_shifts_them(case: Case, family: LatentFlowFamily) -> None:
    middle = TrainingConfig(steps=1, level_mean=0.0, level_std=1e-6)
    shape = family.encode_pictures(training_pictures()).shape[1:]
    ours = family.random_levels(3, middle, torch.Generator().manual_seed(0), shape)
    assert ours.shape == (3,) and ours.dtype == torch.float32
    if "sigmas" in inspect.signature(family.pipeline.scheduler.set_timesteps).parameters:
        stock_draw(family, case.unguided, sigmas=[0.5])
        stock = family.pipeline.scheduler.sigmas[0]
    else:
        stock_draw(family, case.unguided, steps=2)  # whose second sigma is 0.4995, before the shift
        stock = family.pipeline.scheduler.sigmas[1]
    torch.testing.assert_close(ours, stock.float().expand(3), rtol=0, atol=1e-3)


def test_every_known_pipeline_class_has_its_family() -> None:
    for name in PIPELINE_CLASSES:
        assert name in family_class(name).pipeline_classes


def test_the_resolution_is_known_before_the_model_is_loaded(folder: Path, family: LatentFlowFamily) -> None:
    assert family.resolution == type(family).resolution_of(folder)
    assert family.resolution % family.side_multiple == 0
    default = (1, *[family.resolution // family.pipeline.vae_scale_factor] * 2)
    assert family.level_shift() == family.level_shift(default)


def test_prompts_of_any_length_are_told_in_one_shape(family: LatentFlowFamily) -> None:
    with torch.no_grad():
        told = family.encode_prompts(["", "an owl", "o" * 300])
        again = family.encode_prompts(["an owl"])
    for name, value in told.items():
        assert value.shape == (3, *again[name].shape[1:])
        torch.testing.assert_close(value[1], again[name][0], rtol=1e-4, atol=1e-5)
    assert family.prompt_tokens == 77
    assert (told["embeddings"][0] != told["embeddings"][1]).any()


def test_text_encoders_can_be_trained(family: LatentFlowFamily) -> None:
    torch.cat([value.float().flatten() for value in family.encode_prompts(PROMPTS).values()]).sum().backward()
    for part in family.text_encoder_parts:
        gradients = [weight.grad for weight in getattr(family.pipeline, part).parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_denoiser_in_half_precision_learns_and_draws_much_the_same(family: LatentFlowFamily) -> None:
    """As on a GPU: the frozen denoiser of a LoRA is in bf16 there, while latents and levels come in fp32."""
    clean = family.encode_pictures(training_pictures())
    level = torch.tensor([0.3, 0.6])
    with torch.no_grad():
        conditions = family.encode_prompts(PROMPTS)
        exact = family.losses(family.denoiser, clean, initial_noise(clean), level, conditions, CONFIG)
        for dtype in (torch.float32, torch.bfloat16):
            family.denoiser.to(dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = family.losses(family.denoiser, clean, initial_noise(clean), level, conditions, CONFIG)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    family.prepare_for_drawing(torch.device("cpu"), torch.bfloat16)
    assert drawn(family).std() > 1


def test_stable_diffusion_3_without_t5_is_trained_all_the_same(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    tiny_transformer.save_stable_diffusion_3(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None, local_files_only=True)
    family = family_of(pipeline)
    assert isinstance(family, LatentFlowFamily)
    assert family.text_encoder_parts == ("text_encoder", "text_encoder_2")
    losses = train(family)
    assert losses[-1] < 0.9 * losses[0]


def test_pictures_of_many_shapes_are_learnt_by_the_training_loop(tmp_path: Path) -> None:
    from genai_assets.diffusion.training import train as run_training

    tiny_transformer.save_flux(tmp_path / "base")
    family = opened(tmp_path / "base")
    rows = drawn_rows()
    rows["width"], rows["height"] = [64, 48, 64] * 4, [64, 64, 48] * 4

    def read_picture(record_id: str, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.fromarray(drawn_picture(record_id)).resize((size[1], size[0])))

    (tmp_path / "cache").mkdir()
    build_training_cache(
        rows, read_picture, family, tmp_path / "cache", resolution=64, prompt_template="{caption}", buckets=True
    )
    cache = TrainingCache.open(tmp_path / "cache")
    assert len(cache.codes) == 3
    config = TrainingConfig(
        steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=0, ema_decay=0.5, method="lora", lora_rank=4
    )
    result = run_training(
        family,
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=cache.select("validation"),
        device=torch.device("cpu"),
    )
    assert result.validation_loss is not None
    assert result.first_validation_loss is not None
    assert result.validation_loss < 0.95 * result.first_validation_loss

    assert result.lora_layers is not None
    family.save_lora(result.lora_layers, tmp_path)
    stock = opened(tmp_path / "base")
    before = drawn(stock)
    stock.pipeline.load_lora_weights(tmp_path, local_files_only=True)
    # The loop merges a LoRA into the weights, which rounds a little.
    assert np.abs(drawn(stock).astype(int) - drawn(family)).max() <= 2
    assert np.abs(drawn(stock).astype(int) - before).max() > 2


def test_min_snr_is_refused_with_what_to_set_instead(family: LatentFlowFamily) -> None:
    with pytest.raises(ValueError, match="set it to 'family' or 'none'"):
        family.loss_weight(torch.tensor([0.5]), TrainingConfig(steps=1, loss_weighting="min_snr"))
