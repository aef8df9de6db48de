"""From sources to what can be compared: raw_data, validated_data, image_features."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.validation import CHECKS, UNEXPECTED
from genai_assets.defs.narration import page, progress_log, result
from genai_assets.defs.partitions import BATCHES, name_partition
from genai_assets.settings import Settings

GROUP = "dataset"
_SEVERITY = {"critical": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["raw_data"], kinds={"parquet"}, partitions_def=BATCHES)
def raw_data(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """Every picture of every source with caption, licence and provenance, batch by batch as they arrive.

    What is gone from its source is gone from here; what was refused is listed with the reason.
    """
    key = context.partition_key if context.has_partition_key else None
    artifact = stages.raw_data(settings, batch=key, on_progress=progress_log(context))
    made = result(artifact)
    if key is None:
        name_partition(context, made)
    return made


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["validated_data"],
    kinds={"parquet"},
    check_specs=[
        dg.AssetCheckSpec(
            check.name,
            asset="validated_data",
            blocking=check.severity == "critical",
            description=check.description,
        )
        for check in CHECKS
    ],
)
def validated_data(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], raw_data: Artifact
) -> Iterator[dg.MaterializeResult[Artifact]]:
    """The records that can be used. Those that cannot lie in a quarantine table, each with its reason.

    The claims of the team's own are one check, ``own_expectations_hold``, which lists each of them.
    """
    artifact = stages.validated_data(settings, raw_data, on_progress=progress_log(context))
    checks = [
        dg.AssetCheckResult(
            check_name=check["name"],
            passed=check["passed"],
            severity=_SEVERITY[check["severity"]],
            metadata=_told_of(check),
        )
        for check in artifact.summary["checks"]
    ]
    links = {"data_docs": page(Path(artifact.summary["data_docs"])), "unexpected": page(artifact.file(UNEXPECTED))}
    yield result(artifact, links, checks)


def _told_of(check: dict[str, Any]) -> dict[str, Any]:
    """A check's figures, the first ids that break it, and why it is off when it is."""
    return {name: value for name, value in check.items() if name not in ("name", "severity", "passed") and value}


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["image_features"], kinds={"lancedb"})
def image_features(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], validated_data: Artifact
) -> dg.MaterializeResult[Artifact]:
    """Vectors of pictures and captions, kept in LanceDB; computed once for each."""
    return result(stages.image_features(settings, validated_data, on_progress=progress_log(context)))
