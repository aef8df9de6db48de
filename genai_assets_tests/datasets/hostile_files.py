"""A generator of hostile and odd files: crafted ones with a known verdict, and any number of mutated ones.

Deterministic: the same seed and index are the same bytes, so that a file that broke something can be made again by its
name alone. Nothing is downloaded; every file starts from a small picture drawn here.
"""

import base64
import functools
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

ACCEPTED = ""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="90" height="60">'
RECT = b'<rect width="40" height="60" fill="teal"/>'


@dataclass(frozen=True)
class HostileFile:
    """A file, and what must become of it.

    Attributes:
        name: says how it was made.
        data: its bytes.
        fault: the kind of fault it must be quarantined with; empty when it must be accepted; None when either is fine
            as long as there is a verdict.
        says: words that its reason, or its notes when it is accepted, must contain.
    """

    name: str
    data: bytes
    fault: str | None = None
    says: str = ""


def picture(mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture with something to see: two gradients and some noise."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 220, width), np.linspace(0, 220, height))
    noise = np.random.default_rng(7).integers(0, 35, (height, width))
    bands = [across + noise, down + noise, 220 - across + noise]
    image = Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(down.astype(np.uint8)))
    if mode == "I;16":
        return Image.fromarray(((across + noise) * 257).astype(np.uint16))
    return image.convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@functools.cache
def well_formed() -> dict[str, bytes]:
    """One good file of every kind that is read; the extra ``heif`` has to be installed."""
    import pillow_heif

    frames = [picture().rotate(angle) for angle in (0, 90, 180)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 40}
    exif = Image.Exif()
    exif[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    heic = io.BytesIO()
    pillow_heif.from_pillow(picture()).save(heic)
    return {
        "rgb.png": encoded(picture(), "PNG"),
        "rgba.png": encoded(picture("RGBA"), "PNG"),
        "grey-alpha.png": encoded(picture("LA"), "PNG"),
        "palette.png": encoded(picture("P"), "PNG", transparency=3),
        "one-bit.png": encoded(picture("1"), "PNG"),
        "16-bit.png": encoded(picture("I;16"), "PNG"),
        "profile.png": encoded(picture(), "PNG", icc_profile=icc_profile()),
        "animated.png": encoded(picture(), "PNG", **animated),
        "rgb.jpg": encoded(picture(), "JPEG"),
        "progressive.jpg": encoded(picture(), "JPEG", progressive=True),
        "grey.jpg": encoded(picture("L"), "JPEG"),
        "cmyk.jpg": encoded(picture("CMYK"), "JPEG"),
        "turned.jpg": encoded(picture(), "JPEG", exif=exif, icc_profile=srgb),
        "lossy.webp": encoded(picture(), "WEBP"),
        "lossless.webp": encoded(picture("RGBA"), "WEBP", lossless=True),
        "animated.webp": encoded(picture(), "WEBP", **animated),
        "palette.gif": encoded(picture("P"), "GIF"),
        "animated.gif": encoded(picture(), "GIF", **animated),
        "rgb.bmp": encoded(picture(), "BMP"),
        "palette.bmp": encoded(picture("P"), "BMP"),
        "raw.tif": encoded(picture(), "TIFF"),
        "lzw.tif": encoded(picture("RGBA"), "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(picture("I;16"), "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(picture(), "TIFF", compression="jpeg"),
        "fax.tif": encoded(picture("1"), "TIFF", compression="group4"),
        "cmyk.tif": encoded(picture("CMYK"), "TIFF"),
        "lab.tif": encoded(picture("LAB"), "TIFF"),
        "pages.tif": encoded(picture(), "TIFF", save_all=True, append_images=frames[1:]),
        "rgb.avif": encoded(picture(), "AVIF"),
        "rgba.avif": encoded(picture("RGBA"), "AVIF"),
        "rgb.heic": heic.getvalue(),
        "drawing.svg": SVG + RECT + b'<path d="M50 5 L85 55 L50 40 Z" fill="#c30"/></svg>',
    }


def crafted() -> list[HostileFile]:
    """Files made on purpose, each with the verdict it must get. ``max_pixels`` is taken to be 64,000,000."""
    files = well_formed()
    return [
        *(HostileFile(f"good {name}", data, ACCEPTED) for name, data in files.items()),
        *_not_pictures(),
        *_bombs(),
        *_drawings(),
        *_polyglots(),
        *_odd_but_good(),
        *(
            HostileFile(f"first half of {name}", data[: len(data) // 2], "undecodable")
            for name, data in files.items()
            if not name.startswith(("animated", "pages"))  # their first frame is whole
        ),
    ]


def costly() -> list[HostileFile]:
    """Files that no check of a header finds out: they cost time or memory beyond any bound, or kill their reader."""
    turbulence = b"<filter id='f'><feTurbulence baseFrequency='0.05' numOctaves='1000000'/></filter>"
    swollen = base64.b64encode(png(20_000, 20_000, pixels=_rows(20_000, 20_000)))
    image = b"<image width='90' height='60' href='data:image/png;base64," + swollen + b"'/>"
    return [
        HostileFile(
            "SVG with turbulence", SVG + turbulence + b"<g filter='url(#f)'>" + RECT + b"</g></svg>", "too slow"
        ),
        HostileFile("SVG with 400 million pixels within", SVG + image + b"</svg>", "crashed", "SIGABRT"),
        HostileFile("PNG of 128 MB", png(8000, 8000, pixels=_rows(16_000, 8000), depth=16), "too much memory"),
    ]


def mutated(count: int, seed: int = 0) -> Iterator[HostileFile]:
    """``count`` files, each a good one damaged in one to three ways."""
    names = sorted(well_formed())
    for index in range(count):
        draw = random.Random(f"{seed}/{index}")
        name = names[index % len(names)]
        data = well_formed()[name]
        done = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            mutate = draw.choice(_MUTATIONS)
            data = mutate(data, draw)
            done.append(mutate.__name__.removeprefix("_").replace("_", " "))
        yield HostileFile(f"{seed}/{index}: {name}, {', '.join(done)}", data)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], pixels: bytes = b"", depth: int = 8) -> bytes:
    """A PNG of grey pixels that claims what it is told to claim; sums are right."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def zip_archive(comment: bytes = b"") -> bytes:
    """A small ZIP file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("run.js", "alert(1)")
        archive.comment = comment
    return file.getvalue()


def icc_profile() -> bytes:
    """A profile of RGB monitor whose red is sRGB's green and whose green is its red, with gamma 2.2."""

    def point(x: float, y: float, z: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65_536) for value in (x, y, z)))

    gamma = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(2.2 * 256), 0)
    name = b"Red and green swapped\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(80),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": point(0.9642, 1.0, 0.8249),
        b"rXYZ": point(0.3851, 0.7169, 0.0971),
        b"gXYZ": point(0.4361, 0.2225, 0.0139),
        b"bXYZ": point(0.1431, 0.0606, 0.7141),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = b"lcms" + struct.pack(">I", 0x0210_0000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63_190, 65_536, 54_061)
    header = struct.pack(">I", 128 + len(table) + len(body)) + header
    return header + bytes(128 - len(header)) + table + body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _rows(width: int, height: int) -> bytes:
    packer = zlib.compressobj(9)
    row = b"\0" + b"\x80" * width
    return b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])


def _not_pictures() -> list[HostileFile]:
    return [
        HostileFile("zero bytes", b"", "undecodable", "empty"),
        HostileFile("one byte", b"\x89", "undecodable", "not a picture"),
        HostileFile("a thousand noughts", bytes(1000), "undecodable", "not a picture"),
        HostileFile("random bytes", random.Random(1).randbytes(5000), "undecodable", "not a picture"),
        HostileFile("a web page", b"<!doctype html><html><body>404</body></html>", "undecodable", "not a picture"),
        HostileFile("a ZIP archive", zip_archive(), "undecodable", "not a picture"),
        HostileFile("a PDF", b"%PDF-1.7\n1 0 obj\n", "undecodable", "not a picture"),
        HostileFile("a netpbm picture", encoded(picture(), "PPM"), "undecodable", "not a picture"),
        HostileFile("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable", "not a picture"),
        HostileFile("a film", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99), "undecodable", "not a picture"),
        HostileFile("PNG's first bytes and nothing", b"\x89PNG\r\n\x1a\n", "undecodable", "it begins as PNG"),
        HostileFile("JPEG's first bytes, then noise", b"\xff\xd8\xff" + random.Random(2).randbytes(999), "undecodable"),
        HostileFile("floating point", encoded(picture("F"), "TIFF"), "undecodable", "floating-point"),
    ]


def _bombs() -> list[HostileFile]:
    bomb = zlib.compress(bytes(80_000_000), 9)
    gif = bytearray(well_formed()["palette.gif"])
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    webp_canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\xff\xff" * 2
    webp = b"RIFF" + struct.pack("<I", 4 + len(webp_canvas)) + b"WEBP" + webp_canvas
    avif = bytearray(well_formed()["rgb.avif"])
    at = avif.index(b"ispe")
    avif[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
    tags = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 60_000), (279, 4, 1, 2**32 - 1)]
    greedy = [*tags[:6], (277, 3, 1, 1), (700, 1, 2**32 - 1, 8), (34_675, 7, 2**31, 8)]
    return [
        HostileFile("PNG of 65,535 × 65,535", png(65_535, 65_535), "undecodable", "pixels"),
        HostileFile("PNG of 2³¹ pixels a side", png(2**31 - 1, 2**31 - 1), "undecodable"),
        HostileFile("PNG of no width", png(0, 10), "undecodable"),
        HostileFile("PNG of 40,000 × 1", png(40_000, 1, pixels=_rows(40_000, 1)), "undecodable", "side is longer"),
        HostileFile("PNG of 60 million equal pixels", png(30_000, 2000, pixels=_rows(30_000, 2000)), "too long"),
        HostileFile("PNG whose pixels go on for 80 MB", png(64, 64, pixels=bomb), None),
        HostileFile(
            "PNG with a zTXt bomb", png(64, 64, (b"zTXt", b"k\0\0" + bomb), pixels=_rows(64, 64)), "undecodable"
        ),
        HostileFile("PNG with an iTXt bomb", png(64, 64, (b"iTXt", b"k\0\1\0\0\0" + bomb), pixels=_rows(64, 64)), None),
        HostileFile(
            "PNG with an iCCP bomb", png(64, 64, (b"iCCP", b"k\0\0" + bomb), pixels=_rows(64, 64)), "undecodable"
        ),
        HostileFile("PNG of 50,000 text chunks", png(64, 64, *[(b"tEXt", b"k\0v" * 9)] * 50_000), "undecodable"),
        HostileFile("GIF of 65,535 × 65,535", bytes(gif), "undecodable", "pixels"),
        HostileFile("WebP of 16,777,216 pixels a side", webp, "undecodable"),
        HostileFile("AVIF of 60,000 × 60,000", bytes(avif), "undecodable"),
        HostileFile("TIFF of 60,000 × 60,000", _tiff(tags), "undecodable", "pixels"),
        HostileFile("TIFF with tags of 4 GB", _tiff(greedy), "undecodable"),
        HostileFile("TIFF whose directories run in a circle", _tiff(tags[:3], following=8), "undecodable"),
    ]


def _tiff(tags: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)


def _drawings() -> list[HostileFile]:
    def drawing(inside: bytes, before: bytes = b"") -> bytes:
        return before + SVG + RECT + inside + b"</svg>"

    laughs = b'<!DOCTYPE s [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + at, b"&%c;" % (97 + at) * 10) for at in range(9)
    )
    plain_doctype = (
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    )
    within = b"data:image/png;base64," + base64.b64encode(encoded(picture(size=(8, 8)), "PNG"))
    reads_a_file = b"<image xlink:href='/etc/hostname' width='9' height='9'/>"
    return [
        HostileFile("SVG that names a file", drawing(reads_a_file), "undecodable", "outside"),
        HostileFile("SVG that names an address", drawing(b"<image href='http://127.0.0.1/x.png'/>"), "undecodable"),
        HostileFile("SVG that uses a file", drawing(b"<use href='other.svg#a'/>"), "undecodable", "outside"),
        HostileFile(
            "SVG with an SVG within", drawing(b"<image href='data:image/svg+xml,x'/>"), "undecodable", "outside"
        ),
        HostileFile(
            "SVG with a picture within", drawing(b"<image href='" + within + b"' width='9' height='9'/>"), ACCEPTED
        ),
        HostileFile("SVG with a script", drawing(b"<script>alert(1)</script>"), ACCEPTED, "scripts are not run"),
        HostileFile("SVG with a link", drawing(b"<a href='http://example.org'>" + RECT + b"</a>"), ACCEPTED),
        HostileFile("SVG with text", drawing(b"<text x='1' y='9'>hello</text>"), ACCEPTED, "<text> is not drawn"),
        HostileFile("SVG of a billion laughs", drawing(b"&j;", laughs + b"]>"), "undecodable", "declarations"),
        HostileFile(
            "SVG with a file as an entity",
            drawing(b"&x;", b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
            "undecodable",
            "declarations",
        ),
        HostileFile("SVG with a plain DOCTYPE", drawing(b"", plain_doctype), ACCEPTED),
        HostileFile("SVG in UTF-16", drawing(b"").decode().encode("utf-16"), ACCEPTED),
        HostileFile("SVG in no known encoding", drawing("<desc>café</desc>".encode("latin-1")), "undecodable", "UTF-8"),
        HostileFile("SVG 5,000 deep", drawing(b"<g>" * 5000 + b"</g>" * 5000), "undecodable", "within each other"),
        HostileFile("SVG of 200,000 elements", drawing(b"<g/>" * 200_000), "undecodable", "elements"),
        HostileFile("SVG of 9 MB", drawing(b"<desc>" + b"x" * 9_000_000 + b"</desc>"), "undecodable", "longer than"),
        HostileFile("SVG cut off", drawing(b"")[:-9], "undecodable"),
        HostileFile("SVG of nothing", SVG + b"</svg>", "blank"),
        HostileFile("SVG of 10⁹ pixels a side", SVG.replace(b'"90"', b'"1e9"') + RECT + b"</svg>", None),
        HostileFile(
            "SVG that blurs by 10⁵",
            drawing(
                b"<filter id='b'><feGaussianBlur stdDeviation='100000'/></filter><g filter='url(#b)'>" + RECT + b"</g>"
            ),
            None,
        ),
        HostileFile("SVG that uses itself", drawing(b"<g id='a'><use href='#a'/></g>"), None),
    ]


def _polyglots() -> list[HostileFile]:
    files = well_formed()
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 9) + b"%PDF-1.7\n"
    jpeg = files["rgb.jpg"]
    film = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + random.Random(3).randbytes(5000)
    return [
        HostileFile("GIF and ZIP", files["palette.gif"] + zip_archive(), "polyglot", "a ZIP archive"),
        HostileFile("JPEG and ZIP", jpeg + zip_archive(), "polyglot", "a ZIP archive"),
        HostileFile(
            "JPEG and a ZIP that ends as JPEGs do", jpeg + zip_archive(b"\xff\xd9"), "polyglot", "a ZIP archive"
        ),
        HostileFile("PNG and HTML", files["rgb.png"] + b"<html><script>x()</script></html>", "polyglot", "web page"),
        HostileFile("PNG with PHP in its text", _with_text(b"<?php system($_GET[0]); ?>"), "polyglot", "web page"),
        HostileFile("JPEG and PDF", jpeg[:2] + comment + jpeg[2:], "polyglot", "a PDF"),
        HostileFile("WebP and a program", files["lossy.webp"] + b"\x7fELF" + bytes(200), "polyglot", "a program"),
        HostileFile("BMP and RAR", files["rgb.bmp"] + b"Rar!\x1a\x07\1\0" + bytes(99), None),
        HostileFile("AVIF and a script", files["rgb.avif"] + b"#!/bin/sh\nrm -rf /\n", "polyglot", "a script"),
        HostileFile("JPEG and a film (a motion photo)", jpeg + film, ACCEPTED, "bytes follow"),
        HostileFile("JPEG and a second JPEG (a gain map)", jpeg + jpeg, ACCEPTED, "bytes follow"),
        HostileFile("JPEG and padding", jpeg + bytes(4096), ACCEPTED, "bytes follow"),
        HostileFile("PNG and noise", files["rgb.png"] + random.Random(4).randbytes(999), ACCEPTED, "bytes follow"),
    ]


def _with_text(text: bytes) -> bytes:
    data = well_formed()["rgb.png"]
    return data[:33] + _chunk(b"tEXt", b"Comment\0" + text) + data[33:]


def _odd_but_good() -> list[HostileFile]:
    broken_exif = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    broken_profile = encoded(picture(), "PNG", icc_profile=random.Random(5).randbytes(600))
    return [
        HostileFile("a broken ICC profile", broken_profile, ACCEPTED, "its ICC profile is broken"),
        HostileFile("broken EXIF data", broken_exif, ACCEPTED),
        HostileFile("one pixel", encoded(picture(size=(1, 1)), "PNG"), "blank"),
        HostileFile("500 × 1 pixels", encoded(picture(size=(500, 1)), "PNG"), "too long"),
    ]


# Mutations: bytes and a source of chance in, bytes out.


def _flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, len(data) + 1)]


def _edit_the_header(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(min(len(changed), 80))] = draw.randrange(256)
    return bytes(changed)


def _put_an_extreme_number(data: bytes, draw: random.Random) -> bytes:
    form = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    most = 256 ** struct.calcsize(form) - 1
    number = draw.choice((0, 1, most, most // 2, most // 2 + 1, 0xFFFF & most))
    at = draw.randrange(max(1, min(len(data), draw.choice((64, 600, 1 << 30))) - 8))
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


def _splice(data: bytes, draw: random.Random) -> bytes:
    other = well_formed()[draw.choice(sorted(well_formed()))]
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other)) :]


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice((1, 4, 16, 200)) :] or b"\0"


def _double_a_piece(data: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(data)), draw.choice((4, 40, 400))
    return data[: at + length] + data[at : at + length] * draw.choice((1, 1, 50)) + data[at + length :]


def _insert_noise(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 3, 64, 2000))) + data[at:]


def _blank_a_piece(data: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(data)), draw.choice((2, 30, 500))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def _noise_behind_the_first_bytes(data: bytes, draw: random.Random) -> bytes:
    kept = draw.choice((4, 12, 40, 120))
    return data[:kept] + draw.randbytes(draw.randrange(2000))


def _append(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice((zip_archive(), b"<script>x</script>", draw.randbytes(300), data))


def _mend_sums(data: bytes, draw: random.Random) -> bytes:
    """Damage a PNG's chunks and make their sums right again, so that the damage gets past them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _flip_bits(data, draw)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = draw.randrange(len(chunks)) if chunks else 0
    for _ in range(3 if chunks else 0):
        kind, body = chunks[at]
        chunks[at] = (kind, _flip_bits(body, draw) if body else b"\0")
    draw.random() < 0.2 and draw.shuffle(chunks)
    return data[:8] + b"".join(_chunk(kind, body) for kind, body in chunks)


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bits,
    _truncate,
    _edit_the_header,
    _put_an_extreme_number,
    _splice,
    _cut_out,
    _double_a_piece,
    _insert_noise,
    _blank_a_piece,
    _noise_behind_the_first_bytes,
    _append,
    _mend_sums,
)
