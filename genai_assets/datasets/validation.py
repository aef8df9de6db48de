"""Validation: which records go on to training, and which are set aside, with the reason.

Belongs here: the decision. What only Python can tell of a record (its picture's inspection, its caption's problems, a
team's own function) is measured into columns; then the claims are tested on the manifest as it came, and the outcome
is *reported*. A record that breaks a critical claim, whose picture has a fault, or that repeats a picture, is
*quarantined* with its reason, and the rest goes on: one bad file must not stop a team's training. Then the claims are
tested again on what is left, and that outcome *decides*: a critical claim that fails now cannot be mended by leaving
records out (nothing is left, the columns are not a record's, most records were unusable), so it must stop the graph. A
record that only breaks a warning is kept, and the warning stays visible.

What the claims are is ``expectations``; what a picture's bytes are is ``inspection``.
"""

import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets import records
from genai_assets.datasets.caption_quality import CaptionRules, Problem, caption_problems, masked_caption
from genai_assets.datasets.duplicates import perceptual_groups
from genai_assets.datasets.expectations import (
    CAPTION_PROBLEMS,
    EXPECTATIONS,
    NEAR_DUPLICATE,
    Claim,
    Expectation,
    ExpectationResult,
    claims_of,
    found_by,
    judge_claims,
    measured_columns,
    run_suite,
)
from genai_assets.datasets.inspection import Inspection, Inspections
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.table_rules import ASPECT
from genai_assets.settings import Settings

MAX_QUARANTINED_SHARE = 0.5
"""A larger share than this set aside means that the source is broken, and not some of its records."""

UNEXPECTED = "unexpected.parquet"
"""Every record of the manifest as it came that breaks a claim: claim, id, row, value."""

IDS_SHOWN = 20
"""Unexpected ids told with a check; :data:`UNEXPECTED` has all."""

_REFUSALS_SHOWN = 20
_OWN_TOLD = ("name", "severity", "passed", "unexpected_count", "sample", "observed")
_ID = re.compile(r"[0-9a-f]{64}")

MOST_RECORDS_ARE_USABLE = Expectation(
    "most_records_are_usable",
    "critical",
    f"At most {MAX_QUARANTINED_SHARE:.0%} of the records had to be quarantined.",
)

OWN_EXPECTATIONS_HOLD = Expectation(
    "own_expectations_hold", "critical", "Every claim of readiness.expectations and readiness.functions holds."
)
"""One check for all of them: which there are is known only when settings are read."""

CHECKS: tuple[Expectation, ...] = (*EXPECTATIONS, MOST_RECORDS_ARE_USABLE, OWN_EXPECTATIONS_HOLD)
"""Every claim that :func:`validate` reports on, in the order of its summary's ``checks``."""


@dataclass(frozen=True)
class Fault:
    """Why a record is quarantined: the kind is counted, the reason is read."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Intake:
    """What never came into the manifest, so that nothing that was seen is lost from sight.

    Attributes:
        refused: as ingestion lists it: ``source``, ``key``, ``licence``, ``reason`` and ``count`` (missing for a whole
            source that was never read).
        doubles: records left out because they said the same of the same picture.
    """

    refused: pd.DataFrame
    doubles: int = 0


def rules_of(settings: Settings, *, today: datetime | None = None) -> dict[str, Any]:
    """Everything of the settings that :func:`validate` depends on, as plain JSON values; and the code of own functions.

    Raises:
        ValueError: a function of the team's own cannot be imported.
    """
    names = {"allowed_licences", "max_pixels", "min_side", "max_caption_length"}
    names |= {"background", "decode_seconds", "decode_memory_mib"}  # what an inspection depends on
    limits = settings.readiness
    return {
        "dataset": settings.dataset.model_dump(mode="json", include=names),
        "readiness": json.loads(limits.model_dump_json()),
        "captions": settings.captions.model_dump(mode="json", include=set(CaptionRules.model_fields)),
        "honour_opt_outs": settings.governance.honour_opt_outs,
        "functions": {stated.claim: _code_of(stated.function) for stated in limits.own if stated.function},
        "today": today.date().isoformat() if today and limits.max_age_days else None,
    }


def validate(
    manifest: pd.DataFrame,
    store: PictureStore,
    settings: Settings,
    out: Path,
    *,
    intake: Intake | None = None,
    today: datetime | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Part a manifest into records that can be used and records that cannot, and test what is left.

    Writes ``out/manifest.parquet`` (the good records), ``out/quarantine.parquet`` (the others, with the column
    ``reason``), ``out/unexpected.parquet`` (every record that breaks a claim, warnings too) and ``out/validation.json``
    (both outcomes, and the counts). The same manifest and pictures give the same bytes. The Data Docs lie in the home
    folder, for they carry the time.

    A claim that fails is no error here: it is in the summary's ``checks``, and whoever calls decides what it blocks.

    Args:
        manifest: as of :func:`records.to_frame`.
        store: where the pictures lie.
        settings: the rules; where inspections and Data Docs lie.
        out: an existing folder to fill.
        intake: what never came into the manifest.
        today: from when freshness counts; without it that claim is off.
        on_progress: called with the pictures inspected so far, and their number.

    Returns:
        ``seen``: all that the sources gave; of it ``refused`` and ``doubles`` never came into the manifest, and
        ``records`` did: ``kept`` and ``quarantined``. ``quarantined_by_reason``: kind of fault to count (a record with
        several faults counts under its first); ``refused_by_reason``; ``refused_sources``: those never read;
        ``manifest_version``: of the good records; ``success``: no critical check failed; ``checks``: for each of
        :data:`CHECKS` its ``name``, ``severity``, ``passed``, ``unexpected_count``, ``ids`` (the first of them),
        ``sample``, ``observed`` and ``off`` (why it was not tested) on the good records; ``raw_checks``: the same for
        the manifest as it came, without ids or samples; ``own_checks``: the same for each claim of the team's own;
        ``looked_at``: what Great Expectations was shown; ``data_docs``: path of the index page.

    Raises:
        ValueError: the manifest lacks columns, or an expectation of the team's own cannot be tested.
        OSError: the store or ``out`` cannot be read or written (a picture that is not there is a fault, no error).
    """
    if missing := [name for name in records.COLUMNS if name not in manifest.columns]:
        raise ValueError(
            f"the manifest lacks the columns {', '.join(missing)}; "
            "write it with records.to_frame, or materialize raw_data again"
        )
    manifest = manifest.reset_index(drop=True)
    claims = claims_of(settings, today=today, licences=set(manifest["licence"].dropna()))
    pictures = _inspections_of(manifest["id"], store, settings, on_progress)
    measured = measure(_with_signals_of_files(manifest, pictures), pictures, settings)
    raw = judge_claims(measured, claims, unexpected=out / UNEXPECTED)
    faults = _find_faults(measured, claims, raw, pictures)

    sound = np.array([not found for found in faults], dtype=bool)
    kept = manifest[sound].reset_index(drop=True)
    quarantine = manifest[~sound].reset_index(drop=True)
    quarantine["reason"] = pd.Series(
        ["; ".join(fault.reason for fault in found) for found in faults if found], dtype=str
    )
    measured_kept = _with_near_duplicates(measured[sound].reset_index(drop=True), pictures, settings)
    validated = judge_claims(measured_kept, claims)
    run_suite(measured, claims, settings, run_name="raw_manifest", results=raw)
    documented = run_suite(measured_kept, claims, settings, run_name="validated_manifest", results=validated)

    described = [_describe(claim, result, kept, settings) for claim, result in zip(claims, validated, strict=True)]
    own = [check for claim, check in zip(claims, described, strict=True) if claim.own]
    checks = [check for claim, check in zip(claims, described, strict=True) if not claim.own]
    checks += [_check_most_are_usable(len(manifest), len(kept)), _check_own(own)]
    counts = {
        **_count_what_never_came(intake, len(manifest)),
        "records": len(manifest),
        "kept": len(kept),
        "quarantined": len(quarantine),
        "quarantined_by_reason": dict(Counter(found[0].kind for found in faults if found).most_common()),
        "manifest_version": records.manifest_version(kept),
        "success": all(check["passed"] or check["severity"] != "critical" for check in checks),
        "checks": checks,
        "own_checks": own,
    }
    records.write_manifest(out / "manifest.parquet", kept)
    records.write_manifest(out / "quarantine.parquet", quarantine)
    durable.write_json(
        out / "validation.json",
        {
            **counts,
            "raw_manifest": [_without_rows(result) for result in raw],
            "validated_manifest": [_without_rows(result) for result in validated],
        },
    )
    raw_checks = [{**_told(result), "unexpected_count": result.unexpected_count, "off": result.off} for result in raw]
    return {
        **counts,
        "raw_checks": raw_checks,
        "looked_at": documented.looked_at,
        "data_docs": str(documented.data_docs),
    }


# --- what only Python can tell --------------------------------------------------------------------------------------


def measure(manifest: pd.DataFrame, pictures: Mapping[str, Inspection], settings: Settings) -> pd.DataFrame:
    """A copy of the manifest with the columns that the claims need beside a record's.

    Args:
        manifest: as of :func:`records.to_frame`.
        pictures: id to inspection, as far as there is one.
        settings: rules for captions; functions of the team's own.

    Raises:
        ValueError: a function of the team's own cannot be imported, failed, or returned what cannot be understood.
    """
    rules = settings.captions
    by_caption = {
        caption: caption_problems(caption, rules)
        for caption in manifest["caption"].unique()
        if isinstance(caption, str) and caption.strip()
    }
    columns: dict[str, Any] = {
        found_by(claim): [_told_of(by_caption.get(caption, ()), kinds) for caption in manifest["caption"]]
        for claim, kinds in CAPTION_PROBLEMS.items()
    }
    for stated in settings.readiness.own:
        if stated.function:
            breaks = _ask_own_function(stated.function, manifest)
            columns[found_by(stated.claim)] = ["does not hold" if one else None for one in breaks]
    measured = _with_near_duplicates(manifest.assign(**columns), pictures, settings)
    return measured[[*manifest.columns, *measured_columns(settings)]]


def _told_of(problems: Sequence[Problem], kinds: Sequence[str]) -> str | None:
    found = [f"{problem.kind}: {problem.detail}" for problem in problems if problem.kind in kinds]
    return "; ".join(found) or None


def _with_near_duplicates(
    manifest: pd.DataFrame, pictures: Mapping[str, Inspection], settings: Settings
) -> pd.DataFrame:
    """With the column that tells which pictures look nearly like another one that stands for them.

    Variants of a concept (a skin tone) are meant to look alike and are not asked; nor is what could not be decoded.
    """
    asked = manifest.loc[~manifest["variant"].astype(bool), "id"].unique()
    known = [pictures[picture] for picture in asked if picture in pictures]
    hashes = {picture.id: picture.perceptual_hash for picture in known if picture.perceptual_hash}
    groups = perceptual_groups(hashes, settings.readiness.near_duplicate_distance)
    near = {picture for _, *others in groups for picture in others}
    told = [picture in near if picture in hashes else None for picture in manifest["id"]]
    return manifest.assign(**{NEAR_DUPLICATE: pd.array(told, dtype="boolean")})


def _ask_own_function(name: str, manifest: pd.DataFrame) -> np.ndarray:
    """bool [N]: which records break the claim that a function of the team's own tests."""
    function = _import_function(name)
    try:
        answer = function(manifest.copy())
    except Exception as error:
        raise ValueError(f"readiness: {name} failed: {type(error).__name__}: {error}") from error
    if isinstance(answer, pd.Series | np.ndarray) and np.asarray(answer).dtype in (bool, "boolean"):
        if len(answer) != len(manifest):
            raise ValueError(f"readiness: {name} told of {len(answer)} records, but there are {len(manifest)}")
        return ~np.asarray(answer, dtype=bool)
    if isinstance(answer, str | Mapping) or not isinstance(answer, Iterable):
        raise ValueError(
            f"readiness: {name} returned {type(answer).__name__}; return a boolean Series, true for each record that "
            "holds, or the ids of those that do not"
        )
    ids = list(answer)
    if strange := sorted({str(picture) for picture in ids} - set(manifest["id"].astype(str))):
        raise ValueError(f"readiness: {name} returned {strange[0][:80]!r}, which is no id of the manifest")
    return manifest["id"].isin(ids).to_numpy()


def _import_function(name: str) -> Callable[[pd.DataFrame], Any]:
    """A function by ``module:function``; a module in the working folder is found, too."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"readiness: {name} cannot be imported: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"readiness: {name} is no function")
    return found


def _code_of(name: str) -> str:
    """Digest of the module that a function is in: other code, another validation."""
    module = inspect.getmodule(_import_function(name))
    try:
        return durable.digest_bytes(inspect.getsource(module).encode())[:16] if module else ""
    except (OSError, TypeError):
        return ""


def _inspections_of(
    ids: "pd.Series[str]",
    store: PictureStore,
    settings: Settings,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Inspection]:
    """What is known of the pictures; what is no id has none."""
    asked = [picture for picture in ids.unique() if isinstance(picture, str) and _ID.fullmatch(picture)]
    with Inspections(settings) as inspections:
        return inspections.of(asked, store, on_progress)


def _with_signals_of_files(manifest: pd.DataFrame, pictures: Mapping[str, Inspection]) -> pd.DataFrame:
    """With the opt-outs that lie in the files themselves, where the record tells of none."""
    signals = {picture: found.opt_out for picture, found in pictures.items()}
    inside = manifest["id"].map(signals).fillna("")
    return manifest.assign(opt_out=manifest["opt_out"].where(manifest["opt_out"].fillna("") != "", inside))


# --- the decision ---------------------------------------------------------------------------------------------------


def _find_faults(
    manifest: pd.DataFrame,
    claims: Sequence[Claim],
    results: Sequence[ExpectationResult],
    pictures: Mapping[str, Inspection],
) -> list[list[Fault]]:
    """The faults of each record, in the manifest's order; an empty list for a good one."""
    faults: list[list[Fault]] = [[] for _ in range(len(manifest))]
    value: Any = manifest.at
    for claim, result in zip(claims, results, strict=True):
        expectation = claim.expectation
        # A caption given twice to one picture is a duplicate, and of duplicates the first one stays: see below.
        if expectation.severity == "critical" and expectation.fault and expectation.name != "records_are_distinct":
            for row in result.unexpected_rows:
                reason = expectation.fault + _detail(manifest, row, expectation.column)
                faults[row].append(Fault(expectation.fault, reason))

    # A picture whose size could not be read is recorded as 0 × 0: it is told as damaged, not as too small.
    looked_at = [row for row, found in enumerate(faults) if not found or value[row, "width"] == 0]
    for row in looked_at:
        picture = pictures.get(value[row, "id"])
        if picture is None:
            continue
        recorded = (value[row, "width"], value[row, "height"])
        if picture.fault and picture.fault != "too long":  # how long is too long, a claim says
            others = [fault for fault in faults[row] if recorded != (0, 0) or fault.kind not in _OF_SIZE]
            faults[row] = [Fault(picture.fault, picture.reason), *others]
        elif not faults[row] and (picture.width, picture.height) != recorded:
            faults[row].append(
                Fault(
                    "size differs from the record",
                    f"size differs from the record: {picture.width} × {picture.height} pixels, "
                    f"recorded as {recorded[0]} × {recorded[1]}",
                )
            )

    # The earliest arrival stays, so that a picture keeps its caption (and with it its split) when more data comes; in
    # one batch the concept itself goes before its variants, and of captions the source's decide, not the corrected.
    first: dict[str, str] = {}
    sound = [row for row, found in enumerate(faults) if not found]
    order = manifest.iloc[sound].assign(said=records.original_captions(manifest.iloc[sound]))
    for row in order.sort_values(["added_at", "variant", "said"], kind="stable").index:
        picture_id, caption = value[row, "id"], value[row, "caption"]
        if picture_id in first:
            faults[row].append(Fault("duplicate", f"duplicate of {picture_id[:12]}, kept as “{first[picture_id]}”"))
        else:
            first[picture_id] = caption
    return faults


_OF_SIZE = ("picture too narrow", "picture too low", "too long")


def _detail(manifest: pd.DataFrame, row: int, column: str) -> str:
    if not column:
        return ""
    if column == ASPECT:
        return f": {manifest.at[row, 'width']} × {manifest.at[row, 'height']} pixels"
    return f": {manifest.at[row, column]}"


def _check_most_are_usable(total: int, kept: int) -> dict[str, Any]:
    return {
        "name": MOST_RECORDS_ARE_USABLE.name,
        "severity": MOST_RECORDS_ARE_USABLE.severity,
        "passed": kept > 0 and total - kept <= MAX_QUARANTINED_SHARE * total,
        "unexpected_count": total - kept,
        "ids": [],
        "sample": [],
        "observed": (total - kept) / total if total else None,
        "off": "",
    }


def _check_own(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All claims of the team's own as one check: critical when a critical one fails, or none does."""
    failed = [check for check in own if not check["passed"]]
    only_warnings = failed and all(check["severity"] == "warning" for check in failed)
    return {
        "name": OWN_EXPECTATIONS_HOLD.name,
        "severity": "warning" if only_warnings else "critical",
        "passed": not failed,
        "unexpected_count": sum(check["unexpected_count"] for check in failed),
        "ids": list(dict.fromkeys(picture for check in failed for picture in check["ids"]))[:IDS_SHOWN],
        "sample": [check["name"] for check in failed],
        "observed": None,
        "claims": [{name: check[name] for name in _OWN_TOLD} for check in own],
        "off": "" if own else "readiness.expectations and readiness.functions are empty",
    }


def _describe(claim: Claim, result: ExpectationResult, frame: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    rows = list(result.unexpected_rows[:IDS_SHOWN])
    sample = result.sample
    if claim.rule and "caption" in claim.rule.columns:  # these are read by more people than the manifest is
        sample = [masked_caption(value, settings.captions) if isinstance(value, str) else value for value in sample]
    return {
        **_told(result),
        "unexpected_count": result.unexpected_count,
        "ids": [str(picture) for picture in frame["id"].iloc[rows]],
        "sample": sample,
        "observed": result.observed,
        "off": result.off,
    }


def _told(result: ExpectationResult) -> dict[str, Any]:
    return {"name": result.name, "severity": result.severity, "passed": result.success}


def _count_what_never_came(intake: Intake | None, came: int) -> dict[str, Any]:
    """Counts with which everything that was seen adds up."""
    refused = intake.refused if intake else pd.DataFrame({"source": [], "reason": [], "count": []})
    single = refused[refused["count"].notna()]
    by_reason = single.groupby("reason")["count"].sum().sort_values(ascending=False, kind="stable")
    count, doubles = int(single["count"].sum()), intake.doubles if intake else 0
    return {
        "seen": came + count + doubles,
        "refused": count,
        "doubles": doubles,
        "refused_by_reason": {str(name): int(number) for name, number in by_reason.head(_REFUSALS_SHOWN).items()},
        "refused_sources": sorted(refused.loc[refused["count"].isna(), "source"].astype(str)),
    }


def _without_rows(result: ExpectationResult) -> dict[str, Any]:
    """A result as JSON; which rows broke it is told by the table of unexpected records."""
    return {name: value for name, value in asdict(result).items() if name != "unexpected_rows"}
