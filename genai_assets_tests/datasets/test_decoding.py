"""Decoding: every kind of picture as RGB on white, everything wrong as one error with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets.decoding import FORMATS, UndecodablePicture, decode, probe, render_svg, to_square

MAX_PIXELS = 1_000_000


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colour_of(data: bytes) -> tuple[int, ...]:
    image = decode(data, max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize("format", FORMATS)
def test_every_allowed_format_decodes_to_rgb(format):
    data = encoded(Image.new("RGB", (40, 30), (200, 100, 50)), format)
    assert np.allclose(colour_of(data), (200, 100, 50), atol=8)
    assert probe(data) == (40, 30)


def test_transparency_is_laid_on_white():
    assert colour_of(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))) == (255, 255, 255)
    assert colour_of(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))) == (255, 127, 127)
    assert colour_of(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert colour_of(encoded(image)) == (10, 20, 30)
    assert colour_of(encoded(image, transparency=1)) == (255, 255, 255)
    assert colour_of(encoded(image, "GIF", transparency=1)) == (255, 255, 255)


def test_grey_of_16_bits_keeps_its_shades():
    shades = np.array([[0, 32896, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(shades), format), max_pixels=MAX_PIXELS)
        assert np.asarray(image)[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_cmyk_and_one_bit_become_rgb():
    assert np.allclose(colour_of(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")), (255, 0, 0), atol=8)
    assert colour_of(encoded(Image.new("1", (4, 4), 1))) == (255, 255, 255)


def test_the_exif_orientation_is_applied_and_probed():
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    data = encoded(image, "JPEG", exif=exif)
    turned = decode(data, max_pixels=MAX_PIXELS)
    assert turned.size == probe(data) == (20, 40)
    assert sum(turned.getpixel((10, 5))) < 60 < 700 < sum(turned.getpixel((10, 35)))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, lossless=True)
        assert colour_of(data) == (255, 0, 0)


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise))[:-4000]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not a picture in one of the formats PNG"),
        (truncated_png(), "truncated"),
        (encoded(Image.new("RGB", (8, 8)), "PPM"), "not a picture in one of the formats"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "damaged|not a picture"),
    ],
    ids=["empty", "html", "truncated", "format not allowed", "floating point", "damaged header"],
)
def test_what_is_wrong_is_refused_with_its_reason(data, reason):
    with pytest.raises(UndecodablePicture, match=reason):
        decode(data, max_pixels=MAX_PIXELS)


def test_too_many_pixels_are_refused_before_any_is_decoded():
    header = struct.pack(">IIBBBBB", 30_000, 2_500, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    claims = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb = claims + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(UndecodablePicture, match="30000 × 2500 pixels are more than"):
        decode(bomb, max_pixels=64_000_000)
    assert probe(bomb) == (30_000, 2_500)


def test_a_square_is_padded_with_white_not_stretched():
    square = to_square(Image.new("RGB", (100, 50), "black"), 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert (square[:14] > 250).all(), "Lanczos rings a little"
    assert (square[-14:] > 250).all()
    assert (square[20:44] < 5).all()


def test_an_svg_is_drawn_on_a_transparent_ground():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="red"/></svg>'
    image = Image.open(io.BytesIO(render_svg(svg, 32)))
    assert image.size == (32, 32)
    assert image.getpixel((4, 16)) == (255, 0, 0, 255)
    assert image.getpixel((28, 16))[3] == 0
    with pytest.raises(UndecodablePicture, match="not an SVG"):
        render_svg("no svg", 32)
