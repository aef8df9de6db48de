"""Aspect-ratio buckets: the few sizes that pictures of a dataset are brought to, so that wide ones stay wide.

Belongs here: which sizes there are, which one a picture goes to, and bringing it there. A batch is of one bucket
(NovelAI 2022, "Improvements on Stable Diffusion"). No torch here.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from genai_assets.datasets.decoding import WHITE, Colour, decode, to_square
from genai_assets.datasets.picture_store import PictureStore

LONGEST_RATIO = 2.0
"""Of the long side to the short one. What is longer is cropped: buckets with few pictures are hardly ever drawn."""

_STEPS_A_SIDE = 8
_FEWEST_PIXELS = 0.75


@cache
def bucket_sizes(resolution: int, side_multiple: int) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of all buckets, the square one first.

    Sides are multiples of ``side_multiple`` and of about an eighth of ``resolution``. To every short side there is the
    longest that makes at most ``resolution``² pixels, and is not too long; so that buckets cost about the same, those
    with less than three quarters of the pixels are left out.

    Raises:
        ValueError: ``resolution`` is no multiple of ``side_multiple``.
    """
    if resolution % side_multiple:
        raise ValueError(
            f"the resolution {resolution} is no multiple of {side_multiple}, which this model's pictures need; "
            f"take {max(1, round(resolution / side_multiple)) * side_multiple}"
        )
    step = side_multiple * max(1, resolution // _STEPS_A_SIDE // side_multiple)
    sizes = set()
    for short in range(step, resolution, step):
        long = int(min(resolution**2 // short, LONGEST_RATIO * short)) // step * step
        if short * long >= _FEWEST_PIXELS * resolution**2:
            sizes |= {(short, long), (long, short)}
    return (resolution, resolution), *sorted(sizes)


def choose_bucket(width: int, height: int, resolution: int, side_multiple: int) -> tuple[int, int]:
    """Size (height, width) of the bucket whose shape is nearest to a picture's, by the logarithm of the ratio.

    Args:
        width, height: of the picture, pixels.
        resolution: a bucket has at most the pixels of a square of this side.
        side_multiple: sides of buckets are multiples of this.

    Raises:
        ValueError: a side is not positive, or as :func:`bucket_sizes`.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} × {height} pixels has no shape")
    ratio = math.log(width / height)
    sizes = bucket_sizes(resolution, side_multiple)
    return min(sizes, key=lambda size: (abs(math.log(size[1] / size[0]) - ratio), -size[0] * size[1]))


def reader_of(
    store: PictureStore, *, max_pixels: int, background: Colour = WHITE
) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """Reads a record's picture from a store at a size (height, width), as RGB uint8 [height, width, 3]."""

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        picture = decode(store.read(record_id), max_pixels=max_pixels, background=background)
        return to_bucket(picture, *size, background=background)

    return read


def to_bucket(image: Image.Image, height: int, width: int, *, background: Colour = WHITE) -> np.ndarray:
    """Bring an RGB picture to a bucket's size (Lanczos, antialiased).

    A square bucket takes the whole picture, padded on the background. Any other is covered by it: what stands over is
    cut off evenly on both sides.

    Returns:
        np.ndarray: uint8 [height, width, 3], 0–255.
    """
    if height == width:
        return to_square(image, height, background=background)
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), dtype=np.uint8)
