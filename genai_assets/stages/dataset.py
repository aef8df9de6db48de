"""The stages of the dataset: raw_data, validated_data, image_features, splits."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.ground import OnProgress, artifact_store, made_from, told_as


def raw_data(settings: Settings, *, on_progress: OnProgress | None = None) -> Artifact:
    """Every source read into one manifest.

    Raises:
        ValueError, FileNotFoundError, PackageUnavailable: as of ``ingestion.ingest``.
    """
    from genai_assets.datasets.ingestion import MANIFEST, ingest, source_fingerprints
    from genai_assets.datasets.records import read_manifest

    store = artifact_store(settings)
    before = store.newest("raw_data")
    previous = read_manifest(before.file(MANIFEST)) if before else None

    def told(source: str, pictures: int) -> None:
        if on_progress:
            on_progress(source, pictures, 0)

    return store.build(
        "raw_data",
        made_from("raw_data", sources=source_fingerprints(settings)),
        lambda out: ingest(settings, out, previous=previous, on_progress=told),
    )


def validated_data(settings: Settings, raw: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """The records that passed every check, and the quarantine.

    A failing critical check is in the summary's ``checks``; whoever goes on must look at them.
    """
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.validation import validate

    rules = settings.dataset.model_dump(mode="json", include={"allowed_licences", "max_pixels", "min_side"})
    rules["max_caption_length"] = settings.dataset.max_caption_length
    return artifact_store(settings).build(
        "validated_data",
        made_from("validated_data", raw=raw.data_version, rules=rules),
        lambda out: validate(
            read_manifest(raw.file("manifest.parquet")),
            PictureStore(settings.paths.pictures),
            settings,
            out,
            on_progress=told_as("pictures decoded", on_progress),
        ),
    )


def image_features(settings: Settings, validated: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """Vectors of the pictures and captions, computed once each."""
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.evaluation.feature_index import compute_features, open_feature_index

    return artifact_store(settings).build(
        "image_features",
        made_from(
            "image_features",
            validated=validated.data_version,
            house_style=settings.dataset.house_style,
            version=open_feature_index(settings).version,
        ),
        lambda out: compute_features(
            read_manifest(validated.file("manifest.parquet")),
            PictureStore(settings.paths.pictures),
            settings,
            out,
            on_progress=on_progress,
        ),
    )


def splits(settings: Settings, validated: Artifact) -> Artifact:
    """Every record in its split.

    Raises:
        ValueError: nothing to train on, or nothing held out.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.release import released_categories
    from genai_assets.datasets.splits import split

    released = released_categories(settings.paths)
    return artifact_store(settings).build(
        "splits",
        made_from(
            "splits",
            validated=validated.data_version,
            rules=settings.splits.model_dump(mode="json"),
            house_style=settings.dataset.house_style,
            released=sorted(released),
        ),
        lambda out: split(read_manifest(validated.file("manifest.parquet")), settings, released, out),
    )


def read_splits(split: Artifact) -> pd.DataFrame:
    """The table of a splits artifact."""
    return pd.read_parquet(split.file("splits.parquet"))


def picture_reader(settings: Settings) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """Reads a picture of the store at a size (height, width), as RGB uint8 [height, width, 3] on white."""
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.diffusion.aspect_buckets import reader_of

    return reader_of(PictureStore(settings.paths.pictures), max_pixels=settings.dataset.max_pixels)
