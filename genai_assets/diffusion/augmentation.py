"""Changing training pictures a little, so that a small dataset teaches more than its pictures by heart.

Belongs here: what is done to the pixels of one picture, and which pictures must not be mirrored. Whether and how
strongly is ``config.Augmentation``; when is ``batches`` (pixels, anew in each step) or ``training_cache`` (latents,
a few variants made once). NumPy and Pillow only.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from genai_assets.diffusion.config import Augmentation

_WHITE = (255, 255, 255)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

_ONE_WAY = re.compile(
    r"""\b(
        left(ward|wards)? | right(ward|wards)? | east(ern)? | west(ern)?        # sides
      | clockwise | counterclockwise | anticlockwise | arrows? | cursor | pointer
      | letters? | alphabets? | initials? | monogram | latin                    # writing
      | digits? | numbers? | numerals? | numeric | question | percent | zodiac
      | words? | texts? | writing | written | handwriting | lettering | caption | font | typography
      | saying | says | reads | signature | logo | brand | label | newspaper | calendar
      | keycaps? | keyboard | buttons?
      | dollar | euro | yen | pound | banknote | currency
      | flags? | clocks? | watch | dial | maps? | globe                         # things with one right way round
      | musical | notes? | clef | score
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)
# Quoted words, digits and capitals ("OK", "ATM") are likely to be seen in the picture.
_WRITTEN = re.compile(r"\d|[\"“”„«»]|\b[A-Z]{2,}\b")


def may_flip(caption: str) -> bool:
    """Whether a picture of this caption may be mirrored left to right.

    Not when the caption speaks of sides, of a sense of turning, of something written, or of a thing that has one right
    way round, nor when it has a digit, quotation marks or a word in capitals. The words are a short English list: one
    too many costs little, for its pictures are only seen one way round; one too few teaches mirrored letters.
    """
    return not (_ONE_WAY.search(caption) or _WRITTEN.search(caption))


def mirror(pictures: np.ndarray) -> np.ndarray:
    """Pictures [..., H, W, 3] mirrored left to right; a view."""
    return pictures[..., ::-1, :]


def changes(augmentation: Augmentation) -> bool:
    """Whether :func:`change` does anything."""
    return bool(augmentation.crop or augmentation.colour or augmentation.rotation)


def change(picture: np.ndarray, augmentation: Augmentation, dice: np.random.Generator) -> np.ndarray:
    """Rotate, crop and recolour a picture at random; a pure function of its arguments.

    The picture is resampled once (bicubic). Its brightness, contrast and saturation are each multiplied by a factor.

    Args:
        picture: uint8 [H, W, 3] RGB.
        augmentation: how strongly; its ``flip`` is not looked at, see :func:`mirror`.
        dice: drawn from seven times, whatever is asked for.

    Returns:
        np.ndarray: uint8 [H, W, 3]; where the picture turned away from, the corner is white.
    """
    turn, *shades = dice.uniform(-1, 1, size=4)
    cut, *place = dice.random(3)
    image = Image.fromarray(picture)
    if augmentation.rotation or augmentation.crop:
        angle = math.radians(turn * augmentation.rotation)
        seen = _view(image.size, angle, 1 - cut * augmentation.crop, place)
        image = image.transform(image.size, Image.Transform.AFFINE, seen, Image.Resampling.BICUBIC, fillcolor=_WHITE)
    if augmentation.colour:
        factors = [1 + shade * augmentation.colour for shade in shades]
        image = image.convert("RGB", _recolouring(picture.mean(axis=(0, 1)), *factors))
    return np.array(image, dtype=np.uint8)


def _view(
    size: tuple[int, int], angle: float, kept: float, place: Sequence[float]
) -> tuple[float, float, float, float, float, float]:
    """Which point of a picture each point of the new one shows: a, b, c, d, e, f of (ax + by + c, dx + ey + f).

    Args:
        size: width, height.
        angle: by which the picture turns about the middle of what is seen of it, radians.
        kept: share of each side that is seen.
        place: where that part lies, across and down, each from 0 to 1.
    """
    cos, sin = kept * math.cos(angle), kept * math.sin(angle)
    across, down = ((kept / 2 + where * (1 - kept)) * side for where, side in zip(place, size, strict=True))
    half_width, half_height = size[0] / 2, size[1] / 2
    return (
        cos,
        -sin,
        across - cos * half_width + sin * half_height,
        sin,
        cos,
        down - sin * half_width - cos * half_height,
    )


def _recolouring(mean: np.ndarray, brightness: float, contrast: float, saturation: float) -> tuple[float, ...]:
    """The colour matrix, three rows of (red, green, blue, constant), of factors applied in this order.

    Args:
        mean: colour of the picture, [3]: contrast is the distance from its grey.
        brightness, contrast, saturation: 1 leaves alone.
    """
    to_grey = np.outer(np.ones(3), _LUMA)
    matrix = saturation * np.eye(3) + (1 - saturation) * to_grey
    constant = (1 - contrast) * brightness * (_LUMA @ mean)
    return tuple(np.column_stack((brightness * contrast * matrix, np.full(3, constant))).ravel().tolist())
