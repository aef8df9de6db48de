"""What comes back from the autoencoder, how far it is from the original, and a sheet to look at.

Belongs here: encode and decode of uint8 pictures, PSNR, and the comparison of sets as a callable's figure. The feature
extractor and KID belong to the evaluation room and are handed in.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets.diffusion.autoencoder.pictures import to_model_range, to_pixels

if TYPE_CHECKING:
    import torch

PictureDistance = Callable[[np.ndarray, np.ndarray], float]
"""Distance of two sets of *different* pictures, uint8 [N, S, S, 3] and [M, S, S, 3], as distributions: KID."""

_BATCH = 8
_SMALLEST_CELL = 128
_HEADER = 20


def reconstruct(autoencoder: Any, pictures: np.ndarray, device: "torch.device") -> np.ndarray:
    """Encode and decode pictures in fp32, with the latents' mean, as stock diffusers does.

    Args:
        autoencoder: an ``AutoencoderKL`` on ``device``.
        pictures: uint8 [N, S, S, 3].
        device: where it computes.

    Returns:
        uint8 [N, S, S, 3].

    Raises:
        FloatingPointError: a value is not finite.
    """
    import torch

    found = np.empty_like(pictures)
    for start in range(0, len(pictures), _BATCH):
        batch = to_model_range(pictures[start : start + _BATCH]).to(device)
        with torch.inference_mode():
            rendered = autoencoder.decode(autoencoder.encode(batch).latent_dist.mode()).sample.float()
        if not rendered.isfinite().all():
            raise FloatingPointError("the autoencoder renders values that are not finite")
        found[start : start + _BATCH] = to_pixels(rendered)
    return found


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in decibels; higher is nearer.

    ``10 log10(255² / mean squared error)`` over all pixels and channels of 0–255 values. A picture without any error
    counts as if one value were off by one, so that means stay finite (89 dB at 64 px).

    Args:
        originals, reconstructions: uint8 [N, H, W, 3].

    Returns:
        float64 [N].
    """
    error = originals.astype(np.float64) - reconstructions.astype(np.float64)
    squared = np.square(error).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squared, 1 / error[0].size))


def distance_of_halves(originals: np.ndarray, others: np.ndarray, distance: PictureDistance) -> float:
    """Distance of ``others`` from ``originals`` as distributions, never comparing a picture with its own original.

    A set and its own reconstructions are no independent samples: each picture finds its twin, and KID comes out too
    small. So one half's reconstructions are compared with the other half's originals, both ways, and the mean is taken.
    With the originals themselves as ``others`` it is the floor: what two halves of real pictures differ by.

    Args:
        originals: uint8 [N, S, S, 3], 4 or more.
        others: row i belongs to row i of ``originals``.
        distance: of two sets of pictures.
    """
    return float(0.5 * (distance(originals[::2], others[1::2]) + distance(originals[1::2], others[::2])))


def save_sheet(path: Path, columns: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write pictures side by side, a line for each, under the columns' names; small ones enlarged without smoothing.

    Args:
        path: a ``.png`` file.
        columns: (name, uint8 [N, S, S, 3]), all of the same N and S.
    """
    from PIL import Image, ImageDraw

    count, side = columns[0][1].shape[:2]
    cell = side * max(1, _SMALLEST_CELL // side)
    sheet = Image.new("RGB", (cell * len(columns), _HEADER + cell * count), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(columns):
        pen.text((column * cell + 4, 4), name, fill="black")
        for line, picture in enumerate(pictures):
            enlarged = Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * cell, _HEADER + line * cell))
    sheet.save(path)
