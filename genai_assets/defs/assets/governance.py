"""What must be known of the data: dataset_card."""

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.attribution import ATTRIBUTION
from genai_assets.datasets.dataset_card import CARD
from genai_assets.defs.narration import page, result
from genai_assets.settings import Settings

GROUP = "dataset"


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["dataset_card"], kinds={"huggingface"})
def dataset_card(
    settings: dg.ResourceParam[Settings],
    raw_data: Artifact,
    validated_data: Artifact,
    duplicate_clusters: Artifact,
    splits: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """The dataset's card with the graph's figures, its description as Croissant, and whom to credit."""
    artifact = stages.dataset_card(settings, raw_data, validated_data, splits, duplicate_clusters)
    return result(
        artifact,
        {
            "card": dg.MetadataValue.md(artifact.file(CARD).read_text().split("---", 2)[-1]),
            "attribution": page(artifact.file(ATTRIBUTION)),
        },
    )
