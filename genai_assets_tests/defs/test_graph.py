"""The shape of the graph, and that Dagster takes it as it is."""

import dagster as dg
import pytest

from genai_assets import stages
from genai_assets.definitions import build_definitions
from genai_assets.settings import Settings

EDGES = {
    "raw_data": set(),
    "validated_data": {"raw_data"},
    "image_features": {"validated_data"},
    "duplicate_clusters": {"validated_data", "image_features"},
    "splits": {"validated_data", "duplicate_clusters"},
    "data_readiness_report": {"raw_data", "validated_data", "splits", "duplicate_clusters"},
    "dataset_card": {"raw_data", "validated_data", "splits", "duplicate_clusters"},
    "synthetic_pictures": {"validated_data", "splits", "image_features", "champion_model"},
    "base_model": set(),
    "base_model_selection": {"validated_data", "splits"},
    "fine_tuned_autoencoder": {"validated_data", "splits", "base_model"},
    "training_cache": {"validated_data", "splits", "fine_tuned_autoencoder"},
    "hyperparameter_study": {"training_cache", "fine_tuned_autoencoder"},
    "fine_tuned_model": {"training_cache", "fine_tuned_autoencoder"},
    "distilled_model": {"training_cache", "fine_tuned_model"},
    "eval_report": {"fine_tuned_model", "distilled_model", "base_model", "splits", "validated_data", "image_features"},
    "champion_model": {"fine_tuned_model", "distilled_model", "eval_report"},
    "bento_service": {"champion_model"},
    "inference_log": {"bento_service"},
    "drift_report": {"inference_log"},
    "feedback_events": {"bento_service"},
    "feedback_dataset": {"feedback_events"},
}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    return build_definitions(Settings(home=tmp_path_factory.mktemp("graph") / "home"))


def test_the_graph_has_these_assets_and_these_edges(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert found == EDGES


def test_every_asset_but_the_events_has_a_code_version_and_a_description(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        if key.to_user_string() != "feedback_events":
            assert node.code_version == stages.CODE_VERSIONS[key.to_user_string()]


def test_training_takes_a_place_in_the_pool_of_the_gpu(definitions: dg.Definitions):
    for name in ("fine_tuned_model", "distilled_model"):
        assert definitions.resolve_assets_def(name).op.pool == "gpu"


def test_jobs_cover_the_graph_and_sensors_and_schedules_run_by_default(definitions: dg.Definitions):
    repository = definitions.get_repository_def()
    assert {"prepare_data", "retrain", "monitor"} <= {job.name for job in definitions.resolve_all_job_defs()}
    assert {sensor.name for sensor in repository.sensor_defs} == {"new_data_sensor", "feedback_sensor", "drift_sensor"}
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in repository.sensor_defs)
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in repository.schedule_defs)


def test_critical_checks_block_and_the_gate_is_among_them(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    blocking = {key.name for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert {"captions_are_present", "model_is_sound"} <= blocking


def test_building_definitions_creates_nothing(tmp_path):
    build_definitions(Settings(home=tmp_path / "home"))
    assert not (tmp_path / "home").exists()
