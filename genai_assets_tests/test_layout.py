"""The layout: the prescribed files are there, and each library is imported in its own room only.

Ruff refuses an import outside of its room; its exceptions are by folder and let every library in. The check of syntax
trees here closes that gap, and holds both to the same list.
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genai_assets"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Library: where it may be imported, as beginnings of paths below the package.
ROOMS = {
    "dagster": ("defs/", "definitions.py"),
    "dagster_webserver": ("defs/", "definitions.py"),
    "dagster_mlflow": ("defs/", "registry/"),
    "bentoml": ("serving/",),
    "evidently": ("monitoring/drift.py",),
    "great_expectations": ("datasets/expectations.py",),
    "mlflow": ("registry/",),
    "optuna": ("diffusion/tuning/study.py",),
    "openvino": ("diffusion/drawing/openvino_denoiser.py",),
    "datasets": ("datasets/sources/hugging_face.py",),
}
HEAVY = (
    "datasets",
    "diffusers",
    "evidently",
    "great_expectations",
    "lancedb",
    "mlflow",
    "openvino",
    "optuna",
    "polars",
    "sklearn",
    "torch",
    "transformers",
)

TOP_LEVEL = [
    "pyproject.toml",
    "constraints.txt",
    "workspace.yaml",
    "dagster.yaml",
    "bentofile.yaml",
    "README.md",
    "Makefile",
    "LICENSE",
    "NOTICE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    ".ci/run",
    "docs",
    "benchmarks",
    "tools/setup.py",
    "genai_assets/definitions.py",
]


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_the_prescribed_top_level_is_there(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", "pyproject.toml", "constraints.txt", "tools/setup.py"])
def test_no_set_up_file_names_a_registry_or_a_place_on_one_machine(name):
    text = (ROOT / name).read_text()
    for word in ("https://", "http://", "file:", "/opt/", "/work/", "/root/"):
        assert word not in text


def test_every_constraint_is_one_version_that_serves_every_build():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        name, equals, version = line.partition("==")
        assert name and equals and version, line
        assert "+" not in version, f"{line}: a local build cannot serve CPU and CUDA alike"


def refusals(code: str, path: str) -> set[str]:
    """Rules by which the linter refuses ``code``, were it the file ``path``."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json", f"--stdin-filename={path}", "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return {finding["code"] for finding in json.loads(done.stdout)}


@pytest.mark.parametrize("library", ROOMS)
def test_the_linter_refuses_a_library_outside_of_its_room_and_lets_it_into_its_own(library):
    code = (
        f'"""A module."""\n\n\ndef work() -> None:\n    """Work."""\n    from {library} import thing\n\n    thing()\n'
    )
    assert "TID251" in refusals(code, "genai_assets/diffusion/intruder.py")
    for room in ROOMS[library]:
        path = f"genai_assets/{room}" if room.endswith(".py") else f"genai_assets/{room}guest.py"
        assert not refusals(code, path)


def test_the_linter_refuses_a_submodule_too():
    code = '"""A module."""\n\nimport dagster._core.storage\n\nprint(dagster)\n'
    assert "TID251" in refusals(code, "genai_assets/datasets/intruder.py")


@pytest.mark.parametrize("library", HEAVY)
def test_the_linter_refuses_a_heavy_library_at_import_time_but_for_annotations(library):
    at_import = f'"""A module."""\n\nfrom {library} import thing\n\nprint(thing)\n'
    assert "TID253" in refusals(at_import, "genai_assets/registry/intruder.py")
    for_types = (
        '"""A module."""\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n'
        f'    from {library} import Thing\n\n_THING: "Thing | None" = None\n'
    )
    assert "TID253" not in refusals(for_types, "genai_assets/registry/guest.py")


def test_the_linter_and_this_file_know_the_same_rooms():
    rules = PROJECT["tool"]["ruff"]["lint"]
    assert set(rules["flake8-tidy-imports"]["banned-api"]) == set(ROOMS)
    assert set(rules["flake8-tidy-imports"]["banned-module-level-imports"]) == set(HEAVY)
    exceptions = {
        path.removeprefix("genai_assets/").removesuffix("**")
        for path, codes in rules["per-file-ignores"].items()
        if "TID251" in codes and path.startswith("genai_assets/")
    }
    assert exceptions == {place for places in ROOMS.values() for place in places}


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports anywhere, annotations' imports among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(name.value).partition(".")[0] for name in node.args[:1] if isinstance(name, ast.Constant)}
    return found


def test_every_library_is_imported_in_its_own_room_only():
    strays = [
        f"{path.relative_to(ROOT)} imports {library}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for library in sorted(imported(path) & ROOMS.keys())
        if not path.relative_to(PACKAGE).as_posix().startswith(ROOMS[library])
    ]
    assert not strays


def test_importing_the_package_and_its_command_line_loads_no_heavy_library():
    program = f"import sys, genai_assets.cli\nprint(sorted(set({HEAVY!r} + {tuple(ROOMS)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_module_has_a_charter_and_every_test_folder_mirrors_a_room():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), (
            f"{path.relative_to(ROOT)} does not say what belongs there"
        )
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    tests = {path.parent.relative_to(ROOT / "genai_assets_tests") for path in Path(__file__).parent.rglob("test_*.py")}
    assert tests <= rooms


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in empty]
