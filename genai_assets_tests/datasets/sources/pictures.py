"""Pictures to put into sources, and reading a source whole."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genai_assets.datasets.sources.source import DatasetSource, Fetched, Listed, Surroundings


def png(seed: int = 0, side: int = 12) -> bytes:
    """A small PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def surroundings(folder: Path, **given: Any) -> Surroundings:
    return Surroundings(**{"style": "house", "licence": "LicenseRef-own", "cache": folder / "cache", **given})


def listing(source: DatasetSource) -> dict[str, Listed]:
    """By key; each key once."""
    found = list(source.list())
    assert len({listed.key for listed in found}) == len(found)
    for listed in found:
        f"{listed.key}{listed.state}{listed.concept}".encode()  # a table could not keep it otherwise
    return {listed.key: listed for listed in found}


def everything(source: DatasetSource) -> dict[str, Fetched]:
    """All that is listed, fetched; what was listed is given or refused, once, and nothing else."""
    keys = listing(source).keys()
    found = list(source.fetch(keys))
    assert sorted(fetched.key for fetched in found) == sorted(keys)
    for fetched in found:
        assert bool(fetched.refusal) == (fetched.description is None)
        fetched.refusal.encode()
    return {fetched.key: fetched for fetched in found}


def captions(source: DatasetSource) -> dict[str, str]:
    """Of the pictures that are not refused."""
    return {key: fetched.description.caption for key, fetched in everything(source).items() if fetched.description}


def refusals(source: DatasetSource) -> dict[str, str]:
    return {key: fetched.refusal for key, fetched in everything(source).items() if fetched.refusal}
