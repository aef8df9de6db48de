"""A stock Stable Diffusion pipeline of random weights and the size of a stamp, and pictures to teach it with."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE = 32
_LATENT_CHANNELS = 4


def tiny_autoencoder() -> Any:
    """An ``AutoencoderKL`` that halves 32 px once, the same at every call.

    Its weights are random, but its latents are as a trained one's: of about unit size, and hardly noisy.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    with torch.no_grad():
        quantizer: Any = autoencoder.quant_conv
        quantizer.weight[:_LATENT_CHANNELS] *= 4
        quantizer.bias[_LATENT_CHANNELS:] = -12.0
    return autoencoder


def save_stable_diffusion(folder: Path) -> None:
    """Save a complete ``StableDiffusionPipeline`` that draws 32 px."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    words += [f"{letter}</w>" for letter in string.ascii_lowercase]
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ),
        tokenizer=CLIPTokenizer(
            vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        unet=UNet2DConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def drawn_pictures(split: str) -> np.ndarray:
    """Discs of any colour, place and size on pale grounds, uint8 [N, 32, 32, 3]; the same at every call."""
    seed, count = {"train": (1, 48), "validation": (2, 12)}[split]
    dice = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for picture in pictures:
        picture[:], colour = 255 - dice.integers(40, size=3), dice.integers(256, size=3)
        x, y, radius = dice.uniform((8, 8, 4), (24, 24, 12))
        picture[np.hypot(across - x, down - y) < radius] = colour
    return pictures
