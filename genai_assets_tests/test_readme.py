"""The words around the code are true: commands run, paths and links are there, tables say what the code says.

What is shown must be decided upon: a shell line of a page is run here, parsed here, or begins with a word that is known
to be harmless. Whoever adds a module, a setting or an asset is told which line of which page is missing.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from genai_assets.settings import Settings

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genai_assets"
README = ROOT / "README.md"
SETTINGS_PAGE = ROOT / "docs" / "configuration.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# In two parts each, so that this file does not name them itself.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pytorch", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("unpkg", "com"),
        ("jsdelivr", "net"),
        ("anaconda", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("proxy.golang", "org"),
    )
]

# Too dear to run here (the whole graph, drawing, servers) or run by other tests; parsed only.
NOT_RUN = (
    "make",
    "source .venv/bin/activate",
    ".venv/bin/python -m",
    "genai demo",
    "genai prepare",
    "genai generate",
    "genai tune",
    "dagster job execute -m genai_assets.definitions -j retrain",
    "dagster dev",
)
PARSED_HERE = ("export", "mkdir", "curl", "python -c")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, with a common indentation taken away."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(*pages: Path) -> list[list[str]]:
    """Every line of the pages' shell blocks as words, without comments and without variables set in front."""
    found = []
    for line in (line for page in pages for block in blocks(page, "sh") for line in block.splitlines()):
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def outside_of_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def tracked() -> list[str]:
    """Every file of the project that git keeps, or would keep."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in listed if (ROOT / name).exists())


def tree() -> dict[str, str]:
    """Path to phrase, as the README's last block has them; a folder's path ends with a slash."""
    [block] = [block for block in blocks(README, "text") if block.startswith("README.md")]
    found: dict[str, str] = {}
    above: list[str] = []
    for line in block.splitlines():
        parts = re.fullmatch(r"( *)(\S+) *(.*)", line)
        assert parts, line
        indent, name, phrase = parts.groups()
        above = above[: len(indent) // 2]
        found["".join([*above, name])] = phrase
        if name.endswith("/"):
            above.append(name)
    return found


# Paths and links


def test_every_path_in_the_tree_is_there_and_all_but_rooms_have_a_phrase():
    paths = tree()
    assert not [path for path in paths if not (ROOT / path).exists()]
    rooms = {
        path for path in paths if path.endswith("/") and any(other.startswith(path) for other in paths.keys() - {path})
    }
    assert not [path for path, phrase in paths.items() if not phrase and path not in rooms]


def test_the_tree_names_every_top_level_entry_and_every_module():
    named = {path.rstrip("/") for path in tree()}
    top_level = {name.partition("/")[0] for name in tracked()}
    assert not sorted(entry for entry in top_level if not any(path.partition("/")[0] == entry for path in named))
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".html", ".j2") and path.name != "__init__.py"
    }
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert not sorted(modules - named), "these need a line in the README's tree"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", outside_of_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_the_pages_leads_somewhere(page: Path):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_of_blocks(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(target)
    assert not dead


def test_no_page_has_a_figure_that_is_still_to_be_measured():
    missing = [
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"<!-- FIGURE: ([\w-]+) --> to be measured", page.read_text())
    ]
    assert not missing


def test_no_file_of_the_project_names_a_package_registry():
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data[:8192]:
            found += [f"{name}: {address}" for address in REGISTRIES if address.encode() in data]
    assert not found


# Commands


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.+)$", text, flags=re.MULTILINE)
        code += [shlex.join(words) for words in commands(page)]
        named = {match[1] for part in code if (match := re.match(r"make ([a-z-]+)(?:$|\s)", part))}
        assert named <= targets, page.name


def parse(command: Any, name: str, arguments: list[str], parent: Any = None) -> None:
    """Let a command line's parser take ``arguments``, down to the last command, without running any."""
    context = command.make_context(name, list(arguments), parent=parent)
    if hasattr(command, "commands"):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(below, name, rest, context)


def test_every_genai_command_that_a_page_shows_can_be_parsed():
    from typer.main import get_command

    from genai_assets.cli import app

    shown = [words for words in commands(*PAGES) if words[0] == "genai" and "--help" not in words]
    assert len(shown) > 3
    for words in shown:
        parse(get_command(app), words[0], words[1:])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, package_cache: Path) -> dict[str, str]:
    """Variables for a small home of its own, with Dagster's home as the README sets it up."""
    checkout = tmp_path_factory.mktemp("readme")
    shutil.copy(ROOT / "dagster.yaml", checkout)
    [line] = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("mkdir")]
    subprocess.run(["sh", "-c", line], cwd=checkout, check=True)
    home = checkout / ".genai"
    package_cache.mkdir(parents=True, exist_ok=True)
    (home / "packages").symlink_to(package_cache)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GENAI_")}
    return inherited | {
        "GENAI_HOME": str(home),
        "GENAI_DATASET__LIMIT": "20",
        "GENAI_DATASET__ICON_SETS": '["twemoji"]',
        "DAGSTER_HOME": str(home / "dagster"),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def run(words: list[str], environment: dict[str, str]) -> str:
    """Run one line as in an activated environment; its output."""
    module = {"genai": "genai_assets", "dagster": "dagster"}[words[0]]
    done = subprocess.run(
        [sys.executable, "-m", module, *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_the_cheap_commands_of_the_readme_run_in_their_order(environment: dict[str, str]):
    shown = [
        words
        for words in commands(README)
        if words[0] in ("genai", "dagster") and not shlex.join(words).startswith(NOT_RUN)
    ]
    shown.sort(key=lambda words: words[0])  # Dagster first: it makes the data that `genai data show` counts
    said = {shlex.join(words): run(words, environment) for words in shown}
    assert "feedback_dataset" in said["dagster asset list -m genai_assets.definitions"]
    assert "RUN_SUCCESS" in said["dagster job execute -m genai_assets.definitions -j ingest"]
    assert "CC-BY-4.0" in said["genai data show"]
    assert "animals-nature" in said["genai data release animals-nature"]
    assert not (Path(environment["HOME"]) / ".dagster").exists(), "Dagster's telemetry was on"


def test_every_command_that_a_page_shows_is_run_or_decided_upon():
    run_here = ("genai data", "genai models", "genai settings", "genai --help", "dagster asset", "dagster job")
    odd = [
        line for line in map(shlex.join, commands(*PAGES)) if not line.startswith((*run_here, *NOT_RUN, *PARSED_HERE))
    ]
    assert not odd


def test_the_variables_that_the_pages_export_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported = [
        assigned.partition("=")[::2] for words in commands(*PAGES) if words[0] == "export" for assigned in words[1:]
    ]
    for name, value in exported:
        monkeypatch.setenv(name, value.replace("$PWD", str(tmp_path)))
    settings = Settings()
    assert {name for name, _ in exported} > {"GENAI_DATASET__FOLDER", "GENAI_BASE_MODEL", "DAGSTER_HOME"}
    assert settings.dataset.folder == tmp_path / "icons"
    assert settings.dataset.house_style == "acme"
    assert settings.base_model == "/models/my-base"


# Examples


def test_the_folder_of_pictures_that_the_readme_shows_can_be_read(tmp_path: Path):
    from genai_assets.datasets.sources.picture_folder import PictureFolderSource

    [listing] = [block for block in blocks(README, "text") if block.startswith("icons/")]
    [rows] = blocks(README, "json")
    folder = tmp_path / "icons"
    folder.mkdir()
    for number, name in enumerate(line.strip() for line in listing.splitlines()[1:]):
        if name.endswith(".png"):
            Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(folder / name)
    (folder / "metadata.jsonl").write_text(rows)
    [caption] = re.findall(r"`teapot\.txt` is the caption and nothing else: `([^`]+)`", README.read_text())
    (folder / "teapot.txt").write_text(caption)

    source = PictureFolderSource(folder, "acme", "LicenseRef-own")
    said = [fetched.description for fetched in source.fetch([item.key for item in source.list()])]
    assert {description.caption for description in said if description} == {
        "red enamel mug",
        "blue enamel mug",
        caption,
    }
    assert len({description.concept for description in said if description}) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted(line.strip() for line in listing.splitlines()[1:])


def test_the_settings_file_that_the_readme_shows_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [text] = blocks(README, "toml")
    (tmp_path / "genai.toml").write_text(text)
    monkeypatch.setenv("GENAI_CONFIG", str(tmp_path / "genai.toml"))
    settings = Settings()
    shown = tomllib.loads(text)
    assert str(settings.dataset.folder) == shown["dataset"]["folder"]
    assert settings.fine_tune.resolution == shown["fine_tune"]["resolution"]


def test_the_requests_that_the_readme_shows_are_accepted():
    from genai_assets.serving.schemas import Limits, parse_feedback, parse_generation

    bodies = {
        next(word for word in words if word.startswith("http")): words[words.index("-d") + 1].encode()
        for words in commands(README)
        if words[0] == "curl"
    }
    limits = Limits(max_prompt_length=300, max_pictures=4, resolution=64, model_version="m-1")
    asked = parse_generation(bodies["http://127.0.0.1:3111/v1/images/generations"], limits)
    assert asked.prompt == "a red fox"
    assert parse_feedback(bodies["http://127.0.0.1:3111/v1/feedback"], max_caption_length=300).rating == 1


def test_the_line_that_the_readme_shows_for_an_answer_writes_the_picture(tmp_path: Path):
    [words] = [words for words in commands(README) if words[0] == "python"]
    (tmp_path / "answer.json").write_text(json.dumps({"data": [{"b64_json": "aGVsbG8="}]}))
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    assert (tmp_path / "fox.png").read_bytes() == b"hello"


def test_the_way_back_to_the_champion_before_works_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from genai_assets.registry.champion import ChampionPointer, ModelVersion

    monkeypatch.setenv("GENAI_HOME", str(tmp_path / "home"))
    [program] = blocks(ROOT / "docs" / "operations.md", "python")
    with ChampionPointer(Settings().database_url) as pointer:
        for revision, version in enumerate(("first", "second")):
            (tmp_path / version).mkdir()
            model = ModelVersion(version, tmp_path / version, {"kid": 0.5})
            pointer.promote(model, expected_revision=revision, reason="for the test")
        exec(compile(program, "docs/operations.md", "exec"), {})
        now = pointer.current()
    assert now is not None
    assert (now.model_version, now.revision, now.reason) == ("first", 3, "rolled back from second")


def test_the_program_that_the_architecture_shows_names_what_there_is():
    from genai_assets import stages
    from genai_assets.artifacts import Artifact

    for program in blocks(ROOT / "docs" / "architecture.md", "python"):
        compile(program, "docs/architecture.md", "exec")
        assert not [name for name in re.findall(r"stages\.(\w+)", program) if not hasattr(stages, name)]
        named = set(re.findall(r"validated\.(\w+)", program))
        assert named <= set(Artifact.__dataclass_fields__)


# Tables


def test_the_readme_draws_the_edges_of_the_graph(tmp_path: Path):
    from genai_assets.definitions import build_definitions

    [drawing] = blocks(README, "mermaid")
    drawn = set()
    for line in drawing.splitlines():
        names = [name.strip() for name in line.split("-->")]
        drawn |= set(pairwise(names))
    graph = build_definitions(Settings(home=tmp_path / "home")).resolve_asset_graph()
    edges = {
        (parent.to_user_string(), key.to_user_string())
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
    }
    assert drawn == edges
    listed = set(re.findall(r"^\| (`.+?) \|", README.read_text(), flags=re.MULTILINE))
    described = {name for cell in listed for name in re.findall(r"`(\w+)`", cell)}
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} <= described


def test_the_pages_name_every_job_sensor_and_schedule(tmp_path: Path):
    from genai_assets.definitions import build_definitions

    repository = build_definitions(Settings(home=tmp_path / "home")).get_repository_def()
    operations, readme = (ROOT / "docs" / "operations.md").read_text(), README.read_text()
    for definition in (*repository.sensor_defs, *repository.schedule_defs):
        assert f"`{definition.name}`" in operations
    for job in repository.get_all_jobs():
        assert job.name.startswith("__") or f"`{job.name}`" in readme


def test_the_page_on_operations_names_every_place_of_the_home_folder(tmp_path: Path):
    operations = (ROOT / "docs" / "operations.md").read_text()
    places = {value for name, value in vars(Settings(home=tmp_path).paths).items() if name != "home"}
    assert not [
        place.name for place in places if not re.search(rf"^\| `{re.escape(place.name)}", operations, re.MULTILINE)
    ]


def described_settings(model: BaseModel, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Default and range of every setting by its dotted name, in the words of the page; ``model`` has the defaults."""
    found: dict[str, tuple[str, str]] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= described_settings(value, f"{prefix}{name}.")
        else:
            default = value if prefix else field.default  # the home is made absolute
            found[prefix + name] = (in_words(default), range_in_words(field))
    return found


def in_words(value: Any) -> str:
    if value is None:
        return "not set"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def range_in_words(field: FieldInfo) -> str:
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        words = [f'`"{kind}"`' for kind in kinds]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    of_tuple = next((kind for kind in (field.annotation, *kinds) if get_origin(kind) is tuple), None)
    if of_tuple is not None:
        [of] = {get_origin(kind) or kind for kind in get_args(of_tuple) if kind is not Ellipsis}
        if of is dict or (isinstance(of, type) and issubclass(of, BaseModel)):
            return "list of tables"
        return "list of paths" if of is Path else "list of texts"
    kind = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path"}[kinds[0]]
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ ", "multiple_of": "multiple of "}
    bounds = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in signs
        if getattr(bound, name, None) is not None
    }
    return ", ".join([kind, *(f"{sign}{bounds[name]:g}" for name, sign in signs.items() if name in bounds)])


def test_the_page_of_settings_has_every_setting_with_its_default_and_range():
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+?) \|$", SETTINGS_PAGE.read_text(), flags=re.MULTILINE)
    page = {name: (default, values) for name, default, values, _ in rows}
    code = described_settings(Settings())
    wrong = [
        f"| `{name}` | {default} | {values} | … |"
        for name, (default, values) in code.items()
        if page.get(name) != (default, values)
    ]
    assert not wrong, "these rows are missing in docs/configuration.md, or say something else there:\n" + "\n".join(
        wrong
    )
    assert not page.keys() - code.keys(), "these rows of docs/configuration.md are no settings"
