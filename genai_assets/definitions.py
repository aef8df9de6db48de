"""The one place where everything is put together for Dagster: settings in, definitions out."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from genai_assets.defs.assets import (
    curation,
    dataset,
    evaluation,
    governance,
    model,
    monitoring,
    readiness,
    serving,
    synthetic,
)
from genai_assets.defs.jobs import JOBS
from genai_assets.defs.resources import ArtifactIOManager, mlflow_resource
from genai_assets.defs.schedules import SCHEDULES
from genai_assets.defs.sensors import SENSORS
from genai_assets.settings import Settings

_ROOMS = [dataset, curation, readiness, governance, model, evaluation, serving, monitoring, synthetic]


def build_definitions(
    settings: Settings | None = None,
    *,
    resources: Mapping[str, Any] | None = None,
    loggers: Mapping[str, dg.LoggerDefinition] | None = None,
) -> dg.Definitions:
    """The whole graph.

    Args:
        settings: what to build it for; read from the environment and the TOML file when not given.
        resources: take the place of the usual ones, for tests.
        loggers: further loggers that a run may ask for.
    """
    settings = settings or Settings()
    return dg.Definitions(
        assets=dg.load_assets_from_modules(_ROOMS, include_specs=True),
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        # One process for all steps: most take less than the start of a process. Training starts its own.
        executor=dg.in_process_executor,
        resources={
            "settings": settings,
            "io_manager": ArtifactIOManager(settings.paths.home / "handed_on"),
            "mlflow": mlflow_resource(settings),
            **(resources or {}),
        },
        loggers=dict(loggers or {}),
    )


defs = build_definitions()
