"""The stages that judge the data: validated_data, data_readiness_report."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.captions import captions_in_force
from genai_assets.stages.ground import OnProgress, artifact_store, made_from, told_as


def validated_data(settings: Settings, raw: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """The records that passed every check, and the quarantine.

    A failing critical check is in the summary's ``checks``; whoever goes on must look at them. When the data may not be
    older than ``readiness.max_age_days``, the day is among what it is made from.

    Raises:
        ValueError: an expectation of the team's own cannot be tested.
        LogUnreadable, ModelUnfit: corrections or the captioning model cannot be read.
    """
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.validation import Intake, rules_of, validate

    captions = captions_in_force(settings)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return artifact_store(settings).build(
        "validated_data",
        made_from("validated_data", raw=raw.data_version, rules=rules_of(settings, today=today), **captions.inputs()),
        lambda out: validate(
            captions.apply(read_manifest(raw.file("manifest.parquet")), on_progress=on_progress),
            PictureStore(settings.paths.pictures),
            settings,
            out,
            intake=Intake(_read_refused(raw), raw.summary.get("duplicates", 0)),
            today=today,
            on_progress=told_as("pictures inspected", on_progress),
        ),
    )


def data_readiness_report(
    settings: Settings,
    raw: Artifact,
    validated: Artifact,
    split: Artifact | None = None,
    duplicates: Artifact | None = None,
) -> Artifact:
    """One page: whether the data can be trained on, and what to mend first.

    Splits and clusters of near duplicates are on it when they are given.
    """
    from genai_assets.datasets.inspection import Inspections
    from genai_assets.datasets.readiness import Materials, write_readiness
    from genai_assets.datasets.records import read_manifest

    known = [artifact for artifact in (raw, validated, split, duplicates) if artifact]
    versions = {artifact.kind: artifact.data_version for artifact in known}

    def make(out: Path) -> dict[str, Any]:
        materials = Materials(
            manifest=read_manifest(validated.file("manifest.parquet")),
            quarantine=read_manifest(validated.file("quarantine.parquet")),
            refused=_read_refused(raw),
            summary=validated.summary,
            batches=_read_batches(raw),
            splits=pd.read_parquet(split.file("splits.parquet")) if split else None,
            clusters=pd.read_parquet(duplicates.file("clusters.parquet")) if duplicates else None,
            provenance=versions | {"batch": str(raw.summary.get("batch", "–"))},
        )
        with Inspections(settings) as inspections:
            return write_readiness(out, materials, settings, inspections.thumbnail)

    return artifact_store(settings).build(
        "data_readiness_report",
        made_from(
            "data_readiness_report",
            **versions,
            # Seen, refused and the Data Docs are in the summary and not in the artifact's content.
            summary=validated.fingerprint,
            rules=settings.readiness.model_dump_json(),
            captions=settings.captions.model_dump(mode="json"),
        ),
        make,
    )


def _read_refused(raw: Artifact) -> pd.DataFrame:
    return pd.read_parquet(raw.file("refused.parquet"))


def _read_batches(raw: Artifact) -> dict[str, str] | None:
    """Picture id to the batch it first came in with; None for raw data from before there were batches."""
    path = raw.path / "arrivals.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["id"], table["batch"], strict=True))
