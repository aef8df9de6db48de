"""Pipelines of the UNet families from their stock classes: two small levels, random, the same at every call, with
nothing downloaded. Letters are their tokens; they draw 16 px."""

from pathlib import Path
from typing import Any

import torch

from genai_assets_tests.diffusion.families.tiny_clip import clip_config, clip_tokenizer

_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_stable_diffusion(folder: Path) -> None:
    """Save a ``StableDiffusionPipeline`` that predicts the noise, as version 1 does."""
    from diffusers import DDIMScheduler

    _save(folder, DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1))


def save_stable_diffusion_with_velocity(folder: Path) -> None:
    """Save a ``StableDiffusionPipeline`` that predicts the velocity, down to timesteps with nothing but noise."""
    from diffusers import DDIMScheduler

    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "steps_offset": 1}
    _save(folder, DDIMScheduler(**_SCHEDULE, **velocity, clip_sample=False))


def save_stable_diffusion_xl(folder: Path) -> None:
    """Save a ``StableDiffusionXLPipeline``."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    pooled, told_of_size = 8, 6 * 8
    unet = _unet(
        cross_attention_dim=2 * 16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + told_of_size,
    )
    StableDiffusionXLPipeline(
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading", steps_offset=1),
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(clip_config(hidden_size=16, projection_dim=16)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(hidden_size=16, projection_dim=pooled)),
        tokenizer_2=clip_tokenizer(),
    ).save_pretrained(folder)


def _save(folder: Path, noise_scheduler: Any) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=16),
        scheduler=noise_scheduler,
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(clip_config(hidden_size=16, projection_dim=16)),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".attn2." in name:  # else the prompt hardly matters
                weight *= 5
    return unet


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
