"""From sources to what training reads: raw_data, validated_data, image_features, splits."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.validation import CHECKS
from genai_assets.defs.narration import page, progress_log, result
from genai_assets.settings import Settings

GROUP = "dataset"
_SEVERITY = {"critical": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["raw_data"], kinds={"parquet"})
def raw_data(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """Every picture of every source with caption, licence and provenance; what the licence policy refuses is listed."""
    return result(stages.raw_data(settings, on_progress=progress_log(context)))


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
    """The records that can be used. Those that cannot lie in a quarantine table, each with its reason."""
    artifact = stages.validated_data(settings, raw_data, on_progress=progress_log(context))
    checks = [
        dg.AssetCheckResult(
            check_name=check["name"],
            passed=check["passed"],
            severity=_SEVERITY[check["severity"]],
            metadata={"unexpected_count": check["unexpected_count"]},
        )
        for check in artifact.summary["checks"]
    ]
    yield result(artifact, {"data_docs": page(Path(artifact.summary["data_docs"]))}, checks)


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["image_features"], kinds={"lancedb"})
def image_features(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], validated_data: Artifact
) -> dg.MaterializeResult[Artifact]:
    """Vectors of pictures and captions, kept in LanceDB; computed once for each."""
    return result(stages.image_features(settings, validated_data, on_progress=progress_log(context)))


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["splits"], kinds={"parquet"}, deps=[image_features])
def splits(settings: dg.ResourceParam[Settings], validated_data: Artifact) -> dg.MaterializeResult[Artifact]:
    """Each record's split, decided by a hash of its concept, so that it never moves as data grows."""
    return result(stages.splits(settings, validated_data))
