"""Runs always end, models are registered once and not copied, the alias follows the pointer."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from genai_assets.registry import tracking
from genai_assets.registry.champion import Champion
from genai_assets.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    # One home for the file: MLflow needs two seconds to make its tables.
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def client(settings: Settings):
    import mlflow

    return mlflow.MlflowClient(settings.paths.mlflow_url, settings.paths.mlflow_url)


def champion(version: str, folder: Path) -> Champion:
    return Champion("default", version, folder, {"kid": 0.2}, 1, datetime.now(UTC), "test")


def alias(settings: Settings) -> str:
    found = client(settings).get_model_version_by_alias(tracking.MODEL_NAME, tracking.CHAMPION_ALIAS)
    return found.tags[tracking.VERSION_TAG]


def test_a_run_keeps_parameters_figures_tags_and_files_and_ends_as_finished(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples.txt").write_text("a sheet")
    with tracking.training_run(settings, "first", {"fine_tune": {"seed": 7}}, {"data_version": "d1"}) as run:
        run.log_metrics(1, {"loss": 0.5, "learning_rate": 1e-3})
        run.log_metrics(2, {"loss": 0.25})
        run.log_artifact(tmp_path / "samples.txt")
    found = client(settings).get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"fine_tune.seed": "7"}
    assert found.data.tags["data_version"] == "d1"
    assert [(point.step, point.value) for point in client(settings).get_metric_history(run.id, "loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert list(settings.paths.mlflow.rglob("samples.txt")), "artifacts lie in the home"
    assert not (tmp_path / "mlruns").exists(), "and nowhere else"


def test_a_training_that_raises_ends_its_run_as_failed(settings):
    with pytest.raises(ZeroDivisionError), tracking.training_run(settings, "doomed", {}) as run:
        raise ZeroDivisionError
    assert client(settings).get_run(run.id).info.status == "FAILED"


def test_a_run_stopped_by_ctrl_c_ends_as_killed(settings):
    with pytest.raises(KeyboardInterrupt), tracking.training_run(settings, "stopped", {}) as run:
        raise KeyboardInterrupt
    assert client(settings).get_run(run.id).info.status == "KILLED"


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_is_active_already_is_used_and_ended(settings, fails):
    import mlflow

    tracking.ensure_experiment(settings)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(settings.paths.mlflow_url)
    try:
        mlflow.set_experiment(tracking.EXPERIMENT)
        opened = mlflow.start_run(run_name="opened elsewhere")
        try:
            with tracking.training_run(settings, "inner", {"a": 1}) as run:
                run.log_metrics(1, {"loss": 1.0})
                if fails:
                    raise RuntimeError("the training broke")
        except RuntimeError:
            assert fails
        assert run.id == opened.info.run_id
        assert mlflow.active_run() is None
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(before)
    assert client(settings).get_run(run.id).info.status == ("FAILED" if fails else "FINISHED")


def test_a_model_is_registered_once_by_its_folder_and_not_copied(settings, model_folder):
    first = tracking.register_model(settings, model_folder, "v-one", {"kid": 0.3, "agreement": {"r_at_5": 0.2}})
    again = tracking.register_model(settings, model_folder, "v-one", {"kid": 0.3})
    other = tracking.register_model(settings, model_folder, "v-two", {"kid": 0.2})
    assert first == again != other
    found = client(settings).get_model_version(tracking.MODEL_NAME, str(first))
    assert found.source == model_folder.as_uri()
    assert (found.tags["metric.kid"], found.tags["metric.agreement.r_at_5"]) == ("0.3", "0.2")
    assert not list(settings.paths.mlflow.rglob("model_index.json"))


def test_a_model_without_a_folder_is_not_registered(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="train it again"):
        tracking.register_model(settings, tmp_path / "none", "ghost", {})


def test_the_alias_follows_the_pointer_forth_and_back(settings, model_folder):
    tracking.register_model(settings, model_folder, "a1", {})
    tracking.reconcile_champion(settings, champion("a1", model_folder))
    assert alias(settings) == "a1"
    second = tracking.reconcile_champion(settings, champion("b2", model_folder))  # never registered before
    assert alias(settings) == "b2"
    assert tracking.reconcile_champion(settings, champion("b2", model_folder)) == second
    tracking.reconcile_champion(settings, champion("a1", model_folder))
    assert alias(settings) == "a1"
    assert tracking.reconcile_champion(settings, None) is None
    with pytest.raises(Exception, match="champion"):
        alias(settings)


def test_a_fresh_database_is_made_without_a_word_and_has_no_alias_to_take_away(tmp_path, capfd):
    assert tracking.reconcile_champion(Settings(home=tmp_path / "other"), None) is None
    said = capfd.readouterr()
    assert said.out + said.err == ""
