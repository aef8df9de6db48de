"""The stages of curation: duplicate_clusters, and what is claimed of the splits that respect them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.dataset import read_splits
from genai_assets.stages.ground import OnProgress, artifact_store, made_from, told_as

if TYPE_CHECKING:
    from genai_assets.datasets.inspection import Inspections
    from genai_assets.datasets.leakage import Leak


def duplicate_clusters(
    settings: Settings, validated: Artifact, features: Artifact, *, on_progress: OnProgress | None = None
) -> Artifact:
    """Near duplicates by perceptual hash and by features, grouped."""
    from genai_assets.datasets.duplicates import find_duplicates
    from genai_assets.datasets.inspection import Inspections
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.evaluation.feature_index import FeatureTable

    def make(out: Path) -> dict[str, Any]:
        manifest = read_manifest(validated.file("manifest.parquet"))
        known = FeatureTable.read(features.path)
        with Inspections(settings) as inspections:
            inspected = inspections.of(
                manifest["id"],
                PictureStore(settings.paths.pictures),
                on_progress=told_as("pictures inspected", on_progress),
            )
            hashes = {
                picture: inspection.perceptual_hash
                for picture, inspection in inspected.items()
                if inspection.perceptual_hash
            }
            return find_duplicates(
                manifest, hashes, (known.picture_ids, known.pictures), _grids(inspections), settings.curation, out
            )

    return artifact_store(settings).build(
        "duplicate_clusters",
        made_from(
            "duplicate_clusters",
            validated=validated.data_version,
            features=features.data_version,
            rules=settings.curation.model_dump(mode="json"),
        ),
        make,
    )


def split_leaks(split: Artifact, duplicates: Artifact | None = None) -> "list[Leak]":
    """Whatever two splits have in common, found in the written tables; empty when nothing leaks."""
    from genai_assets.datasets.leakage import find_leaks

    near = {}
    if duplicates is not None:
        near = {name: pd.read_parquet(duplicates.file(f"{name}.parquet")) for name in ("clusters", "pairs")}
    return find_leaks(read_splits(split), **near)


def _grids(inspections: "Inspections") -> Callable[[Sequence[str]], np.ndarray]:
    """Reads colour grids of pictures from their thumbnails."""
    import io

    from PIL import Image

    from genai_assets.datasets.duplicates import colour_grid

    def read(ids: Sequence[str]) -> np.ndarray:
        grids = []
        for picture in ids:
            with Image.open(io.BytesIO(inspections.thumbnail(picture))) as image:
                grids.append(colour_grid(image.convert("RGB")))
        return np.stack(grids)

    return read
