"""Files that are a picture and something else besides: an archive, a document, a program, a page.

Belongs here: what follows the end of a picture, and which second format its bytes also are. A picture that merely drags
bytes behind it is common and harmless: telephones append films, maps and previews. A file that is a working archive or
page as well is no accident, and must not lie in a store of pictures under a licence of pictures and be published with a
data set; that only its pixels would be trained on does not change what is handed on.
"""

import re
import struct

_TAIL = 65_557  # a ZIP's directory ends within this many last bytes: 22, and a comment of at most 65,535
_PDF_WITHIN = 1024  # readers of PDF search so far for its beginning
_MARKUP_WITHIN = 4096

_BEGINNINGS = (
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x1f\x8b\x08", "a gzip archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"#!", "a script"),
    (b"%PDF-", "a PDF"),
)
_MARKUP = re.compile(rb"<\?php|<script[\s>]|<html[\s>]|<!doctype html|<svg[\s>]|<iframe[\s>]", re.IGNORECASE)
_TAR = (257, b"ustar")


def end_of_picture(data: bytes, format: str) -> int:
    """Where the picture ends in its file, by its format's own marks; the file's length where there are none.

    Args:
        data: the bytes of a picture that was decoded.
        format: one of ``decoding.FORMATS``.
    """
    ends = {"JPEG": _end_of_jpeg, "PNG": _end_of_png, "GIF": _end_of_gif, "WEBP": _end_of_riff}
    ends |= {"AVIF": _end_of_boxes, "HEIC": _end_of_boxes}
    try:
        end = ends[format](data) if format in ends else len(data)
    except (IndexError, struct.error):
        return len(data)
    return min(end, len(data))


def second_nature(data: bytes, end: int) -> str:
    """What else a picture's file is, in words ("a ZIP archive"); empty when it is a picture alone.

    Args:
        data: the whole file.
        end: as of :func:`end_of_picture`.
    """
    if _is_zip(data):
        return "a ZIP archive"
    if data.find(b"%PDF-", 0, _PDF_WITHIN) >= 0:
        return "a PDF"
    appended = data[end:].lstrip(b"\0\t\r\n ")
    for beginning, kind in _BEGINNINGS:
        if appended.startswith(beginning):
            return kind
    if appended[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive"
    if _MARKUP.search(appended) or (not data.lstrip().startswith(b"<") and _MARKUP.search(data[:_MARKUP_WITHIN])):
        return "a web page or script"
    return ""


def _is_zip(data: bytes) -> bool:
    """Whether a reader of ZIP would find a directory: it looks from the end, whatever comes before."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _TAIL))
    if at < 0 or len(data) < at + 22:
        return False
    disk, first_disk, entries, _, size = struct.unpack_from("<HHHHI", data, at + 4)
    return disk == first_disk == 0 and entries > 0 and 0 < size <= at and data[at - size :].startswith(b"PK\x01\x02")


def _end_of_jpeg(data: bytes) -> int:
    # Up to the first scan segments tell their lengths: a preview within them has an end mark of its own. In scans, a
    # byte 0xff is never followed by 0xd9 but at the end.
    at = 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = data.find(b"\xff\xd9", at)
    return end + 2 if end >= 0 else len(data)


def _end_of_png(data: bytes) -> int:
    at = 8
    while data[at + 4 : at + 8] != b"IEND":
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return at + 12


def _end_of_gif(data: bytes) -> int:
    at = 13 + _colours(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            at += 11 + _colours(data[at + 9])
        elif data[at] == 0x21:
            at += 2
        else:
            return len(data)  # damaged after the first frame; where it ends cannot be told
        while length := data[at]:
            at += 1 + length
        at += 1
    return at + 1


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_riff(data: bytes) -> int:
    length = struct.unpack_from("<I", data, 4)[0]
    return 8 + length + length % 2


def _end_of_boxes(data: bytes) -> int:
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if not all(0x20 <= byte < 0x7F for byte in kind):
            return at  # no box: something else begins here
        if length == 1:
            length = struct.unpack_from(">Q", data, at + 8)[0]
        if length == 0:
            return len(data)  # a last box may leave its length open
        if length < 8 or at + length > len(data):
            return at
        at += length
    return at
