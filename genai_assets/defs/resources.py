"""What assets are handed: settings, the IO manager that passes artifacts on, and MLflow.

Belongs here: adapters between Dagster and the library, nothing of either's work.
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from genai_assets import durable
from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings


class ArtifactIOManager(dg.IOManager):
    """Passes artifacts from asset to asset by a small file that says where the folder is; written all or nothing.

    Of an asset that comes in batches the newest is passed on, whichever was read again since.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def handle_output(self, context: dg.OutputContext, obj: Artifact) -> None:
        """Note where the asset's artifact is, unless a newer batch is there."""
        file = self._file(context.asset_key)
        if _number(obj) >= _number(self._noted(file)):
            durable.write_json(file, {**asdict(obj), "path": str(obj.path)})

    def load_input(self, context: dg.InputContext) -> Artifact:
        """The artifact of an upstream asset.

        Raises:
            dagster.Failure: it was never materialized, or its folder is gone.
        """
        file = self._file(context.asset_key)
        name = context.asset_key.to_user_string()
        if not file.is_file():
            raise dg.Failure(f"{name} was not materialized yet in {self.folder}; materialize it first")
        artifact = self._noted(file)
        if artifact is None:
            raise dg.Failure(f"the folder of {name} that {file} names is gone; materialize it again")
        return artifact

    @staticmethod
    def _noted(file: Path) -> Artifact | None:
        """The artifact that was noted last; None when there is none, or its folder is gone."""
        if not file.is_file():
            return None
        facts: dict[str, Any] = json.loads(file.read_text())
        artifact = Artifact(**{**facts, "path": Path(facts["path"])})
        return artifact if artifact.path.is_dir() else None

    def _file(self, key: dg.AssetKey) -> Path:
        return self.folder.joinpath(*key.path[:-1], f"{key.path[-1]}.json")


def _number(artifact: Artifact | None) -> int:
    """Of the batch; 0 for what does not come in batches."""
    return int(artifact.summary.get("number", 0)) if artifact else 0


def mlflow_resource(settings: Settings) -> dg.ResourceDefinition:
    """dagster-mlflow's resource on the home folder's database; its run is ended by ``tracking.training_run``."""

    @dg.resource(config_schema=_mlflow_config_schema())
    def mlflow(context: dg.InitResourceContext) -> Iterator[Any]:
        from genai_assets.registry import tracking

        tracking.ensure_experiment(settings)
        with tracking.quiet_mlflow(), warnings.catch_warnings():
            # dagster-mlflow calls itself beta at every use, and uses names that Dagster has retired.
            warnings.simplefilter("ignore", dg.BetaWarning)
            warnings.filterwarnings("ignore", message=r"InitResourceContext\.\w+ is deprecated")
            from dagster_mlflow import mlflow_tracking

            open_run: Any = mlflow_tracking.resource_fn  # with or without an argument, says its type
            yield from open_run(context)

    from genai_assets.registry.tracking import EXPERIMENT

    return mlflow.configured(
        {
            "experiment_name": EXPERIMENT,
            "mlflow_tracking_uri": settings.paths.mlflow_url,
            "env": {},
            "extra_tags": {},
        }
    )


def _mlflow_config_schema() -> dict[str, Any]:
    return {
        "experiment_name": dg.Field(dg.StringSource),
        "mlflow_tracking_uri": dg.Field(dg.StringSource),
        "env": dg.Field(dg.Permissive()),
        "extra_tags": dg.Field(dg.Permissive()),
    }
