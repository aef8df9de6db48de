"""Vector drawings: which SVG is safe to draw, and drawing it.

Belongs here: SVG and nothing else. A drawing is a document that may name files, addresses, entities and scripts; what
is drawn here names nothing outside of itself. It is drawn by resvg, which runs no script and knows no network, but
would read files that an ``<image>`` names: such drawings are refused before it sees them.
"""

import re
from xml.parsers import expat

import resvg_py

SIDE = 512
"""Pixels of the longer side of a drawing that comes as a picture; its own measures are only a proportion."""

MAX_BYTES = 8 * 1024**2
"""A longer drawing is refused unread."""

MAX_ELEMENTS = 100_000
MAX_DEPTH = 256

_HEAD_BYTES = 65_536  # generators write long comments before the first element
_ROOT = re.compile(r"<(?:[\w.-]+:)?svg[\s/>]")
_PICTURE_WITHIN = re.compile(r"data:image/(?:png|jpe?g|gif|webp)[;,]", re.IGNORECASE)
_XLINK = "http://www.w3.org/1999/xlink"
_LEADS_ELSEWHERE = {"a", "script"}  # a link is not drawn, a script is not run: neither is followed


class UndecodablePicture(ValueError):
    """A picture cannot be decoded, or must not be; the message is the reason, fit for a quarantine table."""


def announces_itself(data: bytes) -> bool:
    """Whether bytes begin as an SVG document does."""
    head = data[:_HEAD_BYTES]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        text = head.decode("utf-8", errors="replace")
    else:
        return False
    return _ROOT.search(text) is not None


def draw(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Draw an SVG file from outside as a PNG with a transparent ground, its longer side :data:`SIDE` pixels.

    Returns:
        The PNG, and what to note.

    Raises:
        UndecodablePicture: too long, not an SVG, or it declares entities or names something outside of itself.
    """
    if len(data) > MAX_BYTES:
        raise UndecodablePicture(f"an SVG of {len(data):,} bytes is longer than the {MAX_BYTES:,} that are allowed")
    text = _text(data)
    notes = _check(text)
    return render_svg(text, SIDE), notes


def render_svg(svg: str, size: int) -> bytes:
    """Draw an SVG of our own as a PNG with a transparent ground; it is fitted into ``size`` × ``size`` pixels.

    Raises:
        UndecodablePicture: not an SVG.
    """
    try:
        # System fonts would make the picture depend on the machine, and cost a scan of them each time.
        return resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise UndecodablePicture(f"not an SVG that can be drawn: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust library; by design not an Exception
            raise
        raise UndecodablePicture(f"an SVG that makes its reader panic: {error}") from error


def _text(data: bytes) -> str:
    """The document as text, by its byte order mark or as UTF-8, whatever encoding it claims for itself."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UndecodablePicture("an SVG that is not text in UTF-8 (nor UTF-16 with its mark)") from error


def _check(text: str) -> tuple[str, ...]:
    """Read the document once, building nothing; return what to note."""
    notes: dict[str, None] = {}
    depth = 0
    elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth += 1
        elements += 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise UndecodablePicture(f"an SVG of more than {MAX_ELEMENTS:,} elements, or {MAX_DEPTH} within each other")
        element = name.rpartition(" ")[2]
        if element == "script":
            notes["scripts are not run"] = None
        elif element in ("text", "foreignObject"):
            notes[f"<{element}> is not drawn"] = None
        if element in _LEADS_ELSEWHERE:
            return
        for attribute, value in attributes.items():
            if attribute in ("href", f"{_XLINK} href"):
                _refuse_reference(element, value.strip())

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(_: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            raise UndecodablePicture("an SVG with declarations of its own (DOCTYPE […]); save it without")

    # The encoding is overruled, so that what is checked here is what will be drawn.
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise UndecodablePicture(f"not an SVG that can be drawn: {error}") from error
    return tuple(notes)


def _refuse_reference(element: str, target: str) -> None:
    if target.startswith("#") or not target:
        return
    if element in ("image", "feImage") and _PICTURE_WITHIN.match(target):
        return
    raise UndecodablePicture(f"an SVG whose <{element}> names something outside of it: {target[:60]}")
