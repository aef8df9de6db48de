"""The graph from end to end on a few dozen real pictures: two training steps, a real Bento over HTTP, real ratings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from genai_assets import stages, watching
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.defs.orchestra import JobOutcome, Orchestra
from genai_assets.registry.champion import ChampionPointer
from genai_assets.serving.client import ServiceClient
from genai_assets.serving.packaging import running_service
from genai_assets.settings import Settings

REQUESTS = 6


def tiny_settings(home: Path, package_cache: Path, **changes) -> Settings:
    """A few dozen real pictures, two steps, eight held-out concepts."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "packages").exists():
        (home / "packages").symlink_to(package_cache)
    values = {
        "home": home,
        "dataset": {"limit": 60},
        "splits": {"held_out_share": 0.2},
        "fine_tune": {"max_steps": 2, "batch_size": 4},
        "sampling": {"steps": 2},
        "evaluation": {"pictures": 8},
        # Two steps make no better model; what is shown here is what happens to one that is promoted.
        "promotion": {"min_kid_improvement": -1000.0},
        "monitoring": {"min_requests": 5, "feedback_batch_size": 3, "retrain_cooldown_hours": 0},
    }
    return Settings(**{**values, **changes})


@dataclass
class Whole:
    """What the one run of this module left."""

    settings: Settings
    instance: dg.DagsterInstance
    trained: JobOutcome
    monitored: JobOutcome
    again: JobOutcome
    still: JobOutcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, package_cache: Path) -> Iterator[Whole]:
    settings = tiny_settings(tmp_path_factory.mktemp("whole") / "home", package_cache)
    with dg.DagsterInstance.ephemeral() as instance, Orchestra(settings, instance=instance) as orchestra:
        trained = orchestra.run("retrain")
        assert trained.success, trained.error
        champion = stages.current_champion(settings)
        captions = stages.read_splits(_newest(settings, "splits"))["caption"].drop_duplicates()[:REQUESTS]
        with running_service(champion.model_path, settings) as url, ServiceClient(url) as client:
            for number, caption in enumerate(captions):
                answer = client.generate(caption, seed=number)
                client.rate(answer.request_id, 0, "down" if number == 0 else "up")
        monitored = orchestra.run("monitor")
        again = orchestra.run("retrain")
        still = orchestra.run("retrain")
        yield Whole(settings, instance, trained, monitored, again, still)


def _newest(settings: Settings, kind: str):
    artifact = stages.artifact_store(settings).newest(kind)
    assert artifact is not None, kind
    return artifact


def test_every_asset_was_materialized_with_its_content_as_data_version(whole: Whole):
    assert whole.monitored.success, whole.monitored.error
    for name in ("raw_data", "splits", "fine_tuned_model", "bento_service", "drift_report", "feedback_dataset"):
        event = whole.instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None, name
        assert event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/data_version"] == _newest(whole.settings, name).data_version


def test_a_second_run_with_nothing_new_works_on_nothing(whole: Whole):
    # The first time again there was a closed feedback batch: new data, so all but the base is made anew.
    assert whole.again.success, whole.again.error
    assert "base_model" in whole.again.reused
    assert "fine_tuned_model" not in whole.again.reused
    assert whole.still.success, whole.still.error
    made_of_data = {"raw_data", "validated_data", "image_features", "splits", "training_cache", "fine_tuned_model"}
    assert made_of_data | {"base_model"} <= set(whole.still.reused)


def test_the_champion_is_a_folder_that_stock_diffusers_loads_and_draws_with(whole: Whole):
    from diffusers import DiffusionPipeline

    champion = stages.current_champion(whole.settings)
    pipeline = DiffusionPipeline.from_pretrained(champion.model_path, local_files_only=True)
    picture = pipeline("red apple", num_inference_steps=2, guidance_scale=1.0, use_resolution_binning=False).images[0]
    assert picture.size == (64, 64)


def test_the_evaluation_has_a_page_a_grid_and_figures_of_base_model_and_real_pictures(whole: Whole):
    report = Path(stages.current_champion(whole.settings).metrics["eval_report"])
    assert {"base", "fine_tuned", "real"} <= set(stages.read_metrics(report)["models"])
    assert "<img" in (report / "report.html").read_text()
    assert (report / "grid.png").stat().st_size > 1000


def test_the_request_log_holds_what_was_asked_and_the_store_what_was_drawn(whole: Whole):
    log = pd.read_parquet(_newest(whole.settings, "inference_log").file("inference_log.parquet"))
    assert len(log) == REQUESTS
    drawn = PictureStore(whole.settings.paths.drawn)
    feedback = pd.read_parquet(_newest(whole.settings, "feedback_dataset").file("feedback.parquet"))
    assert all(picture in drawn for picture in feedback["id"])


def test_drift_is_told_as_yes_no_or_unknown_with_a_page(whole: Whole):
    drift = _newest(whole.settings, "drift_report")
    assert drift.summary["verdict"] in ("yes", "no", "unknown")
    assert drift.file("drift.html").stat().st_size > 1000


def test_a_closed_feedback_batch_becomes_raw_data_and_is_trained_on_only(whole: Whole):
    raw = pd.read_parquet(_newest(whole.settings, "raw_data").file("manifest.parquet"))
    fed_back = raw[raw["source"] == "feedback"]
    assert len(fed_back) == 3  # one batch of three; the rest waits
    cache = pd.read_parquet(_newest(whole.settings, "training_cache").file("rows.parquet"))
    assert set(cache[cache["concept"].str.startswith("feedback:")]["split"]) <= {"train"}


def test_mlflow_has_ended_runs_and_its_alias_follows_the_champion(whole: Whole):
    import mlflow

    client = mlflow.MlflowClient(whole.settings.paths.mlflow_url)
    named = client.get_model_version_by_alias("genai_assets", "champion")
    assert named.tags["model_version"] == stages.current_champion(whole.settings).model_version
    [experiment] = [found for found in client.search_experiments() if found.name == "genai_assets"]
    runs = client.search_runs([experiment.experiment_id])
    assert runs
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_nothing_new_is_no_reason_and_a_released_category_is_one(whole: Whole):
    from genai_assets.datasets.release import release_category

    assert watching.new_data(whole.settings) == watching.Arrived()
    assert watching.closed_feedback(whole.settings) == watching.Arrived()
    release_category(whole.settings.paths, "animals-nature", whole.settings)
    arrived = watching.new_data(whole.settings)
    [reason] = arrived.reasons
    assert arrived.batch == "", "the sources are as they were"
    assert "animals-nature" in reason.detail
    (whole.settings.home / "released.json").unlink()


def test_sensors_ask_once_for_each_reason(whole: Whole):
    from genai_assets.datasets.release import release_category
    from genai_assets.defs.sensors import new_data_sensor

    def look() -> object:
        context = dg.build_sensor_context(instance=whole.instance, resources={"settings": whole.settings})
        return new_data_sensor(context)

    assert isinstance(look(), dg.SkipReason)
    release_category(whole.settings.paths, "animals-nature", whole.settings)
    first = look()
    assert isinstance(first, dg.SensorResult)
    assert first.run_requests is not None
    [request] = first.run_requests
    assert request.job_name == "retrain"
    assert request.run_key is not None
    assert request.run_key.startswith("new_data-")
    assert isinstance(look(), dg.SkipReason)
    (whole.settings.home / "released.json").unlink()


def test_drift_of_the_champion_asks_for_a_retrain_and_that_of_another_model_does_not(whole: Whole, monkeypatch):
    report = _newest(whole.settings, "drift_report")
    path = report.path / "drift.json"
    before = path.read_text()
    try:
        path.write_text(before.replace(f'"verdict": "{report.summary["verdict"]}"', '"verdict": "yes"'))
        champion = stages.current_champion(whole.settings)
        reported = dataclasses.replace(champion, model_version=report.summary["model_version"])
        monkeypatch.setattr(stages, "current_champion", lambda settings: reported)
        [reason] = watching.drift(whole.settings)
        assert reason.kind == "drift"
        another = dataclasses.replace(champion, model_version="another")
        monkeypatch.setattr(stages, "current_champion", lambda settings: another)
        assert watching.drift(whole.settings) == []
    finally:
        path.write_text(before)


def test_a_model_that_is_not_better_leaves_the_run_green_and_the_champion_in_place(whole: Whole):
    before = stages.current_champion(whole.settings)
    changed = whole.settings.model_copy(
        update={
            "fine_tune": whole.settings.fine_tune.model_copy(update={"seed": 7}),
            "promotion": whole.settings.promotion.model_copy(update={"min_kid_improvement": 1000.0}),
        }
    )
    with Orchestra(changed, instance=whole.instance) as orchestra:
        outcome = orchestra.run("retrain")
    assert outcome.success, outcome.error
    assert "bento_service" not in outcome.seconds
    assert stages.current_champion(changed) == before


def test_a_broken_model_fails_the_run_and_is_not_promoted(whole: Whole):
    before = stages.current_champion(whole.settings)
    changed = whole.settings.model_copy(update={"fine_tune": whole.settings.fine_tune.model_copy(update={"seed": 8})})
    strict = changed.model_copy(update={"promotion": changed.promotion.model_copy(update={"max_copied_share": -1.0})})
    with Orchestra(strict, instance=whole.instance) as orchestra:
        outcome = orchestra.run("retrain")
    assert not outcome.success
    assert "champion_model" not in outcome.seconds
    with ChampionPointer(changed.database_url) as pointer:
        assert pointer.current() == before
