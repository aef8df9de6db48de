"""Drift: do people ask for other things, or does the model draw other things, than when it was evaluated?

Belongs here: the comparison of current requests with the reference, the verdict (yes, no or unknown) and its report.
The only module that knows Evidently. Where the columns come from is ``inference_log`` and the evaluation; what follows
from a yes is ``retraining``.

The method is the same for every sample size. Evidently runs a two-sample Kolmogorov–Smirnov test on each column: it
allows for the number of rows itself, where a distance with a fixed threshold (Wasserstein, PSI) calls 50 rows drifted
by chance alone. Prompts are compared by their meaning: MiniLM embeddings, projected to the principal axes of *both*
samples together. Axes fitted to the reference alone fit its own noise, and new prompts from the same people then look
drifted: of the columns tested at 1 %, 12 % were false alarms (128 reference prompts against 500), 1.0 % with common
axes. Swapping the two samples leaves common axes as they are, which is why the test stays exact.
"""

import html
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.evaluation.features import TextFeatures
from genai_assets.monitoring.inference_log import (
    PICTURE_DESCRIPTORS,
    PROMPT_DESCRIPTORS,
    describe_prompts,
    plain_prompt,
)
from genai_assets.settings import MonitoringSettings

Verdict = Literal["yes", "no", "unknown"]

COLUMN_SIGNIFICANCE = 0.01
"""A column has drifted when its p-value is not above this."""

GROUP_SIGNIFICANCE = 0.001
"""A whole group has drifted when its smallest p-value, times its columns (Bonferroni), is not above this."""

PROMPT_AXES = 8
"""Principal axes of the prompts' embeddings that are compared."""

_METHOD = "ks"
_PROMPTS, _PICTURES = "prompts", "pictures"
_DECIDING = (_PROMPTS, _PICTURES)
_LATENCY = "latency"
_RANDOM_ID = re.compile(r"metric_[0-9a-f]{32}|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


@dataclass(frozen=True)
class ColumnDrift:
    """One compared column.

    Attributes:
        column: its name.
        group: ``prompts`` (meaning), ``prompt form``, ``pictures`` (content), ``picture look`` or ``latency``.
        p_value: of the Kolmogorov–Smirnov test, 0–1; how often chance alone parts two such samples as far.
        drifted: whether ``p_value`` is at most :data:`COLUMN_SIGNIFICANCE`.
    """

    column: str
    group: str
    p_value: float
    drifted: bool


@dataclass(frozen=True)
class DriftResult:
    """The verdict and what it rests on.

    Attributes:
        verdict: ``"yes"``, ``"no"`` or ``"unknown"`` (too little to judge by, which is never a no).
        reason: why, in a sentence.
        share: share of drifted columns, 0–1, latency left out; None when nothing was compared.
        latency_drifted: whether answers take another time; None when it was not compared. Never part of the verdict.
        columns: every compared column.
        not_compared: column or group to the reason why it was left out.
        reference_prompts, current_prompts: distinct prompts on each side.
        current_requests: rows on the current side.
    """

    verdict: Verdict
    reason: str
    share: float | None = None
    latency_drifted: bool | None = None
    columns: tuple[ColumnDrift, ...] = ()
    not_compared: dict[str, str] = field(default_factory=dict)
    reference_prompts: int = 0
    current_prompts: int = 0
    current_requests: int = 0

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON values, as written to ``drift.json``."""
        return asdict(self) | {
            "columns": [asdict(column) for column in self.columns],
            "method": "two-sample Kolmogorov-Smirnov",
            "column_significance": COLUMN_SIGNIFICANCE,
            "group_significance": GROUP_SIGNIFICANCE,
        }


def detect_drift(
    reference: pd.DataFrame | None,
    current: pd.DataFrame,
    settings: MonitoringSettings,
    out: Path,
    *,
    text_features: TextFeatures | None = None,
) -> DriftResult:
    """Compare current requests with the reference; write ``out/drift.html`` and ``out/drift.json``.

    Each distinct prompt counts once, by its newest row: a person who presses the button ten times says one thing, and
    ten equal rows are not ten observations.

    The verdict is *yes* when a whole group that decides (the prompts' meaning or the pictures' content) has drifted by
    :data:`GROUP_SIGNIFICANCE`, or when at least ``settings.drift_share`` of all columns but latency have drifted by
    :data:`COLUMN_SIGNIFICANCE`. It is *unknown* with fewer than ``settings.min_requests`` distinct prompts on either
    side, or when no group says yes and one of the deciding groups could not be compared. Otherwise *no*.
    Latency is compared and reported, but a slow machine is no reason to train.

    Measured with emoji names and Fluent pictures, a reference of 64 or 128 and 50 to 500 current prompts: of 1,200
    reports on samples of one population, one was a yes. Animals against everything else were always a yes, from 50
    prompts on; traffic of which half had moved to animals was one in about half of the reports with 50 prompts and in
    19 of 20 with 100, and nearly a third in 8 of 10 with 500. The window bounds how small a shift can count: with 500
    requests, distributions that are nowhere further apart than 0.1 never do.

    Args:
        reference: what was measured when the model was evaluated: ``prompt`` (as typed), ``latency_ms``,
            ``brightness``, ``saturation``, ``contrast``, ``pic_0`` … ``pic_k``; any but ``prompt`` may be missing or
            partly NaN. None when there is none.
        current: the same columns of the inference log, in the order they came.
        settings: sizes and thresholds.
        out: folder for the report.
        text_features: embedder of prompts; MiniLM by default.
    """
    sides = {"reference": _distinct(reference), "current": _distinct(current)}
    counts = {
        "reference_prompts": len(sides["reference"]),
        "current_prompts": len(sides["current"]),
        "current_requests": len(current),
    }
    report = ""
    lacking = _too_little(reference, current, counts, settings.min_requests)
    if lacking:
        result = DriftResult("unknown", lacking)
    else:
        tables, groups = _tables(sides["reference"], sides["current"], text_features or TextFeatures())
        usable, not_compared = _usable(tables, groups, settings.min_requests)
        p_values, report = _run_evidently(tables, [name for names in usable.values() for name in names])
        columns = tuple(
            ColumnDrift(name, group, p_values[name], p_values[name] <= COLUMN_SIGNIFICANCE)
            for group, names in usable.items()
            for name in names
        )
        result = _judge(columns, not_compared, settings.drift_share)
    result = replace(result, **counts)
    out.mkdir(parents=True, exist_ok=True)
    durable.write_text(out / "drift.html", _page(result, report))
    durable.write_json(out / "drift.json", result.summary())
    return result


def _distinct(frame: pd.DataFrame | None) -> pd.DataFrame:
    """One row a distinct prompt, the newest; rows without a prompt are left out."""
    if frame is None or "prompt" not in frame:
        return pd.DataFrame({"prompt": pd.Series(dtype=object)})
    named = frame.loc[frame["prompt"].notna()]
    keys = pd.Series([plain_prompt(str(prompt)) for prompt in named["prompt"]], index=named.index)
    return named.loc[~keys.duplicated(keep="last")].reset_index(drop=True)


def _too_little(
    reference: pd.DataFrame | None, current: pd.DataFrame, counts: dict[str, int], required: int
) -> str | None:
    if reference is None or reference.empty:
        return "there is no reference to compare with: evaluate a model first"
    if "prompt" not in reference or (len(current) and "prompt" not in current):
        return "prompts are not recorded on both sides, so nothing can be compared"
    if counts["reference_prompts"] < required:
        return f"the reference has {counts['reference_prompts']} distinct prompts, {required} are needed"
    if counts["current_prompts"] < required:
        return (
            f"{counts['current_requests']} requests with {counts['current_prompts']} distinct prompts so far, "
            f"{required} distinct ones are needed"
        )
    return None


def _tables(
    reference: pd.DataFrame, current: pd.DataFrame, features: TextFeatures
) -> tuple[tuple[pd.DataFrame, pd.DataFrame], dict[str, list[str]]]:
    """The columns to compare of both sides, and their names by group. A column one side lacks is NaN there."""
    prompts = [[str(prompt) for prompt in side["prompt"]] for side in (reference, current)]
    axes = _prompt_axes(features.extract(prompts[0]), features.extract(prompts[1]))
    pictures = sorted(
        {name for side in (reference, current) for name in side.columns if re.fullmatch(r"pic_\d+", name)},
        key=lambda name: int(name.removeprefix("pic_")),
    )
    groups = {
        _PROMPTS: list(axes[0].columns),
        "prompt form": list(PROMPT_DESCRIPTORS),
        _PICTURES: pictures,
        "picture look": list(PICTURE_DESCRIPTORS),
        _LATENCY: ["latency_ms"],
    }
    measured = [*pictures, *PICTURE_DESCRIPTORS, "latency_ms"]
    whole = [
        pd.concat([meaning, describe_prompts(texts), _numeric(side, measured)], axis=1)
        for side, texts, meaning in zip((reference, current), prompts, axes, strict=True)
    ]
    return (whole[0], whole[1]), groups


def _prompt_axes(reference: np.ndarray, current: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both sides on the principal axes of both together, [N, D] to columns ``prompt_axis_0`` …; signs do not matter."""
    both = np.concatenate([reference, current]).astype(np.float64)
    centred = both - both.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:PROMPT_AXES]
    placed = pd.DataFrame(centred @ axes.T, columns=pd.Index([f"prompt_axis_{number}" for number in range(len(axes))]))
    return placed.iloc[: len(reference)], placed.iloc[len(reference) :].reset_index(drop=True)


def _numeric(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") if name in frame else np.nan for name in names}
    return pd.DataFrame(numbers, index=frame.index, dtype="float64").replace([np.inf, -np.inf], np.nan)


def _usable(
    tables: tuple[pd.DataFrame, pd.DataFrame], groups: dict[str, list[str]], required: int
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Columns with values enough on both sides, by group; and the others with the reason."""
    usable: dict[str, list[str]] = {}
    not_compared: dict[str, str] = {}
    for group, names in groups.items():
        usable[group] = []
        for name in names:
            values = [int(table[name].notna().sum()) for table in tables]
            if min(values) >= required:
                usable[group].append(name)
            else:
                not_compared[name] = f"{values[0]} reference and {values[1]} current values, {required} are needed"
        if not names:
            not_compared[group] = "neither side has such columns"
    return usable, not_compared


def _run_evidently(tables: tuple[pd.DataFrame, pd.DataFrame], columns: Sequence[str]) -> tuple[dict[str, float], str]:
    """P-value of every column, and Evidently's report as a whole HTML page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it meets what newer NumPy and Python discourage
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

    definition = DataDefinition(numerical_columns=list(columns))
    reference, current = (
        Dataset.from_pandas(table.loc[:, list(columns)], data_definition=definition) for table in tables
    )
    metrics = [ValueDrift(column=name, method=_METHOD, threshold=COLUMN_SIGNIFICANCE) for name in columns]
    snapshot = Report(metrics, include_tests=False).run(current, reference)  # current first
    p_values = {
        str(metric["config"]["column"]): float(metric["value"])  # a value for each column, in no promised order
        for metric in snapshot.dict()["metrics"]
    }
    return p_values, _with_fixed_ids(snapshot.get_html_str(as_iframe=False))


def _with_fixed_ids(page: str) -> str:
    """The page with its random element ids numbered, so that equal data give an equal file."""
    head = page.partition("<body>")[0]  # the data; behind it are the libraries, and one more mention of an id
    numbers = {found: f"element_{number}" for number, found in enumerate(dict.fromkeys(_RANDOM_ID.findall(head)))}
    return _RANDOM_ID.sub(lambda found: numbers.get(found[0], found[0]), page)


def _judge(columns: tuple[ColumnDrift, ...], not_compared: dict[str, str], drift_share: float) -> DriftResult:
    counted = [column for column in columns if column.group != _LATENCY]
    latency = [column.drifted for column in columns if column.group == _LATENCY]
    share = float(np.mean([column.drifted for column in counted])) if counted else None
    by_group = {group: [column for column in columns if column.group == group] for group in _DECIDING}
    moved = [group for group, members in by_group.items() if members and _whole_group_drifted(members)]
    unjudged = [group for group, members in by_group.items() if not members]
    if moved:
        verdict, reason = "yes", f"the {' and the '.join(moved)} differ from the reference"
    elif share is not None and share >= drift_share:
        verdict, reason = (
            "yes",
            f"{share:.0%} of the columns differ from the reference ({drift_share:.0%} is the limit)",
        )
    elif unjudged:
        verdict, reason = "unknown", f"nothing seen in what was compared, but the {' and the '.join(unjudged)} were not"
    else:
        verdict, reason = (
            "no",
            f"{share:.0%} of the columns differ ({drift_share:.0%} is the limit), no group as a whole",
        )
    return DriftResult(verdict, reason, share, latency[0] if latency else None, columns, not_compared)


def _whole_group_drifted(columns: Sequence[ColumnDrift]) -> bool:
    return min(column.p_value for column in columns) * len(columns) <= GROUP_SIGNIFICANCE


def _page(result: DriftResult, report: str) -> str:
    """The verdict and its table, in front of Evidently's page when there is one."""
    rows = "".join(
        f"<tr><td>{html.escape(column.column)}</td><td>{html.escape(column.group)}</td>"
        f"<td>{column.p_value:.2g}</td><td>{'drifted' if column.drifted else ''}</td></tr>"
        for column in result.columns
    )
    left_out = "".join(
        f"<tr><td>{html.escape(name)}</td><td colspan=3>not compared: {html.escape(reason)}</td></tr>"
        for name, reason in result.not_compared.items()
    )
    table = f"<table><tr><th>column<th>group<th>p-value<th></tr>{rows}{left_out}</table>" if rows or left_out else ""
    verdict = (
        '<section style="font-family: sans-serif; max-width: 60em; margin: 2em auto">'
        f"<h1>Drift: {result.verdict}</h1><p>{html.escape(result.reason)}</p>"
        f"<p>{result.current_requests} requests with {result.current_prompts} distinct prompts, compared with "
        f"{result.reference_prompts} of the reference.</p>{table}</section>"
    )
    if report:
        return report.replace("<body>", f"<body>{verdict}", 1)
    head = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>Drift</title></head>'
    return f"{head}<body>{verdict}</body></html>\n"
