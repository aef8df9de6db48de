"""What is there to notice: reasons for a retrain, read from sources, artifacts and logs.

Belongs here: comparing what is with what the graph has worked on. Whether a reason is acted on is
``monitoring.retraining``; a state that cannot be read raises, so that it is never taken for "nothing new".
"""

import json
from dataclasses import dataclass

from genai_assets import durable, stages
from genai_assets.datasets.records import FEEDBACK_SOURCE
from genai_assets.monitoring.retraining import Reason
from genai_assets.settings import Settings


@dataclass(frozen=True)
class WaitingFeedback:
    """Ratings that were not curated yet; ``run_key`` names this state of the log."""

    events: int
    run_key: str


@dataclass(frozen=True)
class Arrived:
    """What differs from what the graph last worked on.

    Attributes:
        reasons: for a retrain; none when nothing differs, and before the first run, which has nothing to differ from.
        batch: the name of the batch that what arrived will be; empty when the sources are as they were.
    """

    reasons: tuple[Reason, ...] = ()
    batch: str = ""


def new_data(settings: Settings) -> Arrived:
    """Sources (feedback aside) and released categories that differ from what the graph last worked on.

    Raises:
        ValueError, SourceUnreadable: a source cannot be read.
    """
    from genai_assets.datasets.arrivals import look
    from genai_assets.datasets.release import released_categories

    store = stages.artifact_store(settings)
    raw, split = stages.newest_raw_data(settings), store.newest("splits")
    if raw is None or split is None:
        return Arrived()
    arrivals = look(settings)
    now, then = dict(arrivals.digests), dict(raw.inputs["sources"])
    changed = sorted(
        name for name in now.keys() | then.keys() if name != FEEDBACK_SOURCE and now.get(name) != then.get(name)
    )
    released = sorted(released_categories(settings.paths) - set(split.inputs["released"]))
    if not changed and not released:
        return Arrived()
    what = [*changed, *(f"category {category} was released" for category in released)]
    # From where to where: sources that go back to an earlier state and come again are news again.
    key = durable.digest_json(
        {"from": raw.fingerprint, "sources": now, "released": sorted(released_categories(settings.paths))}
    )
    reason = Reason("new_data", key, f"new data: {', '.join(what)}")
    return Arrived((reason,), arrivals.batch_name(stages.next_batch_number(raw)) if now != then else "")


def closed_feedback(settings: Settings) -> Arrived:
    """A reason when there are closed feedback batches that raw_data has not read."""
    from genai_assets.datasets.arrivals import look

    raw = stages.newest_raw_data(settings)
    batches = sorted(path.name for path in settings.paths.feedback_batches.glob("*.parquet"))
    if raw is None or not batches:
        return Arrived()
    arrivals = look(settings)
    if raw.inputs["sources"].get(FEEDBACK_SOURCE) == arrivals.digests.get(FEEDBACK_SOURCE):
        return Arrived()
    detail = f"{len(batches)} feedback batches, the newest {batches[-1]}"
    reason = Reason("feedback", durable.digest_json(batches), detail)
    return Arrived((reason,), arrivals.batch_name(stages.next_batch_number(raw)))


def feedback_to_curate(settings: Settings) -> WaitingFeedback | None:
    """Ratings since the last feedback dataset, when they are as many as a batch needs.

    Raises:
        LogUnavailable: the log exists but cannot be read.
    """
    from genai_assets.serving.request_log import RequestLog

    with RequestLog(settings.database_url) as log:
        events = log.feedback()["id"].tolist()
    curated = stages.artifact_store(settings).newest("feedback_dataset")
    fresh = len(events) - (curated.inputs["count"] if curated else 0)
    if fresh < settings.monitoring.feedback_batch_size:
        return None
    return WaitingFeedback(fresh, f"curate-{durable.digest_json(sorted(events))[:16]}")


def drift(settings: Settings) -> list[Reason]:
    """A reason when the newest drift report is about the champion in use and says yes.

    The same champion drifting on the same data is one reason, however many reports repeat it.
    """
    store = stages.artifact_store(settings)
    report = store.newest("drift_report")
    raw = stages.newest_raw_data(settings)
    if report is None or raw is None:
        return []
    found = json.loads(report.file("drift.json").read_text())
    champion = stages.current_champion(settings)
    if found["verdict"] != "yes" or report.summary["model_version"] != champion.model_version:
        return []
    return [Reason("drift", f"{champion.model_version}/{raw.data_version}", found["reason"])]
