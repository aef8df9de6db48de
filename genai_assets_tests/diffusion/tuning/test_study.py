"""The search: it finds what was planted, ends bad trials early, survives kills, and compares honestly."""

import fcntl
import math
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.tuning.study import StudyBusy, StudyResult, StudyUnreadable, TrialFailed, plots
from genai_assets_tests.diffusion.tuning import objective
from genai_assets_tests.diffusion.tuning.objective import BUDGET, CURRENT, TRIALS, cheap_trial, study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def seen() -> list[TrainingConfig]:
    return []


@pytest.fixture(scope="module")
def untouched(folder: Path, seen: list[TrainingConfig]) -> StudyResult:
    """A study that nothing interrupted."""

    def run(config: TrainingConfig, report: Callable[[int, float], None], should_prune: Callable[[], bool]) -> float:
        seen.append(config)
        return cheap_trial(config, report, should_prune)

    return study(folder, run)


def tried(result: StudyResult) -> list[tuple]:
    return [(trial.number, trial.state, trial.values, trial.validation_loss) for trial in result.trials]


def test_the_first_trial_is_the_current_settings_and_a_better_region_is_found(untouched: StudyResult):
    assert untouched.current.values == CURRENT
    assert untouched.current.state == "complete"
    assert untouched.current.validation_loss == pytest.approx(2.0064)
    assert len(untouched.trials) == TRIALS
    best = untouched.proposed
    assert best is not None and best.validation_loss is not None
    assert best.validation_loss < 1.2
    assert 3e-4 < best.values["learning_rate"] < 3e-3


def test_trials_that_are_worse_than_the_median_end_early(untouched: StudyResult):
    pruned = [trial for trial in untouched.trials if trial.state == "pruned"]
    complete = [trial for trial in untouched.trials if trial.state == "complete"]
    assert pruned and len(complete) >= 4
    assert all(trial.validation_loss > min(other.validation_loss for other in complete) for trial in pruned)
    assert untouched.best not in pruned


def test_every_trial_sees_the_same_pictures_and_the_best_is_tried_again_with_another_seed(
    untouched: StudyResult, seen: list[TrainingConfig]
):
    assert len({config.batch_size for config in seen}) > 1
    assert {config.steps * config.batch_size for config in seen} == {BUDGET.pictures}
    assert {config.validate_every * config.batch_size for config in seen} == {BUDGET.pictures // BUDGET.parts}
    assert [config.seed for config in seen] == [0] * TRIALS + [1, 1]
    assert untouched.proposed is not None
    assert [config.learning_rate for config in seen[-2:]] == [1e-4, untouched.proposed.values["learning_rate"]]


def test_what_is_tried_is_what_is_told(untouched: StudyResult, seen: list[TrainingConfig]):
    told = [trial.values for trial in untouched.trials]
    assert told == [{name: getattr(config, name) for name in CURRENT} for config in seen[:TRIALS]]


def test_a_study_that_has_ended_runs_nothing_when_asked_again(folder: Path, untouched: StudyResult):
    def refuse(*_: object) -> float:
        raise AssertionError("nothing is left to run")

    assert study(folder, refuse) == untouched


def test_a_killed_study_goes_on_to_the_very_same_trials(tmp_path: Path, untouched: StudyResult):
    for kill_at in (1, 6):  # the current settings; then, counted from there, the sixth
        command = [sys.executable, "-m", objective.__name__, str(tmp_path), str(kill_at)]
        killed = subprocess.run(command, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = study(tmp_path)
    assert result.interrupted == 2
    assert tried(result) == tried(untouched)
    assert result.again == untouched.again


def test_a_trial_that_is_not_finite_or_cannot_be_trained_fails_and_the_study_goes_on(tmp_path: Path):
    def sometimes(
        config: TrainingConfig, report: Callable[[int, float], None], should_prune: Callable[[], bool]
    ) -> float:
        if config.batch_size == 128:
            raise TrialFailed("out of memory")
        if config.learning_rate > 5e-4:
            report(1, math.nan)
        return math.inf if config.learning_rate < 1e-4 else cheap_trial(config, report, should_prune)

    result = study(tmp_path, sometimes, trials=7)
    failed = {trial.reason: trial for trial in result.trials if trial.state == "failed"}
    assert len(result.trials) == 7
    assert {"out of memory", "validation loss nan after part 1 of 4"} <= set(failed)
    assert all(trial.validation_loss is None for trial in failed.values())
    assert result.best not in failed.values()


def test_a_trial_that_ends_its_process_three_times_is_passed_over(tmp_path: Path):
    def breaks(config: TrainingConfig, report: Callable, should_prune: Callable) -> float:
        if config.learning_rate != CURRENT["learning_rate"]:
            raise RuntimeError("a fault of the program")
        return cheap_trial(config, report, should_prune)

    for _ in range(3):
        with pytest.raises(RuntimeError, match="a fault of the program"):
            study(tmp_path, breaks, trials=2)
    result = study(tmp_path, breaks, trials=2)
    assert [trial.state for trial in result.trials] == ["complete", "failed"]
    assert "3 times" in result.trials[1].reason


def test_nothing_is_proposed_when_the_current_settings_are_best(tmp_path: Path):
    def best_as_it_is(config: TrainingConfig, *_: object) -> float:
        return abs(math.log(config.learning_rate / 1e-4)) + abs(config.batch_size - 64)

    result = study(tmp_path, best_as_it_is, trials=4)
    assert result.best is None and result.proposed is None and result.again == ()


def test_a_trial_that_was_only_lucky_with_its_seed_is_not_proposed(tmp_path: Path):
    def lucky(config: TrainingConfig, *_: object) -> float:
        better = config.learning_rate != CURRENT["learning_rate"]
        return 1.0 - (0.1 if better else 0.0) * (1 if config.seed == 0 else -1)

    result = study(tmp_path, lucky, trials=3)
    assert result.best is not None
    assert result.again[0].best > result.again[0].current
    assert result.proposed is None


def test_two_processes_do_not_work_on_one_study(tmp_path: Path):
    with (tmp_path / "study.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StudyBusy, match=r"study\.lock"):
            study(tmp_path)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "mlflow.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.close()
    with pytest.raises(StudyUnreadable, match=r"study\.database_url"):
        study(tmp_path, database_url=f"sqlite:///{file}")
    engine = sa.create_engine(f"sqlite:///{file}")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_folder_with_braces_in_its_name_is_taken_as_it_is(tmp_path: Path):
    folder = tmp_path / "{team}"
    study(folder, trials=1)
    assert (folder / "studies.sqlite").is_file()


def test_plots_carry_their_own_plotly_and_ask_no_network(folder: Path, untouched: StudyResult):
    pieces = plots("cheap", f"sqlite:///{folder / 'studies.sqlite'}")
    assert list(pieces) == [
        "Validation loss, trial by trial",
        "Validation loss within each trial",
        "Each setting by itself",
        "Which settings matter",
    ]
    page = "".join(pieces.values())
    assert page.count("plotly.js v") == 1
    assert "<script src" not in page and "<link" not in page
