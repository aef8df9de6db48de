"""What asks for a retrain: new data, feedback, drift. Each gathers reasons; ``monitoring.retraining`` decides.

A sensor here reads state (``genai_assets.watching``), hands it to the ledger, and requests what the ledger grants.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from genai_assets import watching
from genai_assets.defs.jobs import curate_feedback, retrain
from genai_assets.defs.partitions import BATCHES
from genai_assets.monitoring.retraining import Reason, RetrainLedger
from genai_assets.settings import Settings

_SECONDS_BETWEEN_LOOKS = 60


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a retrain when a source changed or a category was released.",
)
def new_data_sensor(settings: dg.ResourceParam[Settings]) -> dg.SensorResult | dg.SkipReason:
    """Sources against those that raw_data was made from."""
    arrived = watching.new_data(settings)
    return _ask(settings, arrived.reasons, arrived.batch)


@dg.sensor(
    jobs=[retrain, curate_feedback],
    minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Curates ratings when enough have come for a batch; asks for a retrain when a batch was closed.",
)
def feedback_sensor(settings: dg.ResourceParam[Settings]) -> dg.SensorResult | dg.SkipReason:
    """Closed batches against those that raw_data has read; ratings against those that were curated."""
    arrived = watching.closed_feedback(settings)
    asked = _ask(settings, arrived.reasons, arrived.batch)
    if isinstance(asked, dg.SensorResult):
        return asked
    # Ratings do not wait for a retrain that is refused, for now or for good.
    if waiting := watching.feedback_to_curate(settings):
        tags = {"genai/detail": f"{waiting.events} new ratings; about a retrain: {asked.skip_message}"[:200]}
        return dg.SensorResult([dg.RunRequest(run_key=waiting.run_key, job_name=curate_feedback.name, tags=tags)])
    return dg.SkipReason(f"{asked.skip_message}; not enough new ratings for a batch")


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a retrain when the champion's drift report says yes.",
)
def drift_sensor(settings: dg.ResourceParam[Settings]) -> dg.SensorResult | dg.SkipReason:
    """The newest drift report of the champion."""
    return _ask(settings, watching.drift(settings))


SENSORS = [new_data_sensor, feedback_sensor, drift_sensor]


def _ask(settings: Settings, reasons: Sequence[Reason], batch: str = "") -> dg.SensorResult | dg.SkipReason:
    """Request a retrain when the ledger grants it; of the batch that arrived, if one did, as a new partition."""
    if not reasons:
        return dg.SkipReason("no reason to retrain")
    with RetrainLedger(settings.database_url) as ledger:
        decision = ledger.ask(reasons, datetime.now(UTC), settings.monitoring)
    if not decision.request or decision.reason is None:
        return dg.SkipReason(decision.why)
    tags = {"genai/reason": decision.reason.kind, "genai/detail": decision.reason.detail[:200]}
    request = dg.RunRequest(run_key=decision.run_key, job_name=retrain.name, tags=tags, partition_key=batch or None)
    return dg.SensorResult([request], dynamic_partitions_requests=[BATCHES.build_add_request([batch])] if batch else [])
