"""The stages of the dataset: raw_data, image_features, splits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.ground import OnProgress, artifact_store, made_from


def raw_data(settings: Settings, *, batch: str | None = None, on_progress: OnProgress | None = None) -> Artifact:
    """Every source read into one manifest, batch by batch: the next batch when anything changed, else the newest.

    Args:
        settings: which sources.
        batch: the name of a batch that is there (it is returned as it is), or how the next one is to be called; not
            given: its number and a digest of what arrived, such as ``000007-3fa9c1``.
        on_progress: told about progress.

    Raises:
        ValueError, SourceUnreadable, MassRemoval: as of ``ingestion.ingest``; then nothing was changed.
    """
    from genai_assets.datasets.arrivals import LastListing, look
    from genai_assets.datasets.ingestion import Batch, NothingNew, ingest, is_unchanged

    store = artifact_store(settings)
    if batch is not None and (known := {made.summary["batch"]: made for made in batches(settings)}.get(batch)):
        return known
    arrivals = look(settings)
    newest = newest_raw_data(settings)
    number = next_batch_number(newest)
    wanted = Batch(number, batch or arrivals.batch_name(number), newest.path if newest else None)
    same = newest is not None and number > 1 and newest.inputs["sources"] == arrivals.digests
    if newest and same and is_unchanged(settings, arrivals, LastListing(wanted.last_listing)):
        return newest

    def told(source: str, pictures: int) -> None:
        if on_progress:
            on_progress(source, pictures, 0)

    inputs = {"number": number, "batch": wanted.name, "previous": newest.fingerprint if newest else None}
    try:
        return store.build(
            "raw_data",
            made_from("raw_data", sources=dict(arrivals.digests), **inputs),
            lambda out: ingest(settings, arrivals, out, batch=wanted, must_differ=same, on_progress=told),
        )
    except NothingNew:
        assert newest is not None
        return newest


def next_batch_number(newest: Artifact | None) -> int:
    """The number of the batch after the newest raw data; 1 when there is none, or none that came as a batch."""
    return 1 + (newest.summary.get("number", 0) if newest else 0)


def newest_raw_data(settings: Settings) -> Artifact | None:
    """The batch of raw data with the highest number, or None: files' times do not survive every copy of a home."""
    last = artifact_store(settings).newest("raw_data")
    return max((last, *batches(settings)), key=next_batch_number) if last else None  # of equals, the last


def batches(settings: Settings) -> list[Artifact]:
    """Every batch of raw data that is there, the oldest first."""
    found = [artifact for artifact in artifact_store(settings).all("raw_data") if "batch" in artifact.summary]
    return sorted(found, key=lambda batch: batch.summary["number"])


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


def splits(settings: Settings, validated: Artifact, duplicates: Artifact | None = None) -> Artifact:
    """Every record in its split; near duplicates are bound together when ``duplicates`` has them.

    Raises:
        ValueError: nothing to train on, or nothing held out.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.release import released_categories
    from genai_assets.datasets.splits import split

    released = released_categories(settings.paths)

    def make(out: Path) -> dict[str, Any]:
        near = {name: pd.read_parquet(duplicates.file(f"{name}.parquet")) for name in _NEAR} if duplicates else {}
        return split(read_manifest(validated.file("manifest.parquet")), settings, released, out, **near)

    return artifact_store(settings).build(
        "splits",
        made_from(
            "splits",
            validated=validated.data_version,
            duplicates=duplicates.data_version if duplicates else None,
            rules=settings.splits.model_dump(mode="json"),
            keep=settings.curation.keep,
            house_style=settings.dataset.house_style,
            prompt_template=settings.fine_tune.prompt_template,
            max_feedback_share=settings.monitoring.max_feedback_share,
            max_synthetic_share=settings.synthetic.max_share,
            released=sorted(released),
        ),
        make,
    )


_NEAR = ("clusters", "pairs")


def read_splits(split: Artifact) -> pd.DataFrame:
    """The table of a splits artifact."""
    return pd.read_parquet(split.file("splits.parquet"))


def picture_reader(settings: Settings) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """Reads a picture of the store at a size (height, width), as RGB uint8 [height, width, 3]."""
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.diffusion.aspect_buckets import reader_of

    dataset = settings.dataset
    return reader_of(PictureStore(settings.paths.pictures), max_pixels=dataset.max_pixels, background=dataset.paper)
