"""Bytes to pixels: one way to decode every picture.

Belongs here: which formats are read, how each becomes 8-bit sRGB on a stated background, and what is refused. Where the
bytes lie is ``picture_store``; vector drawings are ``svg``'s; what else a file may be is ``polyglots``'; whether a
decoded picture is good enough is ``examination``'s and ``expectations``'. The table of what is decided about which kind
of file is docs/hostile_files.md.

Decoding a file from outside belongs into a guarded worker (``guarded_worker``). Once a picture has passed there, it can
be decoded anywhere.
"""

import io
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from genai_assets.datasets import svg
from genai_assets.datasets.svg import UndecodablePicture, render_svg

__all__ = [
    "FORMATS",
    "MAX_SIDE",
    "Decoded",
    "UndecodablePicture",
    "decode",
    "decode_shrunken",
    "format_of",
    "probe",
    "render_svg",
    "to_square",
]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "SVG")
"""Formats that are decoded (HEIC with the extra ``heif``); whatever else Pillow could open is refused."""

MAX_SIDE = 32_768
"""Pixels: a picture with a longer side is refused, however few its pixels are."""

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
_ORIENTATION = 0x0112
_QUARTER_TURNS = {5, 6, 7, 8}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_AVIF_BRANDS = {b"avif", b"avis"}
_COLOUR_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
_ROWS_AT_A_TIME = 256

# Every reader that may be used is named (and thereby loaded): a guarded worker can open no file to load one later.
_READERS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# The workers are what runs in parallel, one a core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class Decoded:
    """A picture as a viewer would show it.

    Attributes:
        image: RGB, perhaps shrunken.
        width, height: of the whole picture, pixels, the EXIF orientation applied.
        format: one of :data:`FORMATS`.
        notes: what had to be done on the way, in words.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    notes: tuple[str, ...]


def decode(data: bytes, *, max_pixels: int, background: Colour = WHITE) -> Image.Image:
    """Decode a picture to RGB as a viewer would show it on paper.

    The EXIF orientation is applied, ICC profiles are converted to sRGB (one that is broken or of another colour space
    is left out of account), transparency is laid on the background, the first frame of an animation is taken; palette,
    grey, 16-bit grey and CMYK become 8-bit RGB. An SVG is drawn with a longer side of 512 pixels.

    Args:
        data: a file's bytes, in one of :data:`FORMATS`, whatever the file is called.
        max_pixels: more pixels than this are refused before any is decoded.
        background: red, green and blue, each 0–255, of the paper.

    Raises:
        UndecodablePicture: empty, unknown, truncated, damaged or too large.
        MemoryError: the memory does not suffice for it.
    """
    return _decode(data, max_pixels, background, shrink_to=None).image


def decode_shrunken(data: bytes, *, max_pixels: int, shrink_to: int, background: Colour = WHITE) -> Decoded:
    """As :func:`decode`, but the picture is shrunken on the way so that its longer side is at most ``shrink_to``.

    All of the file is read and decoded all the same, so that damage is found wherever it is; only arithmetic on pixels
    nobody asked for is saved. Smaller pictures keep their size.

    Raises:
        UndecodablePicture, MemoryError: as of :func:`decode`.
    """
    return _decode(data, max_pixels, background, shrink_to)


def probe(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as :func:`decode` would give them, from the header alone (an SVG is drawn).

    A PNG that states its EXIF orientation after its pixels, which is rare, is told unturned.

    Raises:
        UndecodablePicture: empty or unknown, or the header is damaged.
    """
    try:
        with _QUIET:
            image, _ = _open(data)
            # Asking a PNG for EXIF data it does not announce would decode it whole.
            announced = "exif" in image.info or "xmp" in image.info or image.format == "TIFF"
            turned = announced and _orientation(image, [])
            width, height = image.size
    except (UndecodablePicture, MemoryError):
        raise
    except Exception as error:  # as in decode
        raise UndecodablePicture(f"damaged header: {error}") from error
    return (height, width) if turned in _QUARTER_TURNS else (width, height)


def format_of(data: bytes) -> str:
    """Which of :data:`FORMATS` a file's first bytes announce; empty when none."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(_box_length(data), 128), 4))}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if brands & _HEIC_BRANDS else ""
    return "SVG" if svg.announces_itself(data) else ""


def to_square(image: Image.Image, size: int, *, background: Colour = WHITE) -> np.ndarray:
    """Pad an RGB picture to a square on the background, then resize it (Lanczos, antialiased).

    Returns:
        uint8 array of shape [size, size, 3], 0–255.
    """
    side = max(image.size)
    if image.size != (side, side):
        square = Image.new("RGB", (side, side), background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


class _Quiet:
    """Mutes Pillow's warnings while any thread decodes: what is wrong with a picture is told by its error or notes.

    ``warnings.catch_warnings`` alone would be torn apart by threads that enter and leave in another order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


def _decode(data: bytes, max_pixels: int, background: Colour, shrink_to: int | None) -> Decoded:
    notes: list[str] = []
    try:
        with _QUIET:
            image, format = _open(data, notes)
            width, height = image.size
            _refuse_too_large(width, height, max_pixels)
            if format == "JPEG" and shrink_to and max(width, height) > shrink_to:
                # The decoder leaves out the finest cosine coefficients; it still reads every one of them.
                image.draft(None, _within(width, height, shrink_to))
            if format != "SVG" and getattr(image, "is_animated", False) and not isinstance(image, _ONE_FRAME):
                notes.append("several frames: the first is taken")
                image.seek(0)
            image.load()
            turned = _orientation(image, notes)
            image = _shown(image, notes, background, _within(width, height, shrink_to) if shrink_to else None)
            if turned in _TURNS:
                notes.append("turned as its EXIF orientation says")
                image = image.transpose(_TURNS[turned])
    except (UndecodablePicture, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise  # the machine's fault, or a reader that wants to open a file in a worker that must not
        raise UndecodablePicture(f"damaged or truncated: {error}") from error
    if turned in _QUARTER_TURNS:
        width, height = height, width
    return Decoded(image, width, height, format, tuple(notes))


# A telephone's JPEG carries its depth or brightness map as a second "frame".
_ONE_FRAME = (MpoImagePlugin.MpoImageFile,)


def _open(data: bytes, notes: list[str] | None = None) -> tuple[Image.Image, str]:
    """The picture, its header read, and its format."""
    if not data:
        raise UndecodablePicture("the file is empty")
    format = format_of(data)
    try:
        if format == "SVG":
            drawn, remarks = svg.draw(data)
            if notes is not None:
                notes.extend(remarks)
            return Image.open(io.BytesIO(drawn), formats=("PNG",)), format
        if format == "HEIC":
            return _open_heic(data), format
        if format:
            return Image.open(io.BytesIO(data), formats=(format,)), format
    except Image.UnidentifiedImageError:
        raise UndecodablePicture(f"damaged header: it begins as {format}, but cannot be read as that") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodablePicture(f"far too many pixels: {error}") from None
    raise UndecodablePicture(f"not a picture in one of the formats {', '.join(FORMATS)}")


def _open_heic(data: bytes) -> Image.Image:
    try:
        import pillow_heif
    except ModuleNotFoundError:
        raise UndecodablePicture('pictures in HEIC need an extra: pip install "genai_assets[heif]"') from None
    pillow_heif.options.DECODE_THREADS = 1
    try:
        return pillow_heif.HeifImageFile(io.BytesIO(data))
    except SyntaxError as error:
        raise UndecodablePicture(f"damaged header: {error}") from error


def _box_length(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


def _refuse_too_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodablePicture(f"{width} × {height} pixels are more than the {max_pixels} that are allowed")
    if max(width, height) > MAX_SIDE:
        raise UndecodablePicture(f"{width} × {height} pixels: a side is longer than {MAX_SIDE}")
    if not width or not height:
        raise UndecodablePicture(f"{width} × {height} pixels: there is nothing to see")


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    """The size of a picture whose longer side is shrunken to at most ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (UndecodablePicture, MemoryError):
        raise
    except Exception:  # EXIF data is a file format of its own, and as easily damaged
        notes.append("its EXIF data cannot be read and is left out of account")
        return 1


def _shown(image: Image.Image, notes: list[str], background: Colour, size: tuple[int, int] | None) -> Image.Image:
    """A decoded image as RGB on the background, shrunken to ``size`` first: most of the work is then on few pixels."""
    profile = image.info.get("icc_profile")
    image = _as_plain(image, notes)
    if image.mode == "RGBA":
        notes.append(f"transparent: laid on #{bytes(background).hex()}")
        if size and size != image.size:
            # Colours under full transparency are arbitrary and must not bleed into what is seen.
            image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0).convert("RGBA")
        paper = Image.new("RGB", image.size, background)
        paper.paste(_as_srgb(image.convert("RGB"), profile, notes), mask=image.getchannel("A"))
        return paper
    if size and size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _as_srgb(image, profile, notes)


def _as_plain(image: Image.Image, notes: list[str]) -> Image.Image:
    """The same picture in one of the modes L, RGB, RGBA, CMYK, YCbCr, LAB."""
    mode = image.mode
    if mode == "F":
        raise UndecodablePicture("floating-point pixels have no agreed range; save the picture with 8 or 16 bits")
    if mode.startswith("I"):
        notes.append("16-bit grey")
        return _from_16_bits(image)
    if mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        notes.append(f"{mode} colours")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if mode in ("P", "RGBX", "HSV", "PA", "RGBa"):
        return image.convert("RGB")
    return image.convert("L") if mode in ("1", "LA", "La") else image


def _as_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    transform = None
    if profile:
        transform, note = _transform(profile, image.mode)
        notes.extend([note] if note else [])
    elif image.mode == "LAB":
        transform, _ = _transform(None, "LAB")
    if transform is not None:
        try:
            return transform.apply(image)
        except (ValueError, ImageCms.PyCMSError):
            notes.append("its ICC profile cannot be applied and is left out of account")
    if image.mode == "LAB":
        raise UndecodablePicture("Lab colours cannot be converted; save the picture as RGB")
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes | None, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The way from a profile's colours to sRGB, None when there is nothing to convert; and what to note."""
    ignored = "its ICC profile is {} and is left out of account"
    try:
        if profile is None:
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described: Any = source.profile
        if described.xcolor_space != _COLOUR_SPACES.get(mode):
            # A grey picture with a profile of RGB colours is common and means the same shades.
            return None, ignored.format(f"for {described.xcolor_space.strip()}, the picture is {mode}")
        name = " ".join((described.profile_description or "without a name").split())[:60]
        if name.startswith("sRGB"):
            return None, ""
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except MemoryError:
        raise
    except Exception:  # whatever is broken in it
        return None, ignored.format("broken")
    return transform, f"converted to sRGB from its ICC profile ({name})"


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8 bits, a band of rows at a time; Pillow's own conversion would clip at 255."""
    grey = Image.new("L", image.size)
    for top in range(0, image.height, _ROWS_AT_A_TIME):
        band = image.crop((0, top, image.width, min(top + _ROWS_AT_A_TIME, image.height)))
        values = np.asarray(band).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UndecodablePicture("grey values beyond 16 bits; save the picture with 8 or 16 bits")
        grey.paste(Image.fromarray(((values + 128) // 257).astype(np.uint8)), (0, top))
    return grey
