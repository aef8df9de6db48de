"""`genai`: every step without Dagster, errors that can be mended, and a help that comes at once."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from genai_assets import cli
from genai_assets import console as telling
from genai_assets.artifacts import Artifact
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.training import StepReport
from genai_assets.registry.champion import ChampionPointer, ModelVersion
from genai_assets.settings import Settings

pytest_plugins = ["genai_assets_tests.serving.tiny_service"]

ROOT = Path(__file__).parents[1]
HEAVY = ("bentoml", "dagster", "diffusers", "evidently", "great_expectations", "lancedb", "mlflow", "numpy", "pandas")
HEAVY += ("pydantic", "sklearn", "sqlalchemy", "torch", "transformers")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working folder of our own, with settings that draw quickly; returns the home below it."""
    for name in [name for name in os.environ if name.startswith("GENAI_") and name != "GENAI_TEST_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "genai.toml").write_text('home = "home"\ndevice = "cpu"\n[sampling]\nsteps = 2\n')
    return tmp_path / "home"


def genai(*arguments: str, status: int = 0) -> str:
    """Run a command; what it printed, errors included."""
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == status, done.output + str(done.exception)
    return done.output


def test_help_imports_nothing_that_takes_long():
    code = f"""
import sys
from typer.testing import CliRunner
from genai_assets.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
heavy = set({HEAVY!r}) & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command():
    told = genai("--help")
    for name in ("demo", "up", "doctor", "generate", "prepare", "train", "evaluate", "pretrain", "data", "settings"):
        assert re.search(rf"\b{name}\b", told)


def test_settings_are_printed_as_the_toml_they_can_be_read_from(home, monkeypatch):
    monkeypatch.setenv("GENAI_DATASET__LIMIT", "40")
    told = tomllib.loads(genai("settings"))
    assert told["home"] == str(home)
    assert told["dataset"]["limit"] == 40
    assert "folder" not in told["dataset"]
    again = home.parent / "again.toml"
    again.write_text(genai("settings"))
    before = Settings()
    monkeypatch.delenv("GENAI_DATASET__LIMIT")
    monkeypatch.setenv("GENAI_CONFIG", str(again))
    assert Settings() == before


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:sesame@db/genai", "postgresql+psycopg://me:…@db/genai"),
        ("postgresql+psycopg://me:open sesame@db/genai", "postgresql+psycopg://me:…@db/genai"),
        (
            "postgresql+psycopg://db/genai?user=me&password=sesame&sslmode=require",
            "postgresql+psycopg://db/genai?user=me&password=…&sslmode=require",
        ),
        ('mysql://db/genai?user=me&Passwd=o"sesame', "mysql://db/genai?user=me&Passwd=…"),
        ("trino://me@db/genai?access_token=sesame", "trino://me@db/genai?access_token=…"),
    ],
)
def test_a_password_in_a_database_url_is_not_printed(home, monkeypatch, url, shown):
    monkeypatch.setenv("GENAI_SERVING__DATABASE_URL", url)
    monkeypatch.setenv("GENAI_DATASET__SOURCES", json.dumps([{"kind": "sql", "url": url}]))
    told = tomllib.loads(genai("settings"))
    assert told["serving"]["database_url"] == told["dataset"]["sources"][0]["url"] == shown
    assert "sesame" not in genai("settings")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "database_url is no SQLAlchemy URL"),
        ("nobase://db/genai", "nobase"),
        ("postgresql+nodriver://me:sesame@db/genai", "nodriver"),
        ("sqlite:///genai.toml", "file is not a database"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--fast"]])
def test_a_database_that_cannot_be_used_is_told_by_its_setting_without_a_traceback(home, monkeypatch, url, told, more):
    monkeypatch.setenv("GENAI_SERVING__DATABASE_URL", url)
    said = genai("generate", "a red fox", *more, status=2)
    assert "serving" in said and "database_url" in said and told in said
    assert "Traceback" not in said and "sesame" not in said


def test_an_impossible_setting_is_told_by_its_name_without_a_traceback(home, monkeypatch):
    monkeypatch.setenv("GENAI_SAMPLING__STEPS", "0")
    told = genai("settings", status=2)
    assert "sampling.steps" in told
    assert "greater than or equal to 1" in told
    assert "Traceback" not in told


def test_traceback_shows_where_an_error_came_from(home, monkeypatch):
    for arguments, variables in ((["--traceback"], {}), ([], {"GENAI_TRACEBACK": "1"})):
        done = CliRunner().invoke(cli.app, [*arguments, "data", "show"], env=variables)
        assert isinstance(done.exception, ValueError)


def test_a_real_process_ends_with_status_2_and_one_message(home):
    environment = {**os.environ, "GENAI_BASE_MODEL": "nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "genai_assets", "generate", "a cat"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "base_model is 'nowhere', but there is no such folder; "
        'set it to "embedded" or to a folder saved by a diffusers pipeline\n'
    )
    assert not list((home / "artifacts").rglob("*.partial"))


def test_data_that_is_not_there_yet_is_told_with_the_command_that_makes_it(home):
    assert "genai prepare" in genai("data", "show", status=2)


def test_a_category_is_released_and_an_unknown_one_is_refused(home):
    assert "animals-nature" in genai("data", "release", "cars", status=2)
    assert "Released: animals-nature" in genai("data", "release", "animals-nature")


def test_pictures_are_drawn_by_the_champion_and_their_places_printed(home, model_folder):
    with ChampionPointer(Settings().database_url) as pointer:
        pointer.promote(ModelVersion("tiny-champion", model_folder), expected_revision=0, reason="first")
    told = genai("generate", "a red fox", "--n", "2", "--seed", "5")
    assert "the champion, tiny-champion" in told
    for name in ("a-red-fox-5.png", "a-red-fox-6.png"):
        assert name in told.splitlines()
        with Image.open(home.parent / name) as picture:
            assert picture.size == (64, 64)

    assert "has no few-step student" in genai("generate", "a red fox", "--fast", status=2)
    genai("generate", "a red fox", "--seed", "6", "--out", "again.png", "--model", str(model_folder))
    assert (home.parent / "again.png").read_bytes() == (home.parent / "a-red-fox-6.png").read_bytes()


def test_fast_draws_with_the_champions_student_in_as_many_steps_as_it_was_made_for(home, model_folder, student_folder):
    facts = {"few_steps": {"model_version": "tiny-student", "path": str(student_folder)}}
    with ChampionPointer(Settings().database_url) as pointer:
        pointer.promote(ModelVersion("tiny-champion", model_folder, facts), expected_revision=0, reason="first")
    asked = ("generate", "a red fox", "--seed", "5", "--out")
    assert "the few-step student of the champion, tiny-champion" in genai(*asked, "fast.png", "--fast")
    # The student has the champion's weights, so the champion in one unguided step draws the same.
    genai(*asked, "same.png", "--steps", "1", "--guidance", "1")
    genai(*asked, "slow.png")
    fast, same, slow = ((home.parent / f"{name}.png").read_bytes() for name in ("fast", "same", "slow"))
    assert fast == same != slow


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cat", "--fast", "--model", "here"], "leave --model out"),
        (["  "], "prompt is empty"),
        (["cat", "--out", "cat.jpg"], "cat.jpg"),
        (["cat", "--model", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(home, arguments, told):
    assert told in genai("generate", *arguments, status=2)


def test_several_pictures_are_numbered_beside_the_name_asked_for():
    assert cli._places(Path("out/fox.png"), "a fox", [3]) == [Path("out/fox.png")]
    assert cli._places(Path("out/fox.png"), "a fox", [3, 4]) == [Path("out/fox-1.png"), Path("out/fox-2.png")]
    assert cli._places(None, "  🦊/../ ", [3]) == [Path("picture-3.png")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_steps_without_dagster_go_from_pictures_to_a_verdict(home, package_cache, model_folder):
    (home / "packages").parent.mkdir(parents=True)
    (home / "packages").symlink_to(package_cache)
    (home.parent / "genai.toml").write_text(
        f"""
home = "home"
device = "cpu"
base_model = {json.dumps(str(model_folder))}
[dataset]
icon_sets = ["noto", "fluent-emoji-3d"]
limit = 60
offline = true
[splits]
held_out_share = 0.3
[fine_tune]
max_steps = 2
batch_size = 4
[sampling]
steps = 1
[evaluation]
pictures = 8
"""
    )
    told = genai("evaluate")
    for stage in ("raw_data", "validated_data", "splits", "image_features", "base_model", "fine_tuned_model"):
        assert re.search(rf"{stage} +[\d.]+ s", told)
    assert "KID to real pictures" in told
    assert "The gate would say:" in told
    assert "Nothing was promoted" in told

    again = genai("train")
    assert len(re.findall("nothing changed", again)) == 8
    shown = genai("data", "show")
    for word in ("fluent", "noto", "Apache-2.0", "MIT", "held_out", "120 records are in use"):
        assert word in shown


def test_a_width_that_the_heads_cannot_share_is_refused(home):
    assert "multiple of 4" in genai("pretrain", "--steps", "1", "--heads", "5", status=2)
    assert cli._shape(None, None, None) == DenoiserConfig()
    assert cli._shape(128, 2, 4).axes_dim == (16, 16)


def test_going_on_with_a_base_model_in_another_shape_is_refused(home):
    assert "--go-on keeps" in genai("pretrain", "--steps", "1", "--go-on", "--depth", "2", status=2)


@pytest.fixture
def python_hears_interrupts() -> Iterator[None]:
    """A shell that puts the tests into the background has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_hears_interrupts")
def test_the_first_interrupt_waits_for_a_checkpoint_once_there_is_something_to_save():
    with cli._interrupt_asks() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupt.can_wait = True
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_training_step_is_told_with_the_time_that_is_left():
    report = StepReport(step=200, steps=600, loss=0.5, learning_rate=1e-3, pictures_per_second=64, validation_loss=0.25)
    told = telling.describe_step(report, batch_size=64)
    assert told == "step 200 of 600  loss 0.5000  validation 0.2500  64.0 pictures/s  0:06:40 left"


def test_progress_is_a_line_a_stage_in_a_log_and_bars_on_a_terminal(tmp_path):
    made = Artifact("raw_data", "0" * 16, "1" * 16, tmp_path, {"records": 1562, "concepts": 1562}, reused=True)

    def make(progress: telling.StageProgress) -> Artifact:
        progress.on_progress("noto [svg]", 100, 0)
        progress.on_progress("pictures decoded", 5, 10)
        progress.on_step(StepReport(1, 2, 0.5, 1e-3, 10.0, 0.4))
        return made

    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
        with telling.StageProgress(console) as progress:
            assert progress.stage("raw_data", lambda progress=progress: make(progress)) is made
        told = console.file.getvalue()
        assert re.search(r"raw_data +nothing changed +1,562 records, 1,562 concepts", told)
        assert ("\x1b" in told) == terminal


def test_what_came_with_a_batch_is_told_once_when_it_came(tmp_path):
    figures = {"records": 9, "concepts": 9, "refusals": 2, "added": 3, "changed": 0, "removed": 1}
    for reused, told in ((False, "2 refusals, 3 added, 0 changed, 1 removed\n"), (True, "2 refusals\n")):
        console = Console(file=io.StringIO(), width=160)
        with telling.StageProgress(console) as progress:
            made = Artifact("raw_data", "0" * 16, "1" * 16, tmp_path, figures, reused=reused)
            progress.stage("raw_data", lambda made=made: made)
        assert console.file.getvalue().endswith(f"9 records, 9 concepts, {told}")


def test_errors_are_explained_by_what_can_be_mended():
    with pytest.raises(ValidationError) as caught:
        Settings(dataset={"limit": 0, "colour": "red"})
    told = telling.explain(caught.value)
    assert "dataset.limit" in told
    assert "dataset.colour" in told
    assert "errors.pydantic.dev" not in told
    assert telling.explain(OSError(28, "No space left on device", "/disk/x")) == "No space left on device: /disk/x"


def test_the_doctor_prints_each_finding_and_fails_when_something_is_missing(home, monkeypatch):
    from genai_assets import doctor

    found = [doctor.Finding("npm", "ok", "/usr/bin/npm"), doctor.Finding("disk [home]", "missing", "full", "make room")]
    monkeypatch.setattr(doctor, "diagnose", lambda settings, ports: found)  # the real one is test_doctor's
    told = genai("doctor", status=1)
    assert "disk [home]" in told
    assert "make room" in told
    monkeypatch.setattr(doctor, "diagnose", lambda settings, ports: found[:1])
    assert "Everything needed is there" in genai("doctor")


def test_a_number_without_a_unit_and_a_name_make_one_line():
    summary = {"model_version": "m-1", "steps": 1200, "validation_loss": 0.123456, "device": "cpu"}
    assert telling.describe_summary("fine_tuned_model", summary) == "m-1, 1,200 steps, 0.1235 validation loss"
    assert telling.describe_summary("splits", {"records": {"held_out": 3, "train": 20}}) == "3 held out, 20 train"
    assert telling.describe_summary("unknown", {}) == ""
