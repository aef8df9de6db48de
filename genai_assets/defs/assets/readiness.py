"""Whether the data can be trained on: data_readiness_report."""

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import page, result
from genai_assets.settings import Settings

GROUP = "dataset"


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["data_readiness_report"], kinds={"html"})
def data_readiness_report(
    settings: dg.ResourceParam[Settings],
    raw_data: Artifact,
    validated_data: Artifact,
    splits: Artifact,
    duplicate_clusters: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """One page with a verdict, what to mend first, and everything it rests on."""
    artifact = stages.data_readiness_report(settings, raw_data, validated_data, splits, duplicate_clusters)
    told = [f"**{artifact.summary['verdict']}**", *(f"- {title}" for title in artifact.summary["mend_first"])]
    links = {"report": page(artifact.file("readiness.html")), "facts": page(artifact.file("readiness.json"))}
    return result(artifact, {"first": dg.MetadataValue.md("\n".join(told)), **links})
