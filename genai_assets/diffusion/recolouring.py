"""Recolouring pictures and saying so: a cat becomes "purple cat" and "green cat".

A base model that only ever saw red hearts and yellow bananas learns a thing and its colour as one. Pictures of the same
thing in other colours, each named in its caption, part the two.

Belongs here: which captions can take a word for a colour, and what is done to the pixels. Small changes that no caption
tells of are ``augmentation``; which pictures are learnt from is ``pretraining``.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from genai_assets import durable
from genai_assets.diffusion.training_cache import PictureReader

# What a word for a colour looks like: hue in degrees, saturation and brightness from 0 to 1.
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0, 0.85, 0.90),
    "orange": (28, 0.90, 0.97),
    "yellow": (50, 0.85, 0.98),
    "green": (120, 0.70, 0.70),
    "blue": (215, 0.80, 0.90),
    "purple": (275, 0.65, 0.80),
    "pink": (335, 0.45, 0.98),
    "brown": (22, 0.60, 0.55),
    "black": (0, 0.05, 0.20),
    "white": (0, 0.03, 0.95),
    "gray": (0, 0.03, 0.60),
}
_WITHOUT_LIGHT = ("black", "white")
"""Their shades are drawn together: black with its shades in proportion would be one dark patch."""

_SAYS_A_COLOUR = re.compile(
    rf"\b({'|'.join(COLOURS)}|grey|colou?r\w*|gold\w*|silver|rainbow|dark|light|medium)\b", re.IGNORECASE
)
_MARK = "#"
_PAPER = 247  # of 255: at least so bright in each channel
_COLOURFUL, _NOT_DARK = 0.3, 0.25
_NEAR_THE_MAIN_HUE = 32.0  # degrees
_HUE_BINS = 36
_HUE_KEPT = 0.3
_LEAST_DRAWN, _LEAST_COLOURFUL, _LEAST_RECOLOURED = 0.08, 0.3, 0.25


def takes_a_colour(caption: str) -> bool:
    """Whether a word for a colour can be put before a caption: not when it speaks of colours or shades already."""
    return not _SAYS_A_COLOUR.search(caption)


@dataclass(frozen=True)
class MainColour:
    """Where a picture has its main colour, and what else its pixels are.

    Attributes:
        part: the pixels that have it, bool [H, W].
        from_main: distance of each hue to the main one, degrees; 0 when few pixels are colourful.
        saturation, value: of each pixel, 0 to 1; saturation is 1 everywhere when few pixels are colourful.
    """

    part: np.ndarray
    from_main: np.ndarray
    saturation: np.ndarray
    value: np.ndarray


def main_colour(picture: np.ndarray) -> MainColour | None:
    """What of a picture can be recoloured.

    The main colour is that of most of the colourful pixels; where few are, all that is neither outline nor paper.

    Args:
        picture: uint8 [H, W, 3] RGB, a thing on white paper.

    Returns:
        MainColour | None: None when there is none: hardly anything is drawn, or in many colours.
    """
    hue, saturation, value = _to_hsv(picture)
    drawn = ~_paper_around(picture)
    if drawn.mean() < _LEAST_DRAWN:
        return None
    colourful = drawn & (saturation > _COLOURFUL) & (value > _NOT_DARK)
    from_main = np.zeros_like(hue)
    if colourful.sum() > _LEAST_COLOURFUL * drawn.sum():
        from_main = (hue - _main_hue(hue[colourful]) + 180) % 360 - 180
        part = colourful & (np.abs(from_main) < _NEAR_THE_MAIN_HUE)
    else:
        part = drawn & (value > _NOT_DARK)
        saturation = np.ones_like(saturation)
    if part.sum() < _LEAST_RECOLOURED * drawn.sum():
        return None
    return MainColour(part, from_main, saturation, value)


def recolour(picture: np.ndarray, found: MainColour, colour: str) -> np.ndarray:
    """A picture with its main colour changed to another; outlines, small parts and the paper around stay.

    Hues near the main one keep part of their distance to it, so that a drawing keeps its shades.

    Args:
        picture: uint8 [H, W, 3] RGB.
        found: its main colour.
        colour: one of ``COLOURS``.

    Returns:
        np.ndarray: uint8 [H, W, 3].

    Raises:
        KeyError: the colour is not known.
    """
    new_hue, new_saturation, new_value = COLOURS[colour]
    part, value = found.part, found.value
    middle = np.median(value[part])
    shade = value - middle
    if colour in _WITHOUT_LIGHT:
        shades = new_value + shade / 2
    else:
        shades = np.where(shade < 0, value * new_value / middle, new_value + shade * (1 - new_value))
    changed = _to_rgb(
        (new_hue + _HUE_KEPT * found.from_main) % 360,
        np.clip(found.saturation * new_saturation / np.median(found.saturation[part]), 0, 1),
        np.clip(shades, 0.02, 1),
    )
    return np.where(part[..., None], changed, picture)


def recoloured_ids(
    captions: Mapping[str, str], read: Callable[[str], np.ndarray], each: int, seed: str
) -> Iterator[tuple[str, str, str]]:
    """Ids and captions of recoloured pictures, for those that can be recoloured.

    Args:
        captions: of the pictures, by id.
        read: gives the picture of an id, uint8 [H, W, 3].
        each: the most colours a picture gets; which ones derives from ``seed`` and its id.
        seed: any text.

    Yields:
        tuple: an id that :func:`recoloured_reader` understands, the picture's own id, and its caption with the colour
        before it.
    """
    for record_id, caption in captions.items():
        if not takes_a_colour(caption):
            continue
        if main_colour(read(record_id)) is None:
            continue
        order = sorted(COLOURS, key=lambda colour: durable.digest_json([seed, record_id, colour]))
        for colour in order[:each]:
            yield f"{record_id}{_MARK}{colour}", record_id, f"{colour} {caption}"


def recoloured_reader(otherwise: PictureReader) -> PictureReader:
    """Reads the pictures of :func:`recoloured_ids`, and every other one as ``otherwise`` does."""

    @functools.lru_cache(maxsize=1)  # a picture's colours are read one after the other
    def look(plain: str, size: tuple[int, int]) -> tuple[np.ndarray, MainColour]:
        picture = otherwise(plain, size)
        found = main_colour(picture)
        if found is None:
            raise ValueError(f"the picture {plain} cannot be recoloured at {size}: it has no main colour")
        return picture, found

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        plain, _, colour = record_id.partition(_MARK)
        return recolour(*look(plain, size), colour) if colour else otherwise(plain, size)

    return read


def _paper_around(picture: np.ndarray) -> np.ndarray:
    """Which pixels are white and reach the edge through white ones, bool [H, W]."""
    white = np.pad(picture.min(axis=-1) >= _PAPER, 1, constant_values=True)
    image = Image.fromarray(white.astype(np.uint8)).copy()  # what is not copied cannot be filled, and says nothing
    ImageDraw.floodfill(image, (0, 0), 2)
    return np.asarray(image)[1:-1, 1:-1] == 2


def _main_hue(hues: np.ndarray) -> float:
    """The middle of the fullest bin, with its neighbours counted in, in degrees."""
    count, _ = np.histogram(hues, bins=_HUE_BINS, range=(0, 360))
    return (int((count + np.roll(count, 1) + np.roll(count, -1)).argmax()) + 0.5) * 360 / _HUE_BINS


def _to_hsv(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value from 0 to 1, each float64 [H, W]."""
    hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(picture).convert("HSV"), dtype=np.float64), -1, 0)
    return hue * 360 / 256, saturation / 255, value / 255


def _to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The way back, uint8 [H, W, 3]."""
    layers = np.stack((hue * 256 / 360, saturation * 255, value * 255), axis=-1)
    return np.asarray(Image.fromarray(layers.round().clip(0, 255).astype(np.uint8), "HSV").convert("RGB"))
