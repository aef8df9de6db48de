"""Validation: which records go on to training, and which are set aside, with the reason.

Belongs here: the decision. The expectation suite is run on the manifest as it came, and the outcome is *reported*. A
record that breaks a critical claim, whose picture fails when it is really decoded, or that repeats a picture, is
*quarantined* with its reason, and the rest goes on: one bad file must not stop a team's training. Then the suite is
run again on what is left, and that outcome *decides*: a critical claim that fails now cannot be mended by leaving
records out (nothing is left, the columns are not a record's, most records were unusable), so it must stop the graph. A
record that only breaks a warning is kept, and the warning stays visible.

What the claims are is ``expectations``; what a picture's bytes are is ``decoding``.
"""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from genai_assets import durable
from genai_assets.datasets import decoding, records
from genai_assets.datasets.expectations import EXPECTATIONS, Expectation, ExpectationResult, run_suite
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.settings import Settings

MAX_QUARANTINED_SHARE = 0.5
"""A larger share than this set aside means that the source is broken, and not some of its records."""

MAX_ASPECT_RATIO = 4.0
"""Longer side over shorter side: a longer picture is mostly margin once it is padded to a square."""

BLANK_RANGE = 8
"""Levels of 255: when no channel of the shrunken picture spans this many, it is (nearly) of one colour."""

_BLANK_GRID = 32  # cells a side; averaging over cells forgives noise and specks, yet keeps a hairline
_PROGRESS_EVERY = 100  # pictures

MOST_RECORDS_ARE_USABLE = Expectation(
    "most_records_are_usable",
    "critical",
    f"At most {MAX_QUARANTINED_SHARE:.0%} of the records had to be quarantined.",
)

CHECKS: tuple[Expectation, ...] = (*EXPECTATIONS, MOST_RECORDS_ARE_USABLE)
"""Every claim that :func:`validate` reports on, in the order of its summary's ``checks``."""


@dataclass(frozen=True)
class Fault:
    """Why a record is quarantined: the kind is counted, the reason is read."""

    kind: str
    reason: str


@dataclass(frozen=True)
class _Picture:
    """What decoding one picture told: its size in pixels, or its fault."""

    width: int = 0
    height: int = 0
    fault: Fault | None = None


def validate(
    manifest: pd.DataFrame,
    store: PictureStore,
    settings: Settings,
    out: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Part a manifest into records that can be used and records that cannot, and test what is left.

    Writes ``out/manifest.parquet`` (the good records), ``out/quarantine.parquet`` (the others, with the column
    ``reason``) and ``out/validation.json`` (both outcomes of the suite, and the counts). The same manifest and pictures
    give the same bytes. The Data Docs lie in the home folder, for they carry the time.

    A claim that fails is no error here: it is in the summary's ``checks``, and whoever calls decides what it blocks.

    Args:
        manifest: as of :func:`records.to_frame`.
        store: where the pictures lie.
        settings: the rules of ``settings.dataset``; where the Data Docs lie.
        out: an existing folder to fill.
        on_progress: called with the pictures decoded so far, and their number.

    Returns:
        ``records``, ``kept``, ``quarantined``: counts of records; ``quarantined_by_reason``: kind of fault to count
        (a record with several faults counts under its first); ``manifest_version``: of the good records; ``success``:
        no critical check failed; ``checks``: for each of :data:`CHECKS` its ``name``, ``severity``, ``passed`` and
        ``unexpected_count`` on the good records; ``raw_checks``: the same for the suite on the manifest as it came;
        ``data_docs``: path of the index page.

    Raises:
        ValueError: the manifest lacks columns.
        OSError: the store or ``out`` cannot be read or written (a picture that is not there is a fault, no error).
    """
    if missing := [name for name in records.COLUMNS if name not in manifest.columns]:
        raise ValueError(
            f"the manifest lacks the columns {', '.join(missing)}; "
            "write it with records.to_frame, or materialize raw_data again"
        )
    manifest = manifest.reset_index(drop=True)
    raw = run_suite(manifest, settings, run_name="raw_manifest")
    faults = _find_faults(manifest, raw.results, store, settings, on_progress)

    kept = manifest.iloc[[row for row, found in enumerate(faults) if not found]].reset_index(drop=True)
    quarantine = manifest.iloc[[row for row, found in enumerate(faults) if found]].reset_index(drop=True)
    quarantine["reason"] = pd.Series(
        ["; ".join(fault.reason for fault in found) for found in faults if found], dtype=str
    )
    validated = run_suite(kept, settings, run_name="validated_manifest")

    checks = [*_describe(validated.results), _check_most_are_usable(len(manifest), len(kept))]
    counts = {
        "records": len(manifest),
        "kept": len(kept),
        "quarantined": len(quarantine),
        "quarantined_by_reason": dict(Counter(found[0].kind for found in faults if found).most_common()),
        "manifest_version": records.manifest_version(kept),
        "success": all(check["passed"] or check["severity"] != "critical" for check in checks),
        "checks": checks,
    }
    records.write_manifest(out / "manifest.parquet", kept)
    records.write_manifest(out / "quarantine.parquet", quarantine)
    durable.write_json(
        out / "validation.json",
        {
            **counts,
            "raw_manifest": [_without_rows(result) for result in raw.results],
            "validated_manifest": [_without_rows(result) for result in validated.results],
        },
    )
    return {**counts, "raw_checks": _describe(raw.results), "data_docs": str(validated.data_docs)}


def _find_faults(
    manifest: pd.DataFrame,
    results: tuple[ExpectationResult, ...],
    store: PictureStore,
    settings: Settings,
    on_progress: Callable[[int, int], None] | None,
) -> list[list[Fault]]:
    """The faults of each record, in the manifest's order; an empty list for a good one."""
    faults: list[list[Fault]] = [[] for _ in range(len(manifest))]
    for expectation, result in zip(EXPECTATIONS, results, strict=True):
        # A caption given twice to one picture is a duplicate, and of duplicates the first one stays: see below.
        if expectation.severity == "critical" and expectation.fault and expectation.name != "records_are_distinct":
            for row in result.unexpected_rows:
                detail = f": {manifest.at[row, expectation.column]}" if expectation.column else ""
                faults[row].append(Fault(expectation.fault, expectation.fault + detail))

    # A picture whose size could not be read is recorded as 0 × 0: it is told as damaged, not as too small.
    looked_at = [row for row, found in enumerate(faults) if not found or manifest.at[row, "width"] == 0]
    pictures = _inspect_pictures(list(dict.fromkeys(manifest["id"].iloc[looked_at])), store, settings, on_progress)
    for row in looked_at:
        picture = pictures[manifest.at[row, "id"]]
        recorded = (manifest.at[row, "width"], manifest.at[row, "height"])
        if picture.fault:
            faults[row].insert(0, picture.fault)
        elif not faults[row] and (picture.width, picture.height) != recorded:
            faults[row].append(
                Fault(
                    "size differs from the record",
                    f"size differs from the record: {picture.width} × {picture.height} pixels, "
                    f"recorded as {recorded[0]} × {recorded[1]}",
                )
            )

    # The earliest arrival stays, so that a picture keeps its caption (and with it its split) when more data comes; in
    # one batch the concept itself goes before its variants.
    first: dict[str, Any] = {}
    sound = [row for row, found in enumerate(faults) if not found]
    for row in manifest.iloc[sound].sort_values(["added_at", "variant", "caption"], kind="stable").index:
        picture_id, caption = manifest.at[row, "id"], manifest.at[row, "caption"]
        if picture_id in first:
            faults[row].append(Fault("duplicate", f"duplicate of {picture_id[:12]}, kept as “{first[picture_id]}”"))
        else:
            first[picture_id] = caption
    return faults


def _inspect_pictures(
    ids: list[str], store: PictureStore, settings: Settings, on_progress: Callable[[int, int], None] | None
) -> dict[str, _Picture]:
    """Decode every picture. In threads: Pillow decodes outside the interpreter's lock, and no process need start."""
    found: dict[str, _Picture] = {}
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        inspected = pool.map(lambda picture: _inspect(picture, store, settings.dataset.max_pixels), ids)
        for done, (picture_id, picture) in enumerate(zip(ids, inspected, strict=True), start=1):
            found[picture_id] = picture
            if on_progress and (done % _PROGRESS_EVERY == 0 or done == len(ids)):
                on_progress(done, len(ids))
    return found


def _inspect(picture_id: str, store: PictureStore, max_pixels: int) -> _Picture:
    try:
        data = store.read(picture_id, verify=True)
    except FileNotFoundError:
        return _Picture(fault=Fault("picture missing", "picture missing: it is not in the store"))
    except ValueError as error:
        return _Picture(fault=Fault("picture changed", f"picture changed: {error}"))
    try:
        image = decoding.decode(data, max_pixels=max_pixels)
    except decoding.UndecodablePicture as error:
        return _Picture(fault=Fault("undecodable", f"undecodable: {error}"))
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return _Picture(
            fault=Fault(
                "too long",
                f"too long: {width} × {height} pixels, over {MAX_ASPECT_RATIO:g} to 1",
            )
        )
    if _is_blank(image):
        return _Picture(fault=Fault("blank", "blank: it is (nearly) of one colour"))
    return _Picture(width, height)


def _is_blank(image: Image.Image) -> bool:
    """Whether an RGB picture is (nearly) of one colour."""
    grid = (min(image.width, _BLANK_GRID), min(image.height, _BLANK_GRID))
    shrunken = image.resize(grid, Image.Resampling.BOX)
    pixels = np.asarray(shrunken).reshape(-1, 3)
    return bool((np.ptp(pixels, axis=0) < BLANK_RANGE).all())


def _check_most_are_usable(total: int, kept: int) -> dict[str, Any]:
    return {
        "name": MOST_RECORDS_ARE_USABLE.name,
        "severity": MOST_RECORDS_ARE_USABLE.severity,
        "passed": kept > 0 and total - kept <= MAX_QUARANTINED_SHARE * total,
        "unexpected_count": total - kept,
    }


def _describe(results: tuple[ExpectationResult, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": result.name,
            "severity": result.severity,
            "passed": result.success,
            "unexpected_count": result.unexpected_count,
        }
        for result in results
    ]


def _without_rows(result: ExpectationResult) -> dict[str, Any]:
    """A result as JSON; which rows broke it is told by the quarantine, by reason."""
    return {name: value for name, value in asdict(result).items() if name != "unexpected_rows"}
