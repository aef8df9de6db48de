"""Contact sheets show every picture with its words, on one file that needs nothing else."""

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from genai_assets.datasets.contact_sheet import Group, Tile, write_page, write_sheet


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (60, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def test_every_picture_is_on_the_sheet_whatever_the_groups(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    groups = [Group("first", tuple(Tile(picture(colour), (colour,)) for colour in colours[:3]))]
    groups += [Group("a title that is far too long for one picture", (Tile(picture(colour), (colour * 30,), True),))
               for colour in colours[3:]]  # fmt: skip
    write_sheet(tmp_path / "sheet.png", groups, title="All", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    for colour in colours:
        shown = (pixels == np.array(Image.new("RGB", (1, 1), colour).getpixel((0, 0)))).all(axis=1).sum()
        assert 112 * 50 <= shown <= 112 * 62, f"{colour} keeps its shape of two to one"


def test_a_sheet_of_nothing_is_a_sheet(tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.png", [], title="Nothing")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100


def test_the_page_has_the_pictures_in_it_and_no_markup_from_captions(tmp_path: Path) -> None:
    kinds = {"png": picture("red"), "jpeg": picture("red", "JPEG"), "webp": picture("red", "WEBP")}
    tiles = [Tile(data, (f"<script>{kind}</script>", "line"), kind == "png") for kind, data in kinds.items()]
    write_page(
        tmp_path / "page.html", [Group("group & co", (*tiles, Tile(b"")))], title="<b>T</b>", facts=("One fact.",)
    )
    html = (tmp_path / "page.html").read_text()
    found = dict(re.findall(r'src="data:image/(\w+);base64,([^"]+)"', html))
    assert {kind: base64.b64decode(data) for kind, data in found.items()} == kinds
    assert "<script>" not in html and "<b>T</b>" not in html and "group &amp; co" in html and "One fact." in html
    assert html.count('class="marked"') == 1
    assert not re.search(r'(src|href)="(?!data:)', html), "it needs no other file"
