"""Bytes to pixels: one way to decode every picture, and to draw an SVG.

Belongs here: what a picture file's bytes look like as RGB on white, and what is refused. Where the bytes lie is
``picture_store``; whether a decoded picture is good enough is ``expectations``.
"""

import io

import numpy as np
import resvg_py
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded; whatever else Pillow could open is refused."""

_ORIENTATION = 0x0112
_QUARTER_TURNS = {5, 6, 7, 8}
_WHITE = (255, 255, 255)


class UndecodablePicture(ValueError):
    """A picture cannot be decoded, or must not be; the message is the reason, fit for a quarantine table."""


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode a picture to RGB as a viewer would show it on white paper.

    The EXIF orientation is applied, transparency is laid on white, the first frame of an animation is taken; palette,
    grey, 16-bit grey and CMYK become 8-bit RGB.

    Args:
        data: a file's bytes, in one of :data:`FORMATS`.
        max_pixels: more pixels than this are refused before any is decoded.

    Raises:
        UndecodablePicture: empty, unknown, truncated, damaged or too large.
    """
    try:
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise UndecodablePicture(f"{width} × {height} pixels are more than the {max_pixels} that are allowed")
        image.load()
        return _on_white(ImageOps.exif_transpose(image))
    except UndecodablePicture:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise UndecodablePicture(f"damaged or truncated: {error}") from error


def probe(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as :func:`decode` would give them, from the header alone.

    Raises:
        UndecodablePicture: empty or unknown, or the header is damaged.
    """
    try:
        image = _open(data)
        width, height = image.size
        # Asking a PNG for EXIF data it does not announce would decode it whole.
        turned = ("exif" in image.info or image.format == "TIFF") and image.getexif().get(_ORIENTATION)
    except UndecodablePicture:
        raise
    except Exception as error:  # as in decode
        raise UndecodablePicture(f"damaged header: {error}") from error
    return (height, width) if turned in _QUARTER_TURNS else (width, height)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """Pad an RGB picture to a square on white, then resize it (Lanczos, antialiased).

    Returns:
        uint8 array of shape [size, size, 3], 0–255.
    """
    side = max(image.size)
    if image.size != (side, side):
        square = Image.new("RGB", (side, side), _WHITE)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


def render_svg(svg: str, size: int) -> bytes:
    """Draw an SVG as a PNG with a transparent ground; it is fitted into ``size`` × ``size`` pixels.

    Raises:
        UndecodablePicture: not an SVG.
    """
    try:
        # System fonts would make the picture depend on the machine, and cost a scan of them each time.
        return resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise UndecodablePicture(f"not an SVG that can be drawn: {error}") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UndecodablePicture("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UndecodablePicture(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodablePicture(f"far too many pixels: {error}") from None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UndecodablePicture("floating-point pixels have no agreed range; save the picture with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (*_WHITE, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8 bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UndecodablePicture("grey values beyond 16 bits; save the picture with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
