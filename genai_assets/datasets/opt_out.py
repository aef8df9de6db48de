"""Opt-outs: how a picture says that it must not be trained on, and reading that.

Belongs here: the signals themselves, in a file's own metadata, in a table's fields or a response's headers, and in
sidecars beside a file. What follows from a signal (a record in quarantine) is validation's. Imports the standard
library alone, for it runs in every decoding worker.

Read are the PLUS vocabulary of data mining in XMP (https://ns.useplus.org/LDF/ldf-XMPSpecification), which IPTC's photo
metadata standard takes over; the reservation of the TDM Reservation Protocol (https://www.w3.org/community/tdmrep/);
the assertion of training and mining by C2PA and CAWG (https://cawg.io/training-and-data-mining/); the keywords ``noai``
and ``noimageai``; and plain words in the properties meant for rights. A reservation wins: where one place reserves and
another allows, the picture is reserved, and metadata too damaged to parse is still searched for the words, because one
picture too few costs less than one that was withheld.
"""

import re
import struct
import zlib
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from pathlib import PurePath, PurePosixPath
from typing import Any
from xml.parsers import expat

SIDECAR_SUFFIX = ".noai"
"""A file ``cup.noai`` or ``cup.png.noai`` reserves ``cup.png``; one named ``.noai`` its folder and all below it."""

SIDECAR_SIGNAL = "noai sidecar"
FOLDER_SIGNAL = "noai folder"

_SCANNED_BYTES = 1 << 25  # at either end of a file
_PACKET_BYTES = 1 << 22
_PACKETS = 16
_PARTS = 1000  # chunks of a PNG and segments of a JPEG that are looked at
_TEXT_CHARACTERS = 4000

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")

_NO = frozenset({"", "0", "0.0", "no", "n", "false", "f", "none", "null", "nan", "<na>", "nat", "-"})
_YES = frozenset({"1", "1.0", "yes", "y", "true", "t", "x", "allow", "allowed", "permitted", "unconstrained", "ok"})
_NOAI = re.compile(r"(?<![a-z])no[-_ ]?(?:image)?[-_]?ai(?![a-z])")
_MINING = r"(?:text[- ]and[- ]data[- ]mining|data[- ]?mining|tdm)"
_LEARNER = r"(?:a\.?i\.?|ml|artificial intelligence|machine[- ]learning|generative|neural network)s?"
_TRAINING = r"(?:train\w*|mining|data ?sets?|learning|models?)"
_SAYS_TRAINING = re.compile(
    rf"\b(?:{_MINING}\b|{_LEARNER}\b.{{0,60}}\b{_TRAINING}|{_TRAINING}\b.{{0,60}}\b{_LEARNER})(?!\w)"
)
_SAYS_NO = re.compile(
    r"\b(?:no|not|never|without|neither|nor|prohibit\w*|forbid\w*|reserv\w*|exclud\w*|disallow\w*|opt\w*[- ]out)\b"
)
_SAYS_FREE = re.compile(r"\b(?:no|without) (?:any )?(?:restriction|limit|objection|reservation)")
_TRAINING_USES = re.compile(
    rb"(?:c2pa|cawg)\.(ai_generative_training|ai_training|data_mining)"
    rb"(?:(?!(?:c2pa|cawg)\.)[\x00-\xff]){0,512}?use[\x00-\xff]{1,8}?(notAllowed|constrained)"
)
_AI_TRAINING_IS_OFF = re.compile(r"\b(?:train-ai|ai-train)\s*=\s*\"?(?:n|no|\?0)\b")

_RIGHTS_PROPERTIES = frozenset({"otherconstraints", "usageterms", "rights", "instructions", "copyright", "disclaimer"})
_KEYWORD_PROPERTIES = frozenset(
    {"subject", "keywords", "hierarchicalsubject", "tagslist", "robots", "xrobotstag", "comment"}
)
_RESERVATION_FIELDS = frozenset({"tdmreservation", "reservetdm", "tdmreserved"})
_OPT_OUT_FIELDS = frozenset({"noai", "noimageai", "noaitraining", "optout", "optedout", "aioptout", "donottrain"})
_ALLOWANCE_FIELDS = frozenset({"aitraining", "aigenerativetraining", "generativeaitraining", "allowaitraining"})
_USAGE_FIELDS = frozenset({"contentusage", "contentsignal"})


def signal_in_file(data: bytes) -> str:
    """The opt-out in a file's own metadata, in a few words (``"XMP plus:DataMining DMI-PROHIBITED"``); "" when none.

    XMP is found by its RDF namespace in the bytes themselves, as XMP's specification (part 3) allows a reader of
    unknown formats, so PNG, JPEG, WebP, TIFF, GIF, HEIC, AVIF, SVG and bare ``.xmp`` files are read alike; for
    PNG, compressed and plain text chunks are looked at as well, for JPEG also extended XMP, IPTC-IIM and comments. Of
    files beyond 64 MiB both ends are searched. Never raises, whatever the bytes; nothing in them is fetched, resolved
    or expanded.
    """
    if len(data) > 2 * _SCANNED_BYTES:
        data = data[:_SCANNED_BYTES] + data[-_SCANNED_BYTES:]
    for signal in _signals(data):
        if signal:
            return signal
    return ""


def signal_in_fields(fields: Mapping[str, Any]) -> str:
    """The opt-out among a row's columns or a response's headers; "" when none.

    Names are compared without case, blanks, ``-``, ``_`` and prefixes (``meta.``, ``plus:``). Known are ``noai``,
    ``noimageai``, ``no_ai_training``, ``opt_out``, ``do_not_train`` (anything but a no, a nought or nothing reserves);
    ``ai_training``, ``ai_generative_training``, ``allow_ai_training`` (anything but a yes reserves);
    ``tdm_reservation`` (1 reserves); ``data_mining`` (a ``DMI-PROHIBITED…`` of PLUS); ``robots``, ``X-Robots-Tag`` and
    ``keywords`` (the word ``noai`` or ``noimageai``); ``Content-Usage`` and ``Content-Signal`` (``train-ai=n``,
    ``ai-train=no``); ``rights``, ``usage_terms`` and ``other_constraints`` (plain words). Fields that are missing or
    empty say nothing.
    """
    for name, value in fields.items():
        if signal := _field_signal(str(name), value):
            return signal
    return ""


def is_noai_sidecar(path: PurePath | str) -> bool:
    """Whether a file is a ``.noai`` sidecar, of one picture or, named ``.noai``, of a folder. Nothing is opened."""
    path = PurePath(path)
    return path.suffix.casefold() == SIDECAR_SUFFIX or path.name.casefold() == SIDECAR_SUFFIX


def signal_in_sidecars(picture: PurePath | str, sidecars: Container[str]) -> str:
    """The opt-out of a picture by the sidecars beside and above it; "" when none.

    Args:
        picture: its path within the source ("shoes/red.png").
        sidecars: paths of all ``.noai`` files of the source, POSIX, relative to the same root.
    """
    path = PurePosixPath(PurePath(picture).as_posix())
    if str(path.with_suffix(SIDECAR_SUFFIX)) in sidecars or f"{path}{SIDECAR_SUFFIX}" in sidecars:
        return SIDECAR_SIGNAL
    if any(str(folder / SIDECAR_SUFFIX) in sidecars for folder in path.parents):
        return FOLDER_SIGNAL
    return ""


def _signals(data: bytes) -> Iterator[str]:
    for packet in _xmp_packets(data):
        yield _xmp_signal(packet)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        for keyword, text in _png_texts(data):
            if keyword == "XML:com.adobe.xmp":
                yield _xmp_signal(text)  # again when it was plain, for the first time when it was compressed
            else:
                yield _named("PNG text", _field_signal(keyword, text))
    elif data.startswith(b"\xff\xd8"):
        yield from _jpeg_signals(data)
    yield _c2pa_signal(data)


def _xmp_packets(data: bytes) -> Iterator[str]:
    """The text of every XMP packet in the bytes, at most so many and so long; cut short, it is still searched."""
    for encoding in _ENCODINGS:
        namespace = _RDF.encode(encoding)
        found, position = 0, data.find(namespace)
        while position >= 0 and found < _PACKETS:
            width = 1 if encoding == "utf-8" else 2
            head = max(0, position - 4096)
            start = data.rfind("<x:xmpmeta".encode(encoding), head, position)
            start = start if start >= 0 else data.rfind("<".encode(encoding), head, position)
            if start < 0:
                return
            name = re.match(r"<([\w:.-]{1,64})", data[start : start + 128 * width].decode(encoding, "replace"))
            closing = f"</{name[1]}>".encode(encoding) if name else b""
            end = data.find(closing, position, start + _PACKET_BYTES) if closing else -1
            end = end + len(closing) if end >= 0 else min(len(data), start + _PACKET_BYTES)
            yield data[start:end].decode(encoding, "replace")
            found += 1
            position = data.find(namespace, max(end, position + len(namespace)))


def _xmp_signal(packet: str) -> str:
    try:
        properties = list(_xmp_properties(packet))
    except (expat.ExpatError, _NotXmp, ValueError):
        return _named("XMP", _signal_in_damaged(packet))
    for namespace, name, value in properties:
        if signal := _property_signal(namespace, name, value):
            return _named("XMP", signal)
    return ""


class _NotXmp(Exception):
    """A document type declaration: no XMP has one, and entities would come with it."""


def _xmp_properties(packet: str) -> Iterator[tuple[str, str, str]]:
    """Namespace, local name and text of each property, list items one by one; attributes and elements alike."""
    found: list[tuple[str, str, str]] = []
    path: list[tuple[str, str]] = []
    texts: list[list[str]] = []

    def split(name: str) -> tuple[str, str]:
        namespace, _, local = name.rpartition(" ")
        return namespace, local

    def owner() -> tuple[str, str]:
        return next((name for name in reversed(path) if name[0] != _RDF), ("", ""))

    def begin(tag: str, attributes: dict[str, str]) -> None:
        path.append(split(tag))
        texts.append([])
        for name, value in attributes.items():
            namespace, local = split(name)
            if (namespace, local) == (_RDF, "resource"):
                found.append((*owner(), value))
            elif namespace and namespace != _RDF:
                found.append((namespace, local, value))

    def text(characters: str) -> None:
        if texts:
            texts[-1].append(characters)

    def end(_tag: str) -> None:
        if said := "".join(texts.pop()).strip():
            found.append((*owner(), said))
        path.pop()

    def refuse(*_: Any) -> None:
        raise _NotXmp

    parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.Parse(packet.strip("\ufeff\x00 \r\n\t").encode("utf-8", "replace"), True)
    yield from found


def _property_signal(namespace: str, name: str, value: str) -> str:
    plain = _plain(name)
    if plain in _KEYWORD_PROPERTIES:
        return _keyword_signal(value)
    if plain == "reservation" and "tdm" in namespace.casefold():
        return "tdm:reservation" if value.strip().casefold() in _YES else ""
    if name.upper().startswith("DMI-PROHIBITED"):  # how some programs wrote it before PLUS had a property
        return name.upper() if value.strip().casefold() not in _NO else ""
    if plain in _RIGHTS_PROPERTIES or plain in {"datamining", *_RESERVATION_FIELDS}:
        return _field_signal(name, value)
    return ""


def _field_signal(name: str, value: Any) -> str:
    plain = _plain(name)
    if isinstance(value, list | tuple | set):
        return next((signal for item in value if (signal := _field_signal(name, item))), "")
    text = ("1" if value else "0") if isinstance(value, bool) else "" if value is None else str(value)
    said = text[:_TEXT_CHARACTERS].strip().casefold()
    if not said or said in {"nan", "<na>", "nat", "none", "null"}:
        return ""
    if plain == "datamining":
        term = said.rsplit("/", 1)[-1].upper()
        if term.startswith(("DMI-PROHIBITED", "PROHIBITED")):
            return f"plus:DataMining {term[:48]}"
        return f"{name.strip()[:40]} field" if said in _NO else ""
    if plain in _RESERVATION_FIELDS:
        return "tdm:reservation" if said in _YES else ""
    if plain in _OPT_OUT_FIELDS or plain.startswith("dmiprohibited"):
        return f"{name.strip()[:40]} field" if said not in _NO else ""
    if plain in _ALLOWANCE_FIELDS:
        return f"{name.strip()[:40]} field" if said not in _YES else ""
    if plain in _USAGE_FIELDS:
        return f"{name.strip()[:40]} field" if _AI_TRAINING_IS_OFF.search(said) else ""
    if plain in _KEYWORD_PROPERTIES:
        return _keyword_signal(said)
    if plain in _RIGHTS_PROPERTIES:
        return f"{name.strip()[:40]} in plain words" if _says_no_training(said) else ""
    return ""


def _plain(name: str) -> str:
    """``Xmp.plus:DataMining`` and ``data_mining`` are both ``datamining``; ``tdm:reservation`` keeps its ``tdm``."""
    local = name.rpartition(".")[2].casefold()
    local = local if local.startswith("tdm") else local.rpartition(":")[2]
    return re.sub(r"[^a-z0-9]", "", local)


def _keyword_signal(text: str) -> str:
    match = _NOAI.search(text[:_TEXT_CHARACTERS].casefold())
    return f"keyword {'noimageai' if 'image' in match[0] else 'noai'}" if match else ""


def _says_no_training(text: str) -> bool:
    """Whether a sentence forbids learning from the picture; a guess at what people write, rather once too often."""
    if _NOAI.search(text):
        return True
    return any(
        _SAYS_TRAINING.search(sentence) and _SAYS_NO.search(sentence) and not _SAYS_FREE.search(sentence)
        for sentence in re.split(r"[.;\n](?=\s|$)", text)
    )


def _signal_in_damaged(packet: str) -> str:
    """What an XMP packet that is no XML says as far as words go."""
    if match := re.search(r"DMI-PROHIBITED[A-Z-]{0,40}", packet):
        return f"plus:DataMining {match[0]} in damaged metadata"
    if re.search(r"\btdm:reservation\W{1,8}1\b", packet):
        return "tdm:reservation in damaged metadata"
    if signal := _NOAI.search(packet.casefold()):
        return f"keyword {signal[0]} in damaged metadata"
    return ""


def _png_texts(data: bytes) -> Iterator[tuple[str, str]]:
    """Keyword and text of each text chunk (PNG specification, third edition, 11.3.3); all inflate to 4 MiB at most."""
    left = _PACKET_BYTES
    for kind, chunk in islice(_png_chunks(data), _PARTS):
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        name, _, rest = chunk[:_PACKET_BYTES].partition(b"\x00")
        compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\x01")
        if kind == b"iTXt":
            rest = rest[2:].split(b"\x00", 2)[-1]  # without the flags, the language and the translated keyword
        elif kind == b"zTXt":
            rest = rest[1:]
        if compressed:
            try:
                rest = zlib.decompressobj().decompress(rest, left) if left else b""
            except zlib.error:
                continue
            left -= len(rest)
        yield name.decode("latin-1"), rest.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if kind != b"IDAT":
            yield kind, data[position + 8 : position + 8 + min(length, _PACKET_BYTES)]
        position += 12 + length


def _jpeg_signals(data: bytes) -> Iterator[str]:
    extended: dict[int, bytes] = {}
    for marker, payload in islice(_jpeg_segments(data), _PARTS):
        if marker == 0xE1 and payload.startswith(b"http://ns.adobe.com/xmp/extension/\x00"):
            # Namespace, a GUID of 32 digits, the whole length and this part's offset (XMP specification, part 3).
            (offset,) = struct.unpack_from(">I", payload.ljust(75, b"\x00"), 71)
            extended[offset] = payload[75:]
        elif marker == 0xED:
            for name, value in _iptc_values(payload):
                yield _named("IPTC", _field_signal(name, value))
        elif marker == 0xFE:
            yield _named("JPEG comment", _keyword_signal(payload[:_TEXT_CHARACTERS].decode("latin-1")))
    if extended:
        whole = b"".join(extended[offset] for offset in sorted(extended))
        yield _xmp_signal(whole[:_PACKET_BYTES].decode("utf-8", "replace"))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and payload of each segment before the first scan (ITU-T T.81, annex B)."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", data, position + 2)
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)


_IPTC_FIELDS = {25: "keywords", 40: "instructions", 116: "rights"}


def _iptc_values(payload: bytes) -> Iterator[tuple[str, str]]:
    """Keywords, special instructions and copyright notice of IPTC-IIM (version 4.2), wherever they lie in a segment."""
    for match in re.finditer(rb"\x1c\x02([\x19\x28\x74])([\x00-\x7f][\x00-\xff])", payload):
        length = int.from_bytes(match[2], "big")
        value = payload[match.end() : match.end() + min(length, _TEXT_CHARACTERS)]
        yield _IPTC_FIELDS[match[1][0]], value.decode("utf-8", "replace")


def _c2pa_signal(data: bytes) -> str:
    """The assertion of training and mining, as it stands: an opt-out needs no valid signature to be honoured."""
    position = data.find(b"training-mining")
    for _ in range(_PACKETS):
        if position < 0:
            return ""
        if match := _TRAINING_USES.search(data, position, position + 4096):
            return f"C2PA {match[1].decode()} {match[2].decode()}"
        position = data.find(b"training-mining", position + 1)
    return ""


def _named(where: str, signal: str) -> str:
    return f"{where} {signal}" if signal else ""
