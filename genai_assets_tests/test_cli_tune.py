"""`genai tune --accept`: what a study proposes goes into genai.toml when a person says so, and nothing is lost."""

import os
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from genai_assets.artifacts import Artifact
from genai_assets.cli_tune import tune
from genai_assets.diffusion.tuning.proposal import write_study
from genai_assets.diffusion.tuning.space import Budget, Range, Space
from genai_assets.diffusion.tuning.study import StudyResult, Trial
from genai_assets.settings import Settings
from genai_assets.stages import artifact_store

CURRENT = Trial(0, "complete", {"learning_rate": 3e-4}, 0.5, 60.0)
BETTER = Trial(1, "complete", {"learning_rate": 8e-5}, 0.4, 61.0)
TOML = 'home = "home"  # here\n\n[fine_tune]\nbatch_size = 32\n'


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "genai.toml").write_text(TOML)
    return tmp_path / "genai.toml"


def leave_study(*trials: Trial) -> Artifact:
    settings = Settings()
    result = StudyResult("fine-tune-1", trials, (), interrupted=0)
    space: Space = {"learning_rate": Range(1e-5, 1e-2, log=True)}
    return artifact_store(settings).build(
        "hyperparameter_study",
        {"config": settings.fine_tune.model_dump(mode="json")},
        lambda out: write_study(out, result, space, Budget(1024, 8), {}, {}),
    )


def accept() -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command()(tune)
    done = CliRunner().invoke(app, ["--accept"])
    return done.output, done.exception


def test_an_accepted_proposal_is_written_into_the_settings_and_nothing_else_changes(config_file: Path):
    leave_study(CURRENT, BETTER)
    assert Settings().fine_tune.learning_rate == 3e-4, "nothing is used before it is accepted"
    told, error = accept()
    assert error is None, told
    assert config_file.read_text() == TOML.replace("[fine_tune]\n", "[fine_tune]\nlearning_rate = 8e-05\n")
    assert Settings().fine_tune.learning_rate == 8e-5
    assert "trial number 1, of 2" in told and "genai train" in told
    written = config_file.read_text()
    assert "in force already" in accept()[0]
    assert config_file.read_text() == written


def test_a_private_file_behind_a_link_stays_private_and_the_link_a_link(config_file: Path, tmp_path: Path):
    kept = tmp_path / "kept" / "team.toml"
    kept.parent.mkdir()
    config_file.rename(kept)
    kept.chmod(0o600)
    config_file.symlink_to("kept/team.toml")
    leave_study(CURRENT, BETTER)
    assert accept()[1] is None
    assert config_file.readlink() == Path("kept/team.toml")
    assert "learning_rate = 8e-05" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_variable_that_hides_the_accepted_value_is_named(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GENAI_FINE_TUNE__LEARNING_RATE", "0.0003")
    leave_study(CURRENT, BETTER)
    assert "GENAI_FINE_TUNE__LEARNING_RATE" in accept()[0]


def test_what_cannot_be_accepted_is_refused_with_its_reason_and_changes_nothing(config_file: Path):
    assert "genai tune --trials" in str(accept()[1])
    leave_study(CURRENT)
    assert "nothing is proposed" in str(accept()[1])
    assert config_file.read_text() == TOML


def test_a_proposal_made_from_other_settings_is_refused(config_file: Path):
    leave_study(CURRENT, BETTER)
    changed = TOML.replace("32", "16")
    config_file.write_text(changed)
    assert "other values than when the study was made (batch_size)" in str(accept()[1])
    assert config_file.read_text() == changed


def test_a_file_that_cannot_be_merged_is_left_and_the_lines_are_shown(config_file: Path):
    inline = 'home = "home"\nfine_tune = { batch_size = 32 }\n'
    config_file.write_text(inline)
    leave_study(CURRENT, BETTER)
    _, error = accept()
    assert "learning_rate = 8e-05" in str(error)
    assert config_file.read_text() == inline
    assert tomllib.loads(inline)["fine_tune"] == {"batch_size": 32}
