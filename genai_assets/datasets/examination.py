"""One picture looked at closely: size, faults, perceptual hash and thumbnail from a single decoding.

Belongs here: what is asked of a picture's bytes, as a function of the bytes and :class:`Rules` alone. It runs in
guarded workers, so it imports little, opens no file, and knows no store, no settings and no database: those are
``inspection``'s.
"""

import codecs
import io
import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageCms

from genai_assets.datasets import decoding, opt_out, polyglots

VERSION = 1
"""Raised by hand when the same bytes may be told otherwise than before."""

MAX_ASPECT_RATIO = 4.0
"""Longer side over shorter side: a longer picture is mostly margin once it is padded to a square."""

BLANK_RANGE = 8
"""Levels of 255: when no channel of the shrunken picture spans this many, it is (nearly) of one colour."""

THUMBNAIL_SIDE = 256
"""Pixels of a thumbnail's longer side; smaller pictures keep their size."""

_THUMBNAIL_QUALITY = 85
_BLANK_GRID = 32  # cells a side; averaging over cells forgives noise and specks, yet keeps a hairline
_HASH_GRID = 32
_HASH_SIDE = 8
_COSINES = np.cos(np.pi * np.outer(np.arange(_HASH_SIDE), 2 * np.arange(_HASH_GRID) + 1) / (2 * _HASH_GRID))
_WORTH_TELLING_BYTES = 64  # behind a picture's end; less is padding

# Python finds these by opening files, which a guarded worker cannot do when it meets text in one of them.
_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "mac-roman")


@dataclass(frozen=True)
class Inspection:
    """What is known of one picture's bytes.

    Attributes:
        id: SHA-256 of the bytes.
        width, height: pixels as the picture is shown (EXIF orientation applied); 0 when it could not be decoded.
        format: what the bytes are, whatever the file was called ("JPEG"); empty when that is unknown.
        fault: a short kind fit for counting ("undecodable", "too long", "blank"); empty for a good picture.
        reason: the fault as a sentence for people; empty for a good picture.
        perceptual_hash: 16 hexadecimal digits, 64 bits; pictures that look alike differ in few. Empty when undecodable.
        opt_out: the signal in the file's own metadata by which it is reserved from training; empty when there is none.
        notes: what was done to the picture on the way to RGB, or is odd about the file, in words.
    """

    id: str
    width: int = 0
    height: int = 0
    format: str = ""
    fault: str = ""
    reason: str = ""
    perceptual_hash: str = ""
    opt_out: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What a verdict depends on beside the bytes.

    Attributes:
        max_pixels: more are refused before they are decoded.
        background: red, green and blue, 0–255, that transparency is laid on.
    """

    max_pixels: int
    background: tuple[int, int, int] = (255, 255, 255)


def examine(data: bytes, rules: Rules) -> tuple[Inspection, bytes]:
    """Look at one picture.

    Returns:
        What was found, its ``id`` left empty, and a thumbnail (JPEG); no bytes when the picture cannot be decoded.

    Raises:
        MemoryError: the memory does not suffice for it.
    """
    found = Inspection("", format=decoding.format_of(data))
    try:
        decoded = decoding.decode_shrunken(
            data, max_pixels=rules.max_pixels, shrink_to=THUMBNAIL_SIDE, background=rules.background
        )
    except decoding.UndecodablePicture as error:
        return replace(found, fault="undecodable", reason=f"undecodable: {error}"), b""
    end = polyglots.end_of_picture(data, decoded.format)
    notes = decoded.notes
    if len(data) - end > _WORTH_TELLING_BYTES:
        notes += (f"{len(data) - end:,} bytes follow the end of the picture",)
    fault, reason = _fault(decoded, polyglots.second_nature(data, end))
    found = replace(
        found,
        width=decoded.width,
        height=decoded.height,
        fault=fault,
        reason=reason,
        perceptual_hash=perceptual_hash(decoded.image),
        opt_out=opt_out.signal_in_file(data),
        notes=notes,
    )
    return found, _thumbnail(decoded.image)


def perceptual_hash(image: Image.Image) -> str:
    """The DCT hash of an RGB picture, equal to ``str(imagehash.phash(image))``: 16 hexadecimal digits.

    The picture is reduced to 32 × 32 shades of grey; a bit is set where one of the 8 × 8 lowest coefficients of the
    cosine transform exceeds their median. Computed with numpy alone, for SciPy's import would double a worker's start.
    After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    grey = image.convert("L").resize((_HASH_GRID, _HASH_GRID), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T
    return np.packbits(low > np.median(low)).tobytes().hex()


def to_bytes(found: Inspection, thumbnail: bytes) -> bytes:
    """An examination as it leaves a worker: the length of a JSON object, the object, the thumbnail."""
    described = json.dumps(asdict(found)).encode()
    return struct.pack("<I", len(described)) + described + thumbnail


def from_bytes(answer: bytes) -> tuple[Inspection, bytes]:
    """The inverse of :func:`to_bytes`.

    Raises:
        ValueError, TypeError, struct.error: these bytes are nothing of the kind.
    """
    (length,) = struct.unpack_from("<I", answer)
    return from_json(answer[4 : 4 + length].decode()), answer[4 + length :]


def to_json(found: Inspection) -> str:
    """An inspection as a JSON object."""
    return json.dumps(asdict(found), ensure_ascii=False)


def from_json(text: str) -> Inspection:
    """The inverse of :func:`to_json`.

    Raises:
        ValueError, TypeError: not an inspection.
    """
    fields = json.loads(text)
    return Inspection(**{**fields, "notes": tuple(fields["notes"])})


def prepare(rules: Rules) -> Callable[[bytes], bytes]:
    """What a guarded worker does with a picture's bytes. Everything it may need is loaded once this returns."""
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    work = partial(_examine_to_bytes, rules)
    for sample in _one_of_each_kind():
        work(sample)
    return work


def _examine_to_bytes(rules: Rules, data: bytes) -> bytes:
    return to_bytes(*examine(data, rules))


def _fault(decoded: decoding.Decoded, second_nature: str) -> tuple[str, str]:
    width, height = decoded.width, decoded.height
    if second_nature:
        return "polyglot", f"polyglot: the file is a picture and {second_nature} at once"
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return "too long", f"too long: {width} × {height} pixels, over {MAX_ASPECT_RATIO:g} to 1"
    if _is_blank(decoded.image):
        return "blank", "blank: it is (nearly) of one colour"
    return "", ""


def _is_blank(image: Image.Image) -> bool:
    """Whether an RGB picture is (nearly) of one colour."""
    grid = (min(image.width, _BLANK_GRID), min(image.height, _BLANK_GRID))
    shrunken = image.resize(grid, Image.Resampling.BOX)
    pixels = np.asarray(shrunken).reshape(-1, 3)
    return bool((np.ptp(pixels, axis=0) < BLANK_RANGE).all())


def _thumbnail(image: Image.Image) -> bytes:
    # At this size JPEG is written ten times as fast as WebP, for a tenth more bytes.
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


def _one_of_each_kind() -> list[bytes]:
    """Tiny pictures whose decoding loads every part of every reader."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    samples: list[bytes] = [b"", b"\0"]
    for mode, formats in {
        "RGB": ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"),
        "RGBA": ("PNG", "WEBP", "TIFF"),
        "P": ("PNG", "GIF"),
        "L": ("PNG", "JPEG"),
        "I;16": ("PNG", "TIFF"),
        "CMYK": ("JPEG", "TIFF"),
    }.items():
        image = Image.linear_gradient("L").resize((16, 12)).convert(mode)
        for format in formats:
            if format not in Image.SAVE:  # Pillow was built without it, and reads none, either
                continue
            file = io.BytesIO()
            options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
            if format not in ("GIF", "BMP"):
                options |= {"exif": exif.tobytes(), "icc_profile": profile}
            image.save(file, format, **options)
            samples += [file.getvalue(), file.getvalue()[:-20]]
    samples.append(
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text>x</text><rect width="5"/></svg>'
    )
    # Not a picture, but as far as the header looks like one: enough to load its reader.
    samples.append(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 32)
    return samples
