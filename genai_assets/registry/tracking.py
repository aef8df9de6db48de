"""Experiment tracking and the model registry: MLflow, on a SQLite database in the home folder.

Belongs here: everything that knows MLflow. Training runs with their parameters, figures and files; models registered
by the folder they lie in; the alias ``champion``, which follows the champion pointer and is never read back as truth.

A run may be opened here (training without Dagster) or be active already (dagster-mlflow's resource opened it in this
process): :func:`training_run` serves both, and always ends it.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.registry.champion import Champion
from genai_assets.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion

EXPERIMENT = "genai_assets"
MODEL_NAME = "genai_assets"
CHAMPION_ALIAS = "champion"
VERSION_TAG = "model_version"

_BATCH = 100  # parameters a call; the most that MLflow takes
_LONGEST_VALUE = 6000  # characters of a parameter; the most that MLflow takes


@dataclass(frozen=True)
class TrainingRun:
    """One MLflow run that is being written.

    Attributes:
        id: MLflow's run id.
    """

    id: str
    _client: "MlflowClient"

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log figures of one training step. Figures that are not finite are kept as MLflow keeps them (NaN, ±inf)."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._client.log_batch(self.id, [Metric(name, float(value), now, step) for name, value in metrics.items()])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names (``fine_tune.seed``).

        Raises:
            mlflow.exceptions.MlflowException: a parameter was logged with another value before.
        """
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in _flatten(params)]
        for start in range(0, len(flat), _BATCH):
            self._client.log_batch(self.id, params=flat[start : start + _BATCH])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; a later value replaces an earlier one."""
        for name, value in tags.items():
            self._client.set_tag(self.id, name, str(value))

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder with what is below it, to the run's artifacts."""
        if path.is_dir():
            self._client.log_artifacts(self.id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.id, str(path))


@contextmanager
def training_run(
    settings: Settings, name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None
) -> Iterator[TrainingRun]:
    """Give a run to log to; end it as FINISHED, or as FAILED (KILLED on Ctrl-C) when the block raises.

    A run that is active in this process already, as dagster-mlflow's resource leaves one, is used and then ended too:
    outside of jobs nothing else would end it.

    Args:
        settings: says where the tracking database lies.
        name: name of the run, for people.
        params: plain values, possibly nested; what the training was asked to do.
        tags: for finding it again, for example the data version.
    """
    with quiet_mlflow():
        import mlflow

        experiment = ensure_experiment(settings)
        active = mlflow.active_run()
        if active is None:
            client = _client(settings)
            run_id = client.create_run(experiment, run_name=name).info.run_id
        else:
            client = mlflow.MlflowClient()
            run_id = active.info.run_id

    def end(status: str) -> None:
        if active is None:
            client.set_terminated(run_id, status)
        else:
            mlflow.end_run(status)

    run = TrainingRun(run_id, client)
    try:
        run.log_params(params)
        run.set_tags(tags or {})
        yield run
    except KeyboardInterrupt:
        end("KILLED")
        raise
    except BaseException:
        end("FAILED")
        raise
    else:
        end("FINISHED")


def ensure_experiment(settings: Settings) -> str:
    """Id of the experiment all runs belong to; make it, and the tracking database, when they are not there.

    Call it before dagster-mlflow's resource starts: MLflow itself would put the artifacts of a new experiment into
    ``mlruns`` of the working folder.
    """
    from mlflow.exceptions import MlflowException

    client = _client(settings)
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    artifacts = settings.paths.mlflow / "artifacts"
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri())
    except MlflowException:  # another process made it in the meantime
        if found := client.get_experiment_by_name(EXPERIMENT):
            return found.experiment_id
        raise


def register_model(
    settings: Settings,
    model_folder: Path,
    model_version: str,
    metrics: Mapping[str, Any],
    run_id: str | None = None,
) -> int:
    """Register a model by the folder it lies in; nothing is copied. Asking again for the same version changes nothing.

    Args:
        settings: says where the registry lies.
        model_folder: folder that stock diffusers loads.
        model_version: the model's data version; kept as the tag ``model_version``.
        metrics: figures it was evaluated by, kept as tags ``metric.NAME``.
        run_id: the run that trained it.

    Returns:
        The registered version's number, counted by MLflow.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if not model_folder.is_dir():
        raise FileNotFoundError(f"model {model_version} has no folder {model_folder}; train it again, then register")
    client = _client(settings)
    if found := _registered(client, model_version):
        return int(found.version)
    _ensure_registered_model(client)
    tags = {VERSION_TAG: model_version} | {f"metric.{name}": str(value) for name, value in _flatten(metrics)}
    made = client.create_model_version(
        MODEL_NAME, source=model_folder.absolute().as_uri(), run_id=run_id, tags=tags, await_creation_for=0
    )
    return int(made.version)


def reconcile_champion(settings: Settings, champion: Champion | None) -> int | None:
    """Let the alias ``champion`` say what the pointer says; return the registered version it names.

    A champion that was promoted from elsewhere, and so was never registered, is registered first. With no champion the
    alias is removed. Asking again changes nothing.
    """
    client = _client(settings)
    named = _alias_target(client)
    if champion is None:
        if named is not None:
            client.delete_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS)
        return None
    wanted = register_model(settings, champion.model_path, champion.model_version, champion.metrics)
    if named != wanted:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, str(wanted))
    return wanted


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Without the notes on its own tables, and the warning that importing its tables gives on SQLAlchemy 2.1."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
        import mlflow  # noqa: F401  (its import sets levels of its own)

        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _client(settings: Settings) -> "MlflowClient":
    settings.paths.mlflow.mkdir(parents=True, exist_ok=True)
    with quiet_mlflow():
        from mlflow import MlflowClient

        url = settings.paths.mlflow_url
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        client.search_registered_models(max_results=1)  # the tables are made on the first question
        return client


def _ensure_registered_model(client: "MlflowClient") -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME, description="Models of the asset graph, each by its folder.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(client: "MlflowClient", model_version: str) -> "RegisteredVersion | None":
    quoted = model_version.replace("'", "''")
    found = client.search_model_versions(f"name='{MODEL_NAME}' and tag.{VERSION_TAG}='{quoted}'")
    return min(found, key=lambda version: int(version.version)) if found else None


def _alias_target(client: "MlflowClient") -> int | None:
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no such alias
            return None
        raise


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
