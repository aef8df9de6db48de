"""Contact sheets: many small pictures with their captions on one PNG or one HTML page.

Belongs here: layout, for any pictures in groups. Which pictures, and what is said of them, belongs to who asks.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genai_assets import durable
from genai_assets.templates import page_template

_CELL = 112
_GAP = 8
_MARGIN = 20
_LINE = 15
_LINES = 5  # of text below a picture
_PAPER, _INK, _FAINT, _MARK = (250, 250, 248), (30, 30, 34), (110, 110, 116), (190, 60, 40)


@dataclass(frozen=True)
class Tile:
    """A picture on a sheet.

    Attributes:
        picture: bytes of a small JPEG, PNG or WebP; empty where there is none to show.
        lines: what stands below it, the most important first.
        marked: set apart by a coloured frame.
    """

    picture: bytes
    lines: tuple[str, ...] = ()
    marked: bool = False


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, under a title."""

    title: str
    tiles: tuple[Tile, ...]


def write_sheet(path: Path, groups: Sequence[Group], *, title: str = "", columns: int = 8) -> None:
    """Draw groups as one PNG, each beginning a row; small groups share one.

    Args:
        path: the file; written all or nothing.
        groups: what to show.
        title: above everything.
        columns: pictures a row.
    """
    font, bold = ImageFont.load_default(12), ImageFont.load_default(15)
    rows = _in_rows(groups, columns)
    text_height = _LINE * _LINES + _GAP
    head = 2 * _LINE if title else 0
    width = 2 * _MARGIN + columns * (_CELL + _GAP) - _GAP
    height = 2 * _MARGIN + head + len(rows) * (_CELL + text_height + _LINE + _GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    if title:
        canvas.text((_MARGIN, _MARGIN), _shortened(title, bold, width - 2 * _MARGIN), _INK, font=bold)
    y = _MARGIN + head
    for row in rows:
        for place, heading, room, tile in row:
            x = _MARGIN + place * (_CELL + _GAP)
            if heading:
                canvas.text((x, y), _shortened(heading, font, room * (_CELL + _GAP) - _GAP), _FAINT, font=font)
            top = y + _LINE + 2
            sheet.paste(_fitted(tile.picture), (x, top))
            frame = _MARK if tile.marked else (222, 222, 218)
            canvas.rectangle((x - 1, top - 1, x + _CELL, top + _CELL), outline=frame, width=2 if tile.marked else 1)
            for number, (line, colour) in enumerate(_told(tile, font)):
                canvas.text((x, top + _CELL + 3 + number * _LINE), line, colour, font=font)
        y += _CELL + text_height + _LINE + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    durable.write_bytes(path, buffer.getvalue())


def write_page(path: Path, groups: Sequence[Group], *, title: str, facts: Sequence[str] = ()) -> None:
    """Write groups as one HTML page that needs no other file and no network; light and dark.

    Args:
        path: the file; written all or nothing.
        groups: what to show.
        title: of the page.
        facts: sentences below the title.
    """
    shown = [(group.title, [(_data_url(tile.picture), tile) for tile in group.tiles]) for group in groups]
    html = page_template("genai_assets.datasets", "contact_sheet.html.j2").render(
        title=title, facts=facts, groups=shown
    )
    durable.write_text(path, html)


def _in_rows(groups: Iterable[Group], columns: int) -> list[list[tuple[int, str, int, Tile]]]:
    """Tiles by row: column, heading of the group where it begins, columns the heading may take, tile."""
    rows: list[list[tuple[int, str, int, Tile]]] = []
    free = 0
    for group in groups:
        if len(group.tiles) > free:
            free = 0  # a group that does not fit into what is left of a row begins a new one
        for number, tile in enumerate(group.tiles):
            if free == 0:
                rows.append([])
                free = columns
            heading = group.title if number == 0 else ""
            rows[-1].append((columns - free, heading, min(len(group.tiles), columns), tile))
            free -= 1
    return rows


def _fitted(picture: bytes) -> Image.Image:
    """A picture in the middle of a white square."""
    square = Image.new("RGB", (_CELL, _CELL), (255, 255, 255))
    if picture:
        with Image.open(io.BytesIO(picture)) as opened:
            image = opened.convert("RGB")
        scale = _CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
        square.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return square


def _told(tile: Tile, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[tuple[str, tuple[int, int, int]]]:
    """The lines below a picture with their colours: the first may take two, what is too long is cut."""
    words, first = tile.lines[0].split() if tile.lines else [], ""
    while words and font.getlength(f"{first} {words[0]}".strip()) <= _CELL:
        first = f"{first} {words.pop(0)}".strip()
    lines = [(line, _INK) for line in (first, _shortened(" ".join(words), font, _CELL)) if line]
    lines += [(_shortened(line, font, _CELL), _FAINT) for line in tile.lines[1:] if line]
    return lines[:_LINES]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _data_url(picture: bytes) -> str:
    """The picture inside the page; a picture that is missing gives an empty address."""
    if not picture:
        return ""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp" if picture[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
