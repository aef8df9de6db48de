"""How near pictures drawn with a backend come to those of exact arithmetic: fp32, eager.

Belongs here: the measure. Which pictures are compared is the caller's choice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_DECIBELS = 99.0
"""Of equal pictures, whose ratio is infinite: a figure that every report can hold."""


def psnr(pictures: Sequence[Any] | np.ndarray, reference: Sequence[Any] | np.ndarray) -> float:
    """Peak signal-to-noise ratio over all pictures together, dB: 48 is half a step of 256 off everywhere.

    Args:
        pictures: PIL pictures, or uint8 [N, H, W, 3].
        reference: as many, of the same size.

    Raises:
        ValueError: they differ in number or size, or there are none.
    """
    ours, theirs = (np.stack([np.asarray(picture) for picture in some]) for some in (pictures, reference))
    if ours.shape != theirs.shape:
        raise ValueError(f"pictures of shape {ours.shape} cannot be compared with {theirs.shape}")
    error = float(np.mean(np.square(ours.astype(np.float64) - theirs.astype(np.float64))))
    return min(MOST_DECIBELS, 10 * math.log10(255**2 / error)) if error else MOST_DECIBELS


def parity_with_exact(
    exact: Any,
    pictures: Sequence[Any] | np.ndarray,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
) -> float:
    """PSNR in dB of pictures against the same ones drawn in fp32 by eager torch.

    Args:
        exact: a ``sampling.Drawer`` that was loaded with ``exact=True`` from the same folder.
        pictures: what was drawn of these prompts, with these seeds, steps and guidance.
        prompts, seeds, steps, guidance_scale: as for ``Drawer.draw``.
    """
    reference = exact.draw(prompts, seeds=seeds, steps=steps, guidance_scale=guidance_scale)
    return psnr(pictures, reference)
