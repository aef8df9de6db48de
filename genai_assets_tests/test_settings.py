"""Settings: where they come from, what they refuse, and that reading them leaves no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from genai_assets.console import explain
from genai_assets.privacy import TELEMETRY_OFF, turn_telemetry_off
from genai_assets.settings import FineTuneSettings, HomePaths, Settings


@pytest.fixture(autouse=True)
def empty_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it, and no setting from the environment."""
    for name in [name for name in os.environ if name.startswith("GENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_hold_together():
    settings = Settings()
    assert settings.base_model == "embedded"
    assert settings.home == Path.cwd() / ".genai"
    assert settings.database_url == f"sqlite:///{Path.cwd()}/.genai/genai.sqlite"


def test_nothing_is_created_by_reading_settings_and_naming_places(tmp_path):
    settings = Settings()
    places = [value for value in vars(settings.paths).values() if isinstance(value, Path)]
    assert len(places) > 10
    assert all(place.is_relative_to(settings.home) for place in places)
    assert settings.paths.mlflow_url == f"sqlite:///{settings.home}/mlflow/mlflow.sqlite"
    assert vars(HomePaths(settings.home)) == vars(settings.paths)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("section", ["serving", "study"])
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///requests.sqlite", "{here}/requests.sqlite"),
        ("sqlite+pysqlite:///below/requests.sqlite?timeout=3", "{here}/below/requests.sqlite"),
        ("sqlite:///a%3Fb.sqlite", "{here}/a?b.sqlite"),
        ("sqlite:////elsewhere/requests.sqlite", "/elsewhere/requests.sqlite"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite:///file:requests?mode=ro&uri=true", "file:requests"),
        ("postgresql+psycopg://me:sesame@db/genai", "genai"),
    ],
)
def test_a_relative_sqlite_file_lies_where_we_were_called_from_whoever_opens_it(
    tmp_path, monkeypatch, section, given, meant
):
    monkeypatch.setenv(f"GENAI_{section.upper()}__DATABASE_URL", given)
    url, before = sa.make_url(getattr(Settings(), section).database_url), sa.make_url(given)
    assert url.database == meant.format(here=tmp_path)
    assert (url.drivername, url.password, url.query) == (before.drivername, before.password, before.query)


def test_a_home_may_be_called_as_people_call_folders(tmp_path):
    settings = Settings(home=tmp_path / "50% off? #1 @home")
    for url, file in {
        settings.database_url: settings.paths.database,
        settings.study_database_url: settings.paths.studies,
        settings.paths.mlflow_url: settings.paths.mlflow / "mlflow.sqlite",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE here (id INTEGER)"))
        engine.dispose()
        assert file.is_file()
    assert [place.name for place in tmp_path.iterdir()] == [settings.home.name]


@pytest.mark.parametrize("section", ["serving", "study"])
def test_a_database_url_that_is_none_is_refused_by_its_name_and_not_repeated(monkeypatch, section):
    monkeypatch.setenv(f"GENAI_{section.upper()}__DATABASE_URL", "postgresql:/me:sesame@db")
    with pytest.raises(ValidationError) as refused:
        Settings()
    told = explain(refused.value)
    assert section in told and "database_url is no SQLAlchemy URL" in told
    assert "sesame" not in told


def test_the_environment_reaches_into_a_section_and_leaves_the_rest(monkeypatch):
    monkeypatch.setenv("GENAI_HOME", "/somewhere")
    monkeypatch.setenv("GENAI_FINE_TUNE__MAX_STEPS", "7")
    monkeypatch.setenv("GENAI_FINE_TUNE__METHOD", "lora")
    monkeypatch.setenv("GENAI_DATASET__ICON_SETS", '["noto"]')
    settings = Settings()
    assert settings.home == Path("/somewhere")
    assert (settings.fine_tune.max_steps, settings.fine_tune.method) == (7, "lora")
    assert settings.fine_tune.batch_size == FineTuneSettings().batch_size
    assert settings.dataset.icon_sets == ("noto",)


def test_the_file_in_the_working_folder_is_read_and_the_environment_wins(tmp_path, monkeypatch):
    (tmp_path / "genai.toml").write_text('device = "cpu"\n[fine_tune]\nbatch_size = 5\nseed = 1\n')
    monkeypatch.setenv("GENAI_FINE_TUNE__SEED", "2")
    settings = Settings()
    assert settings.device == "cpu"
    assert (settings.fine_tune.batch_size, settings.fine_tune.seed) == (5, 2)
    assert Settings(device="auto").device == "auto", "an argument wins over both"


def test_a_file_elsewhere_is_named_by_a_variable(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "team.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("[sampling]\nsteps = 9\n")
    monkeypatch.setenv("GENAI_CONFIG", str(elsewhere))
    assert Settings().sampling.steps == 9
    elsewhere.unlink()
    with pytest.raises(FileNotFoundError, match=f"GENAI_CONFIG names {elsewhere}, which is not a file"):
        Settings()


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('basemodel = "x"', "basemodel"),
        ("[fine_tune]\nbatchsize = 3", r"fine_tune\.batchsize"),
        ("[finetune]\nbatch_size = 3", "finetune"),
        ("[fine_tune]\nbatch_size = 0", r"fine_tune\.batch_size"),
        ("[fine_tune]\nresolution = 65", r"fine_tune\.resolution"),
        ("[splits]\nheld_out_share = 0.5", r"splits\.held_out_share"),
        ('device = "tpu"', "device"),
        ("sampling = 30", "sampling"),
    ],
)
def test_an_unknown_name_or_a_value_out_of_range_in_the_file_is_named(tmp_path, toml, named):
    (tmp_path / "genai.toml").write_text(toml)
    with pytest.raises(ValidationError, match=named):
        Settings()


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("GENAI_FINE_TUNE__BATCHSIZE", "3", r"fine_tune\.batchsize"),
        ("GENAI_SAMPLING__STEPS", "201", r"sampling\.steps"),
        ("GENAI_SERVING__PORT", "http", r"serving\.port"),
        ("GENAI_SAMPLING", "30", "sampling"),
    ],
)
def test_an_unknown_name_or_a_value_out_of_range_in_the_environment_is_named(monkeypatch, variable, value, named):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match=named):
        Settings()


@pytest.mark.parametrize("variable", ["GENAI_BASEMODEL", "GENAI_FINETUNE__SEED"])
def test_a_misspelt_variable_is_not_passed_over(monkeypatch, variable):
    monkeypatch.setenv("GENAI_TRACEBACK", "1")  # of ours, and no setting
    Settings()
    monkeypatch.setenv(variable, "3")
    with pytest.raises(ValidationError, match=f"the environment has {variable}, but the settings are GENAI_HOME"):
        Settings()


def test_settings_do_not_change_once_read():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.device = "cpu"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.fine_tune.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("an icon", r"must contain \{caption\}"),
        ("{{caption}}", r"must contain \{caption\}"),
        ("{caption} by {artist}", "artist"),
        ("{caption} {}", r"may use \{caption\} and \{style\} only"),
        ("{caption", r"may use \{caption\} and \{style\} only"),
        ("{caption!s} in {style}", r"not \{caption!s\}"),
        ("{caption:>9}", r"not \{caption:>9\}"),
        ("{caption.upper}", r"not \{caption.upper\}"),
        ("{caption}, {style!r}", r"not \{style!r\}"),
        ("{caption} {{caption}}", "double braces"),
    ],
)
def test_a_prompt_template_without_a_place_for_the_caption_is_refused(template, told):
    with pytest.raises(ValidationError, match=told):
        FineTuneSettings(prompt_template=template)


def test_a_prompt_is_the_filled_template():
    assert FineTuneSettings().prompt("red apple", "fluent") == "red apple, fluent style"
    assert FineTuneSettings(prompt_template="icon: {caption}").prompt("a {b}", "fluent") == "icon: a {b}"


def environment_after_import(folder: Path, **given: str) -> dict[str, str | None]:
    """The telemetry switches that a new process has once the package is imported, in ``folder``."""
    code = (
        "import genai_assets, genai_assets.settings, json, os; genai_assets.settings.Settings(); "
        f"print(json.dumps({{name: os.environ.get(name) for name in {list(TELEMETRY_OFF)!r}}}))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in TELEMETRY_OFF}
    root = Path(__file__).parent.parent
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": str(root)} | given,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(finished.stdout)


def test_importing_the_package_turns_telemetry_off_and_leaves_a_users_value_and_the_disk_alone(tmp_path):
    assert environment_after_import(tmp_path) == TELEMETRY_OFF
    assert environment_after_import(tmp_path, DO_NOT_TRACK="0") == TELEMETRY_OFF | {"DO_NOT_TRACK": "0"}
    assert list(tmp_path.iterdir()) == []


def test_every_switch_is_set_by_the_call_as_well(monkeypatch):
    for name in TELEMETRY_OFF:
        monkeypatch.delenv(name, raising=False)
    turn_telemetry_off()
    assert {name: os.environ[name] for name in TELEMETRY_OFF} == TELEMETRY_OFF
