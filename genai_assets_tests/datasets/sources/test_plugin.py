"""The example of a package that adds a kind of source: found by a real entry point, opened, and read."""

import re
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.settings import Settings
from genai_assets_tests.datasets.sources.pictures import captions, everything, listing, surroundings

EXAMPLE = Path(__file__).parents[3] / "examples" / "picture_source_plugin"
GROUP = "genai_assets.sources"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What an installation leaves behind: the package on the path, and its entry points beside it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {value}" for name, value in project["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    sys.modules.pop("sprite_sheet_source", None)


@pytest.fixture
def sheet(tmp_path):
    art = tmp_path / "art"
    art.mkdir()
    image = Image.new("RGB", (128, 128))
    for number, colour in enumerate(["red", "green", "blue", "white"]):
        image.paste(colour, ((number % 2) * 64, (number // 2) * 64, (number % 2) * 64 + 64, (number // 2) * 64 + 64))
    image.save(art / "icons.png")
    (art / "icons.txt").write_text("a red square\n\na blue square\n")
    return art


def opened(sheet, **options):
    kind = entry_points(group=GROUP)["sprite-sheet"].load()
    given = {"sheet": sheet / "icons.png", "captions": sheet / "icons.txt", "cell": 64, **options}
    return kind.open(kind.Options(**given), surroundings(sheet))


def test_the_kind_is_found_by_its_entry_point_and_gives_its_pictures(installed, sheet):
    found = everything(opened(sheet))
    assert captions(opened(sheet)) == {"0,0": "a red square", "0,1": "a blue square"}
    blue = found["0,1"]
    (sheet / "blue.png").write_bytes(blue.data)
    with Image.open(sheet / "blue.png") as cell:
        assert (cell.size, cell.getpixel((30, 30))) == ((64, 64), (0, 0, 255))
    assert blue.description.provenance == {"sheet": "icons.png", "cell": "0,1"}
    assert [fetched.key for fetched in opened(sheet).fetch(["0,0", "9,9"])] == ["0,0"]


def test_its_states_follow_cells_and_captions(installed, sheet):
    before = listing(opened(sheet))
    (sheet / "icons.txt").write_text("a red square\n\na deep blue square\n")
    after = listing(opened(sheet))
    assert before["0,0"] == after["0,0"]
    assert before["0,1"].state != after["0,1"].state


def test_what_it_cannot_read_is_said_and_never_empty(installed, sheet):
    with pytest.raises(ValueError, match="celll"):
        opened(sheet, celll=32)
    with pytest.raises(SourceUnreadable, match=r"has 3 lines, but .* has 1 cells of 128 pixels"):
        listing(opened(sheet, cell=128))
    (sheet / "icons.png").write_bytes(b"no picture")
    with pytest.raises(SourceUnreadable, match=r"the sheet .* cannot be read"):
        listing(opened(sheet))


def test_the_settings_that_its_page_shows_open_it(installed, sheet, monkeypatch, tmp_path):
    from genai_assets.datasets.sources.configured import sources_from

    [shown] = re.findall(r"```toml\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    (tmp_path / "genai.toml").write_text(shown)
    monkeypatch.setenv("GENAI_CONFIG", str(tmp_path / "genai.toml"))
    monkeypatch.chdir(tmp_path)
    source = next(source for source in sources_from(Settings()) if source.name == "sprite-sheet:icons.png")
    assert source.licence == "LicenseRef-own"
    assert set(captions(source)) == {"0,0", "0,1"}


def test_the_tables_that_the_page_of_sources_shows_are_understood(installed, tmp_path, monkeypatch):
    from genai_assets.datasets.sources.archive import ArchiveSource
    from genai_assets.datasets.sources.hugging_face import HuggingFaceSource
    from genai_assets.datasets.sources.icon_sets import IconSetSource
    from genai_assets.datasets.sources.picture_folder import PictureFolderSource
    from genai_assets.datasets.sources.sql import SqlSource
    from genai_assets.datasets.sources.table import TableSource

    kinds = {
        "folder": PictureFolderSource,
        "archive": ArchiveSource,
        "table": TableSource,
        "hugging-face": HuggingFaceSource,
        "sql": SqlSource,
        "icon-set": IconSetSource,
        "sprite-sheet": entry_points(group=GROUP)["sprite-sheet"].load(),
    }
    page = (EXAMPLE.parents[1] / "docs" / "data_sources.md").read_text()
    shown = [table for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) for table in tables(text)]
    assert {table["kind"] for table in shown} == set(kinds)
    monkeypatch.setenv("SHOP_PASSWORD", "x")
    names = set()
    for table in shown:
        kind = kinds[table.pop("kind")]
        if kind is SqlSource:
            table["url"] = table["url"].replace("psycopg:", "psycopg2:")  # a dialect's module without its driver
        names.add(kind.open(kind.Options(**table), surroundings(tmp_path)).name)
    assert len(names) == len(shown)


def tables(text):
    return tomllib.loads(text)["dataset"]["sources"]
