"""Batches of raw data as partitions: asked for by the sensor, named by runs without a key, followed by the graph."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.records import read_manifest
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.definitions import build_definitions
from genai_assets.defs.resources import ArtifactIOManager
from genai_assets.defs.sensors import feedback_sensor, new_data_sensor
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.serving.request_log import FeedbackEvent, RequestEntry, RequestLog
from genai_assets.settings import Settings
from genai_assets_tests.datasets.test_sources import close_batch
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

RAW_DATA = dg.AssetKey("raw_data")


class Graph:
    """A team's folder of pictures, and the graph up to training on an instance of its own."""

    def __init__(self, root: Path, instance: dg.DagsterInstance):
        self.folder = root / "pictures"
        self.folder.mkdir(parents=True)
        for number in range(20):
            self.draw(number)
        save_tiny_pipeline(root / "base", DenoiserConfig(hidden_size=64, depth=1, num_heads=1))
        self.settings = Settings(
            home=root / "home",
            base_model=str(root / "base"),
            dataset={"folder": self.folder, "house_style": "acme"},
            splits={"held_out_share": 0.3, "validation_share": 0.1, "later_categories": []},
            monitoring={"retrain_cooldown_hours": 0},
        )
        self.instance = instance
        self.definitions = build_definitions(self.settings)

    def draw(self, number: int) -> None:
        """A picture unlike the others, with a caption of its own."""
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        ImageDraw.Draw(image).ellipse((8, 8, 20 + 2 * number, 50), fill=(12 * number % 255, 90, 160))
        image.save(self.folder / f"{number}.png")
        (self.folder / f"{number}.txt").write_text(f"shape number {number}")

    def run(self, *assets: str, key: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialize assets, as a job of them would."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        selection = [dg.AssetKey(name) for name in assets]
        return job.execute_in_process(instance=self.instance, asset_selection=selection, partition_key=key)

    def run_up_to_training(self, key: str | None = None) -> None:
        """The job prepare_data, then what training begins with."""
        job = self.definitions.resolve_job_def("prepare_data")
        assert job.execute_in_process(instance=self.instance, partition_key=key).success
        assert self.run("base_model", "fine_tuned_autoencoder", "training_cache").success

    def newest(self, kind: str) -> Artifact:
        """The newest artifact of a stage."""
        artifact = stages.artifact_store(self.settings).newest(kind)
        assert artifact is not None, kind
        return artifact

    def look(self, sensor: dg.SensorDefinition) -> list[dg.RunRequest]:
        """What a sensor asks for, after its partitions were added, as the daemon adds them."""
        said = sensor(dg.build_sensor_context(instance=self.instance, resources={"settings": self.settings}))
        if isinstance(said, dg.SkipReason):
            return []
        assert isinstance(said, dg.SensorResult)
        for request in said.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        return list(said.run_requests or ())

    def captions(self, kind: str) -> set[str]:
        """Captions of the records that a stage's newest artifact has."""
        artifact = self.newest(kind)
        name = {"splits": "splits.parquet", "training_cache": "rows.parquet"}.get(kind, "manifest.parquet")
        return set(pd.read_parquet(artifact.file(name))["caption"])

    def features(self) -> set[str]:
        """Ids of the pictures that have features."""
        return set(pd.read_parquet(self.newest("image_features").file("pictures.parquet"))["id"])

    @property
    def partitions(self) -> set[str]:
        """Keys of the batches that Dagster knows as materialized."""
        return self.instance.get_materialized_partitions(RAW_DATA)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Graph:
    """After its first run, without a key."""
    graph = Graph(tmp_path_factory.mktemp("batches"), instance)
    graph.run_up_to_training()
    return graph


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Graph]:
    """A graph of its own with raw data alone."""
    with dg.DagsterInstance.ephemeral() as instance:
        graph = Graph(tmp_path, instance)
        graph.run("raw_data")
        yield graph


def test_a_removed_picture_is_asked_for_by_the_sensor_and_followed_to_the_end(graph: Graph):
    caption = sorted(graph.captions("training_cache"))[0]
    kept = read_manifest(graph.newest("raw_data").file("manifest.parquet"))
    [gone] = kept.loc[kept["caption"] == caption, "id"]
    followed = ("raw_data", "validated_data", "splits", "training_cache")
    assert all(caption in graph.captions(kind) for kind in followed)
    assert gone in graph.features()

    assert not graph.look(new_data_sensor)
    (graph.folder / f"{caption.rpartition(' ')[2]}.png").unlink()
    [request] = graph.look(new_data_sensor)
    assert request.job_name == "retrain"
    assert request.partition_key is not None and request.partition_key.startswith("000002-")

    graph.run_up_to_training(key=request.partition_key)
    raw = graph.newest("raw_data")
    assert raw.summary["batch"] == request.partition_key
    changes = pd.read_parquet(raw.file("changes.parquet"))
    assert changes[["change", "id"]].values.tolist() == [["removed", gone]]
    assert not any(caption in graph.captions(kind) for kind in followed)
    assert gone not in graph.features()
    assert not graph.look(new_data_sensor), "the graph has caught up"


def test_a_run_without_a_key_adds_its_batch_to_the_partitions(small: Graph):
    [name] = small.partitions
    assert name == small.newest("raw_data").summary["batch"]
    assert small.instance.get_dynamic_partitions("batches") == [name]
    small.run("raw_data")
    assert small.partitions == {name}, "with nothing new there is no new batch"


def test_a_partition_says_the_content_of_its_batch_as_its_data_version(small: Graph):
    [name] = small.partitions
    records = small.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=RAW_DATA, asset_partitions=[name]), limit=1
    ).records
    materialization = records[0].asset_materialization
    assert materialization is not None and materialization.tags is not None
    assert materialization.tags["dagster/data_version"] == small.newest("raw_data").data_version


def test_a_key_of_ones_own_names_the_batch_and_one_that_is_there_reads_it_again(small: Graph):
    small.draw(40)
    small.instance.add_dynamic_partitions("batches", ["spring"])
    assert small.run("raw_data", key="spring").success
    spring = small.newest("raw_data")
    assert spring.summary["batch"] == "spring"
    small.draw(41)
    small.run("raw_data")
    newest = small.newest("raw_data")
    assert newest.summary["number"] == 3
    again = small.run("raw_data", key="spring").output_for_node("raw_data")
    assert again.path == spring.path
    small.run("validated_data")
    assert "shape number 41" in small.captions("validated_data"), "what comes after reads the newest batch"


def test_a_closed_feedback_batch_is_asked_for_as_a_partition(small: Graph):
    assert not small.look(feedback_sensor)
    close_batch(small.settings, "000001-x.parquet", (small.folder / "0.png").read_bytes())
    [request] = small.look(feedback_sensor)
    assert request.job_name == "retrain"
    assert request.partition_key is not None and request.partition_key.startswith("000002-")
    assert not small.look(feedback_sensor), "asked for once"


def test_ratings_are_curated_while_the_ledger_refuses_a_closed_batch(small: Graph):
    close_batch(small.settings, "000001-x.parquet", (small.folder / "0.png").read_bytes())
    assert small.look(feedback_sensor), "asked for, and from now on refused"
    size = small.settings.monitoring.feedback_batch_size
    with RequestLog(small.settings.database_url) as log:
        for number in range(size):
            drawn = f"{number:064x}"
            entry = RequestEntry(
                prompt="a cat", n=1, size="64x64", seed=1, model_version="v1", status=200, picture_ids=[drawn]
            )
            log.record_request(entry)
            log.record_feedback(FeedbackEvent(request_id=entry.id, picture_id=drawn, rating=1))
    [request] = small.look(feedback_sensor)
    assert request.job_name == "curate_feedback"
    assert request.tags["genai/detail"] == f"{size} new ratings; about a retrain: every reason was asked for before"


def test_a_feedback_sensor_without_enough_ratings_says_what_the_ledger_said(small: Graph):
    close_batch(small.settings, "000001-x.parquet", (small.folder / "0.png").read_bytes())
    assert small.look(feedback_sensor)
    said = feedback_sensor(dg.build_sensor_context(instance=small.instance, resources={"settings": small.settings}))
    assert isinstance(said, dg.SkipReason) and said.skip_message is not None
    assert "asked for before" in said.skip_message and "not enough new ratings" in said.skip_message


def test_a_state_of_the_sources_that_came_back_is_asked_for_again(small: Graph):
    small.run("validated_data", "image_features", "duplicate_clusters", "splits")

    def arrive() -> list[dg.RunRequest]:
        requests = small.look(new_data_sensor)
        assert not small.look(new_data_sensor), "asked for once"
        small.run("raw_data")
        assert not small.look(new_data_sensor), "the graph has caught up"
        return requests

    added = small.folder / "40.png"
    keys = set()
    for _ in range(2):
        small.draw(40)
        keys |= {request.run_key for request in arrive()}
        added.unlink()
        keys |= {request.run_key for request in arrive()}
    assert len(keys) == 4


def test_a_source_that_cannot_be_read_is_an_error_of_the_sensor_and_no_request(small: Graph):
    small.run("validated_data", "image_features", "duplicate_clusters", "splits")
    shutil.move(small.folder, small.folder.with_name("elsewhere"))
    with pytest.raises(SourceUnreadable, match="there is no folder"):
        small.look(new_data_sensor)
    assert small.instance.get_dynamic_partitions("batches") == sorted(small.partitions)


def test_an_older_batch_never_takes_the_place_of_a_newer_one(tmp_path: Path):
    manager = ArtifactIOManager(tmp_path / "handed_on")

    def artifact(number: int) -> Artifact:
        path = tmp_path / str(number)
        path.mkdir(exist_ok=True)
        return Artifact("raw_data", f"{number:016x}", "0" * 16, path, {"number": number})

    def hand_on(number: int) -> str:
        manager.handle_output(dg.build_output_context(asset_key=RAW_DATA), artifact(number))
        return json.loads((tmp_path / "handed_on" / "raw_data.json").read_text())["fingerprint"]

    assert hand_on(2) == f"{2:016x}"
    assert hand_on(1) == f"{2:016x}"
    assert hand_on(3) == f"{3:016x}"
    (tmp_path / "3").rmdir()
    assert hand_on(1) == f"{1:016x}", "the newer one is gone: somebody started over"
