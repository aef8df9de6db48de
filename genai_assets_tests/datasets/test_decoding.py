"""Decoding: every kind of picture as RGB on paper, everything wrong as one error with a reason."""

import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from genai_assets.datasets.decoding import (
    FORMATS,
    MAX_SIDE,
    UndecodablePicture,
    decode,
    decode_shrunken,
    format_of,
    probe,
    render_svg,
    to_square,
)
from genai_assets_tests.datasets.hostile_files import icc_profile

MAX_PIXELS = 1_000_000


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colour_of(data: bytes) -> tuple[int, ...]:
    image = decode(data, max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def heic(image: Image.Image, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "SVG"])
def test_every_allowed_format_decodes_to_rgb_and_is_known_by_its_bytes(format):
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    data = heic(image) if format == "HEIC" else encoded(image, format)
    assert np.allclose(colour_of(data), (200, 100, 50), atol=8)
    assert probe(data) == (40, 30)
    assert format_of(data) == format


def test_heic_without_its_extra_says_which_extra(monkeypatch):
    data = heic(Image.new("RGB", (40, 30)))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UndecodablePicture, match=r'pip install "genai_assets\[heif\]"'):
        decode(data, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
def test_a_container_of_a_general_brand_is_told_by_the_brands_it_goes_with(brand):
    for data in (heic(Image.new("RGB", (40, 30))), encoded(Image.new("RGB", (40, 30)), "AVIF")):
        renamed = data[:8] + brand + data[12:]
        expected = format_of(data)
        if expected == "HEIC":
            renamed = renamed.replace(b"mif1heic", b"heicmif1", 1)
        assert format_of(renamed) == expected
        assert decode(renamed, max_pixels=MAX_PIXELS).size == (40, 30)


def test_transparency_is_laid_on_white():
    assert colour_of(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))) == (255, 255, 255)
    assert colour_of(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))) == (255, 127, 127)
    assert colour_of(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)


def test_transparency_is_laid_on_the_background_that_was_asked_for():
    half = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))
    image = decode(half, max_pixels=MAX_PIXELS, background=(0, 0, 255))
    assert image.getpixel((0, 0)) == (128, 0, 127)
    shrunken = decode_shrunken(half, max_pixels=MAX_PIXELS, shrink_to=2, background=(0, 0, 255))
    assert shrunken.image.getpixel((0, 0)) == (128, 0, 127)
    assert shrunken.notes == ("transparent: laid on #0000ff",)


def test_colours_that_are_wholly_transparent_do_not_bleed_when_shrunken():
    image = Image.new("RGBA", (64, 64), (255, 0, 255, 0))
    image.paste((0, 128, 0, 255), (0, 0, 33, 64))
    seen = np.asarray(decode_shrunken(encoded(image), max_pixels=MAX_PIXELS, shrink_to=8).image).astype(int)
    assert (seen[..., 1] >= seen[..., 0] - 1).all(), "green and white only, no magenta"


def test_an_icc_profile_is_converted():
    for mode, format in (("RGB", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG"), ("RGB", "TIFF"), ("P", "PNG")):
        data = encoded(Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode), format, icc_profile=icc_profile())
        assert np.allclose(colour_of(data), (0, 255, 0), atol=12), "its red is green"
        found = decode_shrunken(data, max_pixels=MAX_PIXELS, shrink_to=4)
        assert np.allclose(found.image.getpixel((0, 0)), (0, 255, 0), atol=12)
        assert "converted to sRGB from its ICC profile (Red and green swapped)" in found.notes


def test_lab_colours_are_converted():
    lab = Image.new("LAB", (8, 8), (128, 200, 128))
    expected = ImageCms.profileToProfile(
        lab, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert colour_of(encoded(lab, "TIFF")) == expected.getpixel((0, 0))


@pytest.mark.parametrize(
    ("profile", "note"),
    [(b"no profile at all", "broken"), ("LAB", "for Lab, the picture is RGB")],
    ids=["broken", "of another colour space"],
)
def test_an_icc_profile_that_makes_no_sense_is_left_out_of_account_and_noted(profile, note):
    if profile == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = encoded(Image.new("RGB", (4, 4), (10, 200, 30)), icc_profile=profile)
    found = decode_shrunken(data, max_pixels=MAX_PIXELS, shrink_to=4)
    assert found.image.getpixel((0, 0)) == (10, 200, 30)
    assert [note in remark for remark in found.notes] == [True]


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_as_pillow_shows_it(orientation):
    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data, max_pixels=MAX_PIXELS)), np.asarray(expected))
    found = decode_shrunken(data, max_pixels=MAX_PIXELS, shrink_to=100)
    assert (found.width, found.height) == found.image.size == probe(data) == expected.size


def test_broken_exif_data_does_not_cost_the_picture():
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    assert decode(data, max_pixels=MAX_PIXELS).size == probe(data) == (40, 20)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_shrunken_while_it_is_decoded_looks_like_one_shrunken_afterwards(format):
    across, down = np.meshgrid(np.linspace(0, 255, 900), np.linspace(0, 255, 600))
    picture = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    data = encoded(picture, format)
    found = decode_shrunken(data, max_pixels=MAX_PIXELS, shrink_to=100)
    afterwards = decode(data, max_pixels=MAX_PIXELS).resize((100, 67), Image.Resampling.LANCZOS)
    assert (found.width, found.height, found.image.size) == (900, 600, (100, 67))
    difference = np.asarray(found.image).astype(int) - np.asarray(afterwards)
    assert abs(difference).mean() < 2


def test_a_photo_that_is_cut_short_is_found_though_it_is_shrunken_while_it_is_decoded():
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    for options in ({}, {"progressive": True}):
        data = encoded(Image.fromarray(noise), "JPEG", **options)
        for length in (len(data) // 3, len(data) - 5000):
            with pytest.raises(UndecodablePicture, match="truncated"):
                decode_shrunken(data[:length], max_pixels=MAX_PIXELS, shrink_to=64)


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


def test_a_side_can_be_too_long_for_any_number_of_pixels():
    with pytest.raises(UndecodablePicture, match="a side is longer than"):
        decode(encoded(Image.new("1", (MAX_SIDE + 1, 1))), max_pixels=MAX_PIXELS)


def test_no_warning_escapes_from_any_thread_and_others_warnings_do():
    bomb = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 20_000, 5_000, 8, 2, 0, 0, 0)
    )
    bomb += struct.pack(">I", zlib.crc32(bomb[12:])) + bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    good = encoded(Image.new("RGB", (64, 64)))

    def refused(number: int) -> bool:
        try:
            decode(bomb if number % 3 else good, max_pixels=MAX_PIXELS)
        except UndecodablePicture as error:
            return "20000 × 5000 pixels" in str(error)
        return False

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        assert list(pool.map(refused, range(300))) == [number % 3 > 0 for number in range(300)]
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["mine"]


def test_a_square_is_padded_with_white_not_stretched():
    square = to_square(Image.new("RGB", (100, 50), "black"), 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert (square[:14] > 250).all(), "Lanczos rings a little"
    assert (square[-14:] > 250).all()
    assert (square[20:44] < 5).all()
    assert (to_square(Image.new("RGB", (100, 50)), 64, background=(0, 0, 0)) == 0).all()


def test_an_svg_is_drawn_on_a_transparent_ground():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="red"/></svg>'
    image = Image.open(io.BytesIO(render_svg(svg, 32)))
    assert image.size == (32, 32)
    assert image.getpixel((4, 16)) == (255, 0, 0, 255)
    assert image.getpixel((28, 16))[3] == 0
    with pytest.raises(UndecodablePicture, match="not an SVG"):
        render_svg("no svg", 32)
