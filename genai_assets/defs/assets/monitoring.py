"""From requests to reasons: inference_log, drift_report, feedback_events, feedback_dataset."""

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import page, result
from genai_assets.settings import Settings

GROUP = "monitoring"

feedback_events = dg.AssetSpec(
    "feedback_events",
    group_name=GROUP,
    deps=["bento_service"],
    kinds={"sql"},
    description="Ratings of pictures as people gave them: a table that the service writes, row by row.",
)


@dg.asset(
    group_name=GROUP, code_version=stages.CODE_VERSIONS["inference_log"], kinds={"parquet"}, deps=["bento_service"]
)
def inference_log(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """The champion's newest requests and what it drew for them, described by features."""
    return result(stages.inference_log(settings))


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["drift_report"], kinds={"evidently"})
def drift_report(settings: dg.ResourceParam[Settings], inference_log: Artifact) -> dg.MaterializeResult[Artifact]:
    """Whether requests or pictures moved away from what the champion was evaluated with: yes, no or unknown."""
    artifact = stages.drift_report(settings, inference_log)
    return result(artifact, {"report": page(artifact.file("drift.html"))})


@dg.asset(
    group_name=GROUP, code_version=stages.CODE_VERSIONS["feedback_dataset"], kinds={"parquet"}, deps=[feedback_events]
)
def feedback_dataset(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """Ratings made into data. Full batches are closed; raw_data reads them on its next run."""
    return result(stages.feedback_dataset(settings))
