"""A complete pipeline with a random denoiser of one block: loads and draws like a real one, in no time."""

from pathlib import Path

import torch

from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.config import DenoiserConfig


def save_tiny_pipeline(folder: Path, shape: DenoiserConfig) -> None:
    """Save a 64 px pipeline of this shape to ``folder``, the same at every call."""
    pipeline = new_pipeline(shape, resolution=64, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a new denoiser's gates are zero: without this every prompt gives the same picture
        for weight in pipeline.transformer.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    pipeline.save_pretrained(folder)
