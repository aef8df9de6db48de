"""From validated pictures to splits that can be trusted: duplicate_clusters, splits."""

from collections.abc import Iterator

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import progress_log, result
from genai_assets.settings import Settings

GROUP = "dataset"
_LEAKS_TOLD = 20


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["duplicate_clusters"], kinds={"parquet"})
def duplicate_clusters(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    image_features: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """Pictures that are the same picture once more, by perceptual hash and by features, grouped."""
    artifact = stages.duplicate_clusters(settings, validated_data, image_features, on_progress=progress_log(context))
    return result(artifact)


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["splits"],
    kinds={"parquet"},
    check_specs=[
        dg.AssetCheckSpec(
            "splits_do_not_leak",
            asset="splits",
            blocking=True,
            description="No picture, concept, caption of one style or near duplicate is in two of train, validation, "
            "held_out and test.",
        ),
        dg.AssetCheckSpec(
            "shares_are_as_asked_for",
            asset="splits",
            description="In each category of 20 concepts or more, the shares are near those of the settings.",
        ),
    ],
)
def splits(
    settings: dg.ResourceParam[Settings], validated_data: Artifact, duplicate_clusters: Artifact
) -> Iterator[dg.MaterializeResult[Artifact]]:
    """Each record's split, decided by a hash of its concept, so that it never moves as data grows."""
    artifact = stages.splits(settings, validated_data, duplicate_clusters)
    leaks = stages.split_leaks(artifact, duplicate_clusters)
    far_off = {category: of["far_off"] for category, of in artifact.summary["shares"].items() if of["far_off"]}
    checks = [
        dg.AssetCheckResult(
            check_name="splits_do_not_leak",
            passed=not leaks,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={"leaks": len(leaks), "first": [str(leak) for leak in leaks[:_LEAKS_TOLD]]},
        ),
        dg.AssetCheckResult(
            check_name="shares_are_as_asked_for",
            passed=not far_off,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"far_off": far_off},
        ),
    ]
    yield result(artifact, checks=checks)
