"""Stable Diffusion 1, 2 and XL: trained here, loaded and drawn by plain diffusers; and the mathematics of a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, LCMScheduler
from torch import Tensor

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.stable_diffusion import StableDiffusion, StableDiffusionXL
from genai_assets.diffusion.training import train
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets_tests.diffusion.drawings import drawn_picture
from genai_assets_tests.diffusion.families import tiny_unet

# The noise scheduler that XL draws with, on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPTS = ["a red apple, flat style", "two owls"]
SEEDS = [3, 4]
PLAIN = TrainingConfig(steps=1)
MIN_SNR = TrainingConfig(steps=1, loss_weighting="min_snr", min_snr_gamma=5.0)

SAVERS: dict[str, Callable[[Path], None]] = {
    "epsilon": tiny_unet.save_stable_diffusion,
    "v_prediction": tiny_unet.save_stable_diffusion_with_velocity,
    "XL": tiny_unet.save_stable_diffusion_xl,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The saved pipelines."""
    out = tmp_path_factory.mktemp("bases")
    for kind, save in SAVERS.items():
        save(out / kind)
    return {kind: out / kind for kind in SAVERS}


@pytest.fixture(params=SAVERS)
def folder(folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return folders[request.param]


@pytest.fixture
def family(folder: Path) -> StableDiffusion:
    """A family with a freshly loaded pipeline."""
    return opened(folder)


@pytest.fixture
def xl(folders: dict[str, Path]) -> StableDiffusion:
    return opened(folders["XL"])


def opened(folder: Path) -> StableDiffusion:
    family = family_of(plain(folder))
    assert isinstance(family, StableDiffusion)
    return family


def plain(folder: Path) -> Any:
    """A pipeline as anyone loads it."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_draw(pipeline: Any, **more: Any) -> np.ndarray:
    """Drawn by the pipeline alone, uint8 [N, 16, 16, 3]."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pictures = pipeline(PROMPTS, num_inference_steps=2, guidance_scale=3.0, generator=generators, **more).images
    return np.stack([np.asarray(picture) for picture in pictures])


def drawn(family: StableDiffusion) -> np.ndarray:
    """Drawn as the project does."""
    pictures = family.draw(
        PROMPTS, seeds=SEEDS, steps=2, guidance_scale=3.0, side=family.resolution, on_step=lambda _done: None
    )
    return np.stack([np.asarray(picture) for picture in pictures])


def one_batch(family: StableDiffusion) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Clean latents, noise, levels and conditions."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand((len(PROMPTS), 3, 16, 16), generator=generator) * 2 - 1
    clean = family.encode_pictures(pictures)
    with torch.no_grad():
        conditions = family.encode_prompts(PROMPTS)
    return clean, torch.randn(clean.shape, generator=generator), torch.tensor([50, 800]), conditions


def learn(family: StableDiffusion, steps: int = 10) -> list[float]:
    """Train what needs a gradient on one repeated batch with fixed noise; the loss before each step, and at the end."""
    batch = one_batch(family)
    optimizer = torch.optim.AdamW([value for value in family.denoiser.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = family.losses(family.denoiser, *batch, PLAIN).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return [*losses, family.losses(family.denoiser, *batch, PLAIN).mean().item()]


def test_a_fully_trained_model_is_loaded_and_drawn_by_stock_diffusers(folder, family, tmp_path):
    before = drawn(family)
    losses = learn(family)
    assert losses[-1] < 0.8 * losses[0]
    family.pipeline.save_pretrained(tmp_path)
    stock = stock_draw(plain(tmp_path))
    assert (stock != before).any()
    assert (stock == drawn(opened(tmp_path))).all()


def test_a_lora_is_drawn_by_stock_diffusers_as_trained(folder, family, tmp_path):
    from peft import LoraConfig, get_peft_model_state_dict

    before = drawn(family)
    family.denoiser.requires_grad_(False)
    family.denoiser.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.lora_targets)))
    losses = learn(family)
    assert losses[-1] < losses[0]
    after = drawn(family)
    assert (after != before).any()
    family.save_lora(get_peft_model_state_dict(family.denoiser), tmp_path)

    pipeline = plain(folder)
    pipeline.load_lora_weights(tmp_path, local_files_only=True)
    assert np.abs(stock_draw(pipeline).astype(int) - after).max() <= 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_training_loop_made_is_drawn_by_stock_diffusers(method, folder, family, tmp_path):
    colours = ("red", "green", "blue", "yellow")
    rows = pd.DataFrame(
        {
            "id": [f"{colour}-disc" for colour in colours],
            "caption": [f"{colour} disc" for colour in colours],
            "keywords": [[]] * 4,
            "concept": colours,
            "style": "plain",
            "variant": False,
            "split": "train",
        }
    )
    before = drawn(family)
    (tmp_path / "cache").mkdir()
    build_training_cache(
        rows,
        lambda record, size: drawn_picture(record)[::4, ::4][: size[0], : size[1]],
        family,
        tmp_path / "cache",
        resolution=16,
        prompt_template="{caption}, {style}",
    )
    cache = TrainingCache.open(tmp_path / "cache")
    config = TrainingConfig(
        steps=12,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=0,
        decay_share=0,
        prompt_dropout=0.5,
        method=method,
        lora_rank=4,
        loss_weighting="min_snr",
        validate_every=12,
    )
    result = train(
        family,
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=cache.select("train"),  # the same pictures, so that a few steps show
        device=torch.device("cpu"),
    )
    assert result.validation_loss is not None and result.first_validation_loss is not None
    assert result.validation_loss < result.first_validation_loss
    after = drawn(family)
    assert (after != before).any()
    if method == "full":
        family.pipeline.save_pretrained(tmp_path / "model")
        pipeline = plain(tmp_path / "model")
    else:
        assert result.lora_layers is not None
        family.save_lora(result.lora_layers, tmp_path)
        pipeline = plain(folder)
        pipeline.load_lora_weights(tmp_path, local_files_only=True)
    assert np.abs(stock_draw(pipeline).astype(int) - after).max() <= 1


# The mathematics of a step


@pytest.mark.parametrize("config", [PLAIN, MIN_SNR], ids=["plain", "min-SNR"])
def test_the_loss_is_that_of_the_stock_noise_scheduler(folder, family, config):
    clean, noise, level, conditions = one_batch(family)
    with torch.no_grad():
        ours = family.losses(family.denoiser, clean, noise, level, conditions, config)
        pipeline = plain(folder)
        stock = DDPMScheduler.from_config(pipeline.scheduler.config)
        noisy = stock.add_noise(clean, noise, level)
        told, _, *pooled = pipeline.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        added = {"text_embeds": pooled[0], "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16]] * 2)} if pooled else None
        predicted = pipeline.unet(noisy, level, encoder_hidden_states=told, added_cond_kwargs=added).sample

    alpha = stock.alphas_cumprod[level]
    ratio = alpha / (1 - alpha)
    target, by_picture = noise, torch.ones(2)  # per unit of the clean picture's error
    if stock.config["prediction_type"] == "v_prediction":
        one = (2, 1, 1, 1)
        target = alpha.sqrt().view(one) * noise - (1 - alpha).sqrt().view(one) * clean
    if config is MIN_SNR:  # equations of Hang et al. 2023, section 3.4
        by_picture = torch.minimum(ratio, torch.tensor(5.0))
        by_picture /= ratio + 1 if target is not noise else ratio
        assert by_picture[0] < 0.99  # timestep 50 is beyond the cut
    wanted = (predicted - target).square().mean(dim=(1, 2, 3)) * by_picture
    torch.testing.assert_close(ours, wanted)


def test_min_snr_is_finite_where_nothing_of_the_picture_is_left(folders):
    velocity = opened(folders["v_prediction"])
    assert velocity.noise_schedule.alphas_cumprod[-1] == 0
    assert velocity.loss_weight(torch.tensor([999]), MIN_SNR).tolist() == [0]
    noise = opened(folders["epsilon"])
    noise.pipeline.scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    assert noise.loss_weight(torch.tensor([999]), MIN_SNR).tolist() == [1]


def test_the_schedule_is_the_pipelines_even_where_its_class_has_other_defaults(family):
    family.pipeline.scheduler = LCMScheduler()  # scaled_linear, where DDPM has linear
    torch.testing.assert_close(family.noise_schedule.alphas_cumprod, family.pipeline.scheduler.alphas_cumprod)


def test_models_that_were_trained_otherwise_are_refused(family):
    family.pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="continuous noise levels"):
        family.random_levels(1, PLAIN, torch.Generator())
    family.pipeline.scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type is 'sample'"):
        family.random_levels(1, PLAIN, torch.Generator())


def test_levels_cover_all_timesteps_evenly_unless_the_run_says_otherwise(folders):
    family = opened(folders["epsilon"])
    levels = family.random_levels(20_000, PLAIN, torch.Generator().manual_seed(0))
    assert levels.dtype == torch.int64
    assert (levels.min(), levels.max()) == (0, 999)
    share = torch.histc(levels.float(), bins=10, min=0, max=1000) / len(levels)
    assert (share - 0.1).abs().max() < 0.01
    again = family.random_levels(20_000, PLAIN, torch.Generator().manual_seed(0))
    assert torch.equal(levels, again)

    noisy = TrainingConfig(steps=1, level_mean=1.0, level_std=0.5)
    levels = family.random_levels(20_000, noisy, torch.Generator().manual_seed(0))
    assert levels.dtype == torch.int64
    assert abs(levels.float().median().item() - 731) < 10  # the sigmoid of 1
    assert family.random_levels(64, TrainingConfig(steps=1, level_mean=50.0), torch.Generator()).max() == 999
    assert family.even_levels(4).tolist() == [125, 375, 625, 875]


# What pictures and prompts become


def test_latents_are_what_the_stock_pipeline_decodes(family):
    if isinstance(family, StableDiffusionXL):
        family.pipeline.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 2.0, 1.5, 0.8])
    pictures = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = family.encode_pictures(pictures)
    assert not latents.requires_grad and latents.dtype == torch.float32

    def swap(_pipeline, _step, _timestep, tensors):
        return {**tensors, "latents": latents}

    stock = stock_draw(family.pipeline, callback_on_step_end=swap, output_type="np")
    with torch.no_grad():
        wanted = family.pipeline.vae(pictures, sample_posterior=False).sample
    wanted = (wanted / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert wanted.std() > 0.02
    np.testing.assert_allclose(stock, wanted, atol=1e-5)


def test_an_autoencoder_that_overflows_in_fp16_encodes_in_fp32_and_is_put_back(xl):
    pictures = torch.rand(1, 3, 16, 16)
    rounded = {name: value.half().float() for name, value in xl.pipeline.vae.state_dict().items()}
    xl.pipeline.vae.load_state_dict(rounded)
    exact = xl.encode_pictures(pictures)
    xl.pipeline.vae.half()
    torch.testing.assert_close(xl.encode_pictures(pictures), exact)
    assert xl.pipeline.vae.dtype == torch.float16


def test_prompts_of_any_length_are_told_in_one_shape(family):
    with torch.no_grad():
        told, again = family.encode_prompts(["", "an owl", "o" * 300]), family.encode_prompts(["an owl"])
    assert told["embeddings"].shape[:2] == (3, 77)
    for name, value in told.items():
        torch.testing.assert_close(value[1], again[name][0])
        assert (value[0] != value[1]).any()


def test_text_encoders_can_be_trained(family):
    sum(value.sum() for value in family.encode_prompts(PROMPTS).values()).backward()
    for part in family.text_encoder_parts:
        gradients = [weight.grad for weight in getattr(family.pipeline, part).parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_the_empty_prompt_of_training_is_what_drawing_is_guided_away_from(family):
    calls = []
    family.denoiser.register_forward_pre_hook(lambda _m, _given, named: calls.append(named), with_kwargs=True)
    stock_draw(family.pipeline)
    stock = calls.pop()
    with torch.no_grad():
        noisy, level = torch.randn(4, 4, 8, 8), torch.tensor([500] * 4)
        family.predict(family.denoiser, noisy, level, family.encode_prompts(["", "", *PROMPTS]))
    ours = calls.pop()
    torch.testing.assert_close(ours["encoder_hidden_states"], stock["encoder_hidden_states"])
    if isinstance(family, StableDiffusionXL):
        for name, value in stock["added_cond_kwargs"].items():
            torch.testing.assert_close(ours["added_cond_kwargs"][name], value)


def test_xl_is_told_the_size_of_pictures_that_are_not_square(xl):
    calls = []
    xl.denoiser.register_forward_pre_hook(lambda _m, _given, named: calls.append(named), with_kwargs=True)
    with torch.no_grad():
        xl.predict(xl.denoiser, torch.randn(1, 4, 8, 12), torch.tensor([5]), xl.encode_prompts(["an owl"]))
    assert calls[0]["added_cond_kwargs"]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]]


# Drawing


def test_drawing_tells_its_steps_and_is_the_same_in_any_batch(family):
    steps = []
    assert (family.resolution, family.side_multiple) == (16, 4)
    alone = family.draw(PROMPTS[1:], seeds=SEEDS[1:], steps=2, guidance_scale=3.0, side=16, on_step=steps.append)
    assert steps == [1, 2]
    assert np.abs(np.asarray(alone[0]).astype(int) - drawn(family)[1]).max() <= 1
    wide = family.draw(PROMPTS[1:], seeds=SEEDS[1:], steps=1, guidance_scale=1.0, side=24, on_step=lambda _done: None)
    assert wide[0].size == (24, 24)
