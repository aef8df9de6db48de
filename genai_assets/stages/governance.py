"""The stage of governance: dataset_card."""

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.ground import artifact_store, made_from


def dataset_card(
    settings: Settings, raw: Artifact, validated: Artifact, split: Artifact, duplicates: Artifact | None = None
) -> Artifact:
    """The dataset's card, its description as Croissant, whom to credit, and the records with their splits."""
    import pandas as pd

    from genai_assets.datasets.dataset_card import make_dataset_card
    from genai_assets.datasets.records import read_manifest

    stages = {"raw_data": raw, "validated_data": validated, "splits": split}
    versions = {name: artifact.data_version for name, artifact in stages.items()}
    if duplicates is not None:
        versions["duplicate_clusters"] = duplicates.data_version
    return artifact_store(settings).build(
        "dataset_card",
        made_from(
            "dataset_card",
            versions=versions,
            governance=settings.governance.model_dump(mode="json"),
            splits=settings.splits.model_dump(mode="json"),
            house_style=settings.dataset.house_style,
            allowed=list(settings.dataset.allowed_licences),
        ),
        lambda out: make_dataset_card(
            read_manifest(validated.file("manifest.parquet")),
            pd.read_parquet(split.file("splits.parquet")),
            settings,
            out,
            versions=versions,
            raw=raw.summary,
            validated=validated.summary,
            split_summary=split.summary,
            duplicates=duplicates.summary if duplicates else None,
        ),
    )
