"""What is known of one picture, and the manifest: the Parquet table of all of them.

Belongs here: the record's fields and their meaning, reading and writing manifests. Where records come from is
``sources``; whether they are good is ``expectations``.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from genai_assets import durable

FEEDBACK_SOURCE = "feedback"
"""Source of the records that people's ratings made."""

SYNTHETIC_SOURCE = "synthetic"
"""Source of the records that our own model drew for thin classes."""

FEEDBACK_LICENCE = "LicenseRef-own-output"
"""Licence of what our own model drew."""

CAPTION_ORIGINAL = "caption_original"
"""Key of a record's provenance: the caption its source gave, when it has another now."""


class Record(BaseModel):
    """One picture and what we know of it.

    Attributes:
        id: SHA-256 of the picture's bytes in the store; minted from content, never from a file name.
        caption: what the picture shows, as a person would say it ("slice of pizza").
        concept: what it shows whatever the style; pictures of one concept never straddle two splits.
        style: the look it is drawn in ("fluent", "noto"); the house style is the one to learn.
        source: where it came from, for example ``icons:noto`` or ``folder:products``.
        licence: SPDX identifier of the picture's licence.
        width, height: pixels.
        added_at: when the record first entered a manifest, UTC. Not part of the manifest's version.
        category: coarse class ("food-drink"), empty when unknown.
        keywords: further words for the picture.
        variant: true for a variation of a concept (a skin tone), drawn less often in training.
        synthetic: true for what a model drew; such a record is trained on only, never validated or tested with.
        opt_out: the signal by which its maker reserves it from training ("noai sidecar"), empty when there is none.
        provenance: package, version, file, attribution: what is needed to trace and credit it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    caption: str
    concept: str
    style: str
    source: str
    licence: str
    width: int
    height: int
    added_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    category: str = ""
    keywords: tuple[str, ...] = ()
    variant: bool = False
    synthetic: bool = False
    opt_out: str = ""
    provenance: dict[str, str] = Field(default_factory=dict)


COLUMNS = tuple(Record.model_fields)


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Records as a table with one column a field, sorted by id; provenance is JSON text, keywords a list."""
    rows = [record.model_dump() for record in records]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["provenance"] = [json.dumps(value, sort_keys=True) for value in frame["provenance"]]
    frame["keywords"] = [list(value) for value in frame["keywords"]]
    return frame.sort_values(["id", "caption"], ignore_index=True)


def from_frame(frame: pd.DataFrame) -> list[Record]:
    """The inverse of :func:`to_frame`."""
    return [
        Record(**{**row, "keywords": tuple(row["keywords"]), "provenance": json.loads(row["provenance"])})
        for row in frame[list(COLUMNS)].to_dict("records")
    ]


def original_captions(frame: pd.DataFrame) -> list[str]:
    """The captions that the sources gave, whatever people or a model made of them since; in the manifest's order."""
    return [
        json.loads(provenance).get(CAPTION_ORIGINAL, caption) if CAPTION_ORIGINAL in provenance else caption
        for provenance, caption in zip(frame["provenance"], frame["caption"], strict=True)
    ]


def write_manifest(path: Path, frame: pd.DataFrame) -> None:
    """Write a manifest as Parquet, all or nothing."""
    with durable.replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest; list columns come back as lists."""
    frame = pd.read_parquet(path)
    frame["keywords"] = [list(value) for value in frame["keywords"]]
    return frame


def manifest_version(frame: pd.DataFrame) -> str:
    """Digest (16 hexadecimal digits) of what a manifest says, whatever its row order and arrival times."""
    columns = [name for name in frame.columns if name != "added_at"]
    rows: list[dict[str, Any]] = json.loads(frame[columns].to_json(orient="records"))
    return durable.digest_json(sorted(rows, key=durable.canonical_json))[:16]
