"""Pictures that the champion draws for thin classes: synthetic_pictures."""

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.assets.evaluation import champion_model
from genai_assets.defs.narration import progress_log, result
from genai_assets.settings import Settings

GROUP = "dataset"


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["synthetic_pictures"],
    kinds={"diffusers"},
    deps=[champion_model],
)
def synthetic_pictures(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    splits: Artifact,
    image_features: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """Pictures the champion draws for thin classes; they come back as data that raw_data reads on its next run."""
    artifact = stages.synthetic_pictures(
        settings, validated_data, splits, image_features, on_progress=progress_log(context)
    )
    batches = sorted(path.name for path in settings.paths.synthetic_batches.glob("*.parquet"))
    return result(artifact, {"batches": dg.MetadataValue.json(batches)})
