"""The expectation suite: what a manifest of records must be like before anything is trained on it.

Belongs here: the claims (a stable list, so that checks can be declared from it without running anything), a team's own
claims beside them, the Great Expectations suite that tests them, and its Data Docs. This is the only module that knows
Great Expectations. What a rule means is ``table_rules``, which tests tables of any size; what is done with a record
that breaks a claim is decided in ``validation``.

Both engines test the same rules: ``table_rules`` decides, Great Expectations documents. It looks at the whole manifest
while that is small, and at a sample (with every kind of broken record in it) when it is not; the Data Docs say which.
"""

import html
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from genai_assets import durable, privacy
from genai_assets.datasets import table_rules
from genai_assets.datasets.licences import LicencePolicy
from genai_assets.datasets.records import COLUMNS
from genai_assets.datasets.table_rules import ASPECT, Rule, Verdict
from genai_assets.settings import OwnExpectation, Settings

Severity = Literal["critical", "warning"]

WHOLE_UP_TO = 20_000
"""Records that Great Expectations looks at one by one; of a larger manifest it is shown a sample."""

SAMPLED = 2_000
"""Records of that sample."""

_BROKEN_SHOWN = 20  # of each broken claim, added to the sample: a claim that fails must fail there, too
_SAMPLE_KEY = "genai-data-docs-"  # sixteen characters, as the hash wants them
_RECORDS, _TABLE = "records", "table"
_ASSETS = {_RECORDS: "manifest", _TABLE: "figures of the manifest"}
_SITE = "local_site"
_SAMPLE_SIZE = table_rules.SAMPLE_SIZE


@dataclass(frozen=True)
class Expectation:
    """A claim about a manifest that can fail.

    Attributes:
        name: the claim; stable, fit for a check's name.
        severity: a record that breaks a critical claim cannot be used; one that breaks a warning can.
        description: what is claimed, in a sentence.
        fault: what is said of a record that breaks it; empty when the claim is about the table and not its records.
        column: the column whose value shows the fault.
    """

    name: str
    severity: Severity
    description: str
    fault: str = ""
    column: str = ""


def found_by(claim: str) -> str:
    """The measured column of a claim that only Python can test: what is wrong with a record, or nothing."""
    return f"found_by_{claim}"


NEAR_DUPLICATE = "nearly_like_another"
"""Measured column: whether a picture looks nearly like one that stands for it; missing where that is not asked."""

CAPTION_PROBLEMS: dict[str, tuple[str, ...]] = {
    "captions_are_readable": ("mojibake",),
    "captions_say_something": ("boilerplate",),
    "captions_have_enough_words": ("too short",),
    "captions_have_few_enough_words": ("too long",),
    "captions_are_in_the_language": ("language",),
    "captions_hold_no_addresses": ("e-mail address", "telephone number"),
    "captions_hold_no_secrets": ("secret",),
}
"""Claim to the kinds of ``caption_quality.Problem`` that break it."""


EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation("manifest_has_records", "critical", "There are at least as many records as asked for."),
    Expectation("manifest_has_the_columns_of_a_record", "critical", "The columns are exactly those of a record."),
    Expectation("ids_are_present", "critical", "Every record has an id.", "no id"),
    Expectation("ids_are_content_hashes", "critical", "Every id is a SHA-256.", "id is no SHA-256", "id"),
    Expectation(
        "records_are_distinct", "critical", "No picture has the same caption twice.", "same picture and caption twice"
    ),
    Expectation("captions_are_present", "critical", "Every record has a caption that is not blank.", "no caption"),
    Expectation("captions_are_short_enough", "critical", "No caption exceeds the allowed length.", "caption too long"),
    Expectation("concepts_are_present", "critical", "Every record names its concept.", "no concept"),
    Expectation("styles_are_present", "critical", "Every record names its style.", "no style"),
    Expectation("licences_are_present", "critical", "Every record states its licence.", "no licence"),
    Expectation(
        "licences_are_allowed", "critical", "Every licence is one the team allows.", "licence not allowed", "licence"
    ),
    Expectation("opt_outs_are_honoured", "critical", "No picture's maker reserves it.", "opted out", "opt_out"),
    Expectation("widths_are_large_enough", "critical", "No picture is too narrow.", "picture too narrow", "width"),
    Expectation("heights_are_large_enough", "critical", "No picture is too low.", "picture too low", "height"),
    Expectation("aspects_are_moderate", "critical", "No picture is too long for its breadth.", "too long", ASPECT),
    Expectation("sources_are_present", "warning", "Every record says where it came from.", "no source"),
    Expectation("captions_are_readable", "warning", "No caption's letters were garbled.", "garbled caption"),
    Expectation("captions_say_something", "warning", "No caption is a file name or the like.", "caption says nothing"),
    Expectation("captions_have_enough_words", "warning", "No caption is too short.", "caption too short"),
    Expectation("captions_have_few_enough_words", "warning", "No caption has too many words.", "caption too wordy"),
    Expectation("captions_are_in_the_language", "warning", "Captions are in an asked language.", "other language"),
    Expectation(
        "captions_hold_no_addresses", "warning", "No caption holds an e-mail address or telephone number.", "address"
    ),
    Expectation("captions_hold_no_secrets", "warning", "No caption holds a key, token or password.", "secret"),
    Expectation("near_duplicates_are_few", "warning", "Few pictures look nearly like another one."),
    Expectation("categories_are_balanced", "warning", "No category is far rarer than the most common one."),
    Expectation("no_source_dominates", "warning", "Of several sources, none gives nearly all records."),
    Expectation("synthetic_records_are_few", "warning", "Not too many records were drawn by a model."),
    Expectation("records_are_fresh", "warning", "The newest record is not too old."),
)


@dataclass(frozen=True)
class Claim:
    """An expectation under these settings.

    Attributes:
        expectation: what is claimed.
        rule: what must hold of which columns; None when the claim is off.
        off: why it is off, and how it is turned on.
        own: whether it is one of the team's own.
    """

    expectation: Expectation
    rule: Rule | None
    off: str = ""
    own: bool = False

    @property
    def name(self) -> str:
        """Of the expectation."""
        return self.expectation.name


def claims_of(settings: Settings, *, today: datetime | None = None, licences: Iterable[str] = ()) -> tuple[Claim, ...]:
    """Every claim under these settings: those of :data:`EXPECTATIONS` in their order, then the team's own.

    Args:
        settings: thresholds of ``dataset`` and ``readiness``, and the team's own expectations.
        today: from when freshness counts; without it that claim is off.
        licences: as the records state them: spellings and expressions that the policy allows are allowed here, too.

    Raises:
        ValueError: an expectation of the team's own has a pattern that cannot be used.
    """
    rules, limits = settings.dataset, settings.readiness
    policy = LicencePolicy(rules.allowed_licences)
    allowed = {*rules.allowed_licences, *(stated for stated in licences if policy.refusal(stated) is None)}
    bound: dict[str, Rule | str] = {
        "manifest_has_records": Rule("row_count", low=limits.min_records),
        "manifest_has_the_columns_of_a_record": Rule("columns", (*COLUMNS, *measured_columns(settings))),
        "ids_are_present": Rule("not_null", ("id",)),
        "ids_are_content_hashes": Rule("matches", ("id",), pattern=r"^[0-9a-f]{64}$"),
        "records_are_distinct": Rule("unique", ("id", "caption")),
        "captions_are_present": Rule("not_null", ("caption",)),
        "captions_are_short_enough": Rule("length_between", ("caption",), low=1, high=rules.max_caption_length),
        "concepts_are_present": Rule("not_null", ("concept",)),
        "styles_are_present": Rule("not_null", ("style",)),
        "licences_are_present": Rule("not_null", ("licence",)),
        "licences_are_allowed": Rule("in_set", ("licence",), values=tuple(sorted(allowed)), fold_case=True),
        "opt_outs_are_honoured": (
            Rule("null", ("opt_out",)) if settings.governance.honour_opt_outs else "governance.honour_opt_outs is false"
        ),
        "widths_are_large_enough": Rule("between", ("width",), low=rules.min_side),
        "heights_are_large_enough": Rule("between", ("height",), low=rules.min_side),
        "aspects_are_moderate": Rule("between", (ASPECT,), high=limits.max_aspect),
        "sources_are_present": Rule("not_null", ("source",)),
        **{name: Rule("null", (found_by(name),)) for name in CAPTION_PROBLEMS},
        "near_duplicates_are_few": Rule(
            "max_share", (NEAR_DUPLICATE,), high=limits.max_near_duplicate_share, values=(True,)
        ),
        "categories_are_balanced": Rule("balance", ("category",), high=limits.max_class_imbalance),
        "no_source_dominates": Rule("max_share", ("source",), high=limits.max_source_share, several=True),
        "synthetic_records_are_few": Rule("max_share", ("synthetic",), high=limits.max_synthetic_share, values=(True,)),
        "records_are_fresh": (
            Rule("newest", ("added_at",), low=today - timedelta(days=limits.max_age_days))
            if limits.max_age_days and today
            else "readiness.max_age_days is not set"
        ),
    }
    built_in = (
        Claim(expectation, None, off=rule) if isinstance(rule, str) else Claim(expectation, rule)
        for expectation, rule in ((expectation, bound[expectation.name]) for expectation in EXPECTATIONS)
    )
    own = tuple(_own_claim(stated) for stated in limits.own)
    known = {expectation.name for expectation in EXPECTATIONS}
    if taken := [claim.name for claim in own if claim.name in known]:
        raise ValueError(f"readiness.expectations: {', '.join(taken)} is a built-in claim; give yours another name")
    return (*built_in, *own)


def measured_columns(settings: Settings) -> tuple[str, ...]:
    """Columns that are measured for the suite beside those of a record."""
    own = (stated.claim for stated in settings.readiness.own if stated.function)
    return (*(found_by(name) for name in (*CAPTION_PROBLEMS, *own)), NEAR_DUPLICATE)


def _own_claim(stated: OwnExpectation) -> Claim:
    column = found_by(stated.claim) if stated.function else stated.column or ""
    rule = Rule("null", (column,))
    match stated.rule:
        case "between":
            low, high = stated.between or (None, None)
            rule = Rule("between", (column,), low=low, high=high)
        case "in_set" | "not_in_set" as kind:
            rule = Rule(kind, (column,), values=stated.in_set or stated.not_in_set or ())
        case "matches" | "matches_not" as kind:
            rule = Rule(kind, (column,), pattern=stated.matches or stated.matches_not or "")
            if fault := table_rules.pattern_fault(rule.pattern):
                raise ValueError(f"readiness.expectations: {stated.claim}: {fault}; write a Python function instead")
        case "max_share":
            rule = Rule("max_share", (column,), high=stated.max_share)
        case "not_null" | "unique" as kind:
            rule = Rule(kind, (column,))
    says = stated.description or f"{stated.claim.replace('_', ' ')}."
    fault = f"{stated.claim} does not hold" if rule.about_rows else ""
    shown = "" if stated.rule in ("not_null", "unique") else column
    return Claim(Expectation(stated.claim, stated.severity, says, fault, shown), rule, own=True)


@dataclass(frozen=True)
class ExpectationResult:
    """How one claim fared.

    Attributes:
        name: of the :class:`Expectation`.
        severity: of the expectation.
        success: whether the claim held; true for one that is off.
        unexpected_count: records that break it; for a claim about the table, 1 when it is broken.
        unexpected_percent: share of the records looked at (missing values are not), 0–100.
        sample: up to five unexpected values as JSON values, or why the claim could not be tested.
        unexpected_rows: positions in the frame of the records that break it, ascending.
        observed: the figure of a claim about the table.
        off: why the claim was not tested; empty when it was.
    """

    name: str
    severity: Severity
    success: bool
    unexpected_count: int
    unexpected_percent: float
    sample: list[Any]
    unexpected_rows: tuple[int, ...] = ()
    observed: Any = None
    off: str = ""


@dataclass(frozen=True)
class ValidationOutcome:
    """How a manifest fared against the whole suite in Great Expectations.

    Attributes:
        success: whether every claim held, warnings too.
        results: one for each claim, in their order.
        data_docs: the Data Docs' ``index.html``.
        looked_at: which records Great Expectations was shown, in words.
    """

    success: bool
    results: tuple[ExpectationResult, ...]
    data_docs: Path
    looked_at: str = ""


def judge_claims(
    table: Path | pd.DataFrame, claims: Iterable[Claim], *, unexpected: Path | None = None
) -> tuple[ExpectationResult, ...]:
    """Test every claim in one pass over a table of any size; one result for each claim, in their order.

    Args:
        table: a manifest with its measured columns, as Parquet or frame.
        claims: as of :func:`claims_of`.
        unexpected: a Parquet file to list every unexpected record in, see :func:`table_rules.evaluate`.
    """
    claims = list(claims)
    asked = {claim.name: claim.rule for claim in claims if claim.rule}
    verdicts = table_rules.evaluate(table, asked, unexpected=unexpected)
    return tuple(_result_of(claim, verdicts.get(claim.name)) for claim in claims)


def _result_of(claim: Claim, verdict: Verdict | None) -> ExpectationResult:
    name, severity = claim.name, claim.expectation.severity
    if verdict is None:
        return ExpectationResult(name, severity, True, 0, 0.0, [], off=claim.off)
    percent = 100 * verdict.unexpected_count / verdict.looked_at if len(verdict.rows) else 0.0
    return ExpectationResult(
        name=name,
        severity=severity,
        success=verdict.success,
        unexpected_count=verdict.unexpected_count,
        unexpected_percent=percent,
        sample=[_plain(value) for value in verdict.sample],
        unexpected_rows=tuple(verdict.rows.tolist()),
        observed=_plain(verdict.observed),
    )


def run_suite(
    frame: pd.DataFrame,
    claims: Iterable[Claim],
    settings: Settings,
    *,
    run_name: str,
    results: Iterable[ExpectationResult] | None = None,
) -> ValidationOutcome:
    """Test every claim in Great Expectations, and add the outcome to the Data Docs.

    Text that is blank counts as missing. The Great Expectations context lies below
    ``settings.paths.great_expectations`` and keeps the outcome of every run.

    Args:
        frame: a manifest with its measured columns, good or bad.
        claims: as of :func:`claims_of`.
        settings: where the Data Docs lie.
        run_name: what this run is called in the Data Docs, for example ``"raw_manifest"``.
        results: what :func:`judge_claims` found on the whole frame. With them, a frame of more than
            :data:`WHOLE_UP_TO` records is documented by a sample, which holds records of every broken claim, and by
            the figures found. Without them Great Expectations looks at everything, however long it takes.
    """
    claims = list(claims)
    asked = [claim for claim in claims if claim.rule]
    whole = results is None or len(frame) <= WHOLE_UP_TO
    if whole:
        shown, figures, positions = frame, _figures_of(frame, asked), np.arange(len(frame))
        looked_at = f"all {len(frame):,} records"
    else:
        found = {result.name: result for result in results or ()}
        positions = _sampled_rows(frame, asked, found)
        shown = frame.iloc[positions]
        figures = {claim.name: _as_number(found[claim.name].observed) for claim in asked if _by_figure(claim)}
        looked_at = (
            f"{len(shown):,} of {len(frame):,} records: a sample drawn by a keyed hash, and some records of every "
            "broken claim. The figures of the table, and the verdicts, are of all records."
        )
    root = settings.paths.great_expectations
    root.mkdir(parents=True, exist_ok=True)
    by_name = _run_great_expectations(shown, figures, asked, run_name, looked_at, root=root)
    site = root / "gx" / "uncommitted" / "data_docs" / _SITE
    _make_self_contained(site, validations=root / "gx" / "uncommitted" / "validations")
    read = _read_results(claims, by_name, positions)
    return ValidationOutcome(all(result.success for result in read), read, site / "index.html", looked_at)


def ask_great_expectations(frame: pd.DataFrame, claims: Iterable[Claim]) -> tuple[ExpectationResult, ...]:
    """What Great Expectations says of a whole frame, however long it takes; nothing is written, no Data Docs.

    The graph does not use it: it is what :func:`judge_claims` is held against.
    """
    claims = list(claims)
    asked = [claim for claim in claims if claim.rule]
    by_name = _run_great_expectations(frame, _figures_of(frame, asked), asked, "asked", "")
    return _read_results(claims, by_name, np.arange(len(frame)))


def _run_great_expectations(
    frame: pd.DataFrame,
    figures: Mapping[str, float | None],
    claims: list[Claim],
    run_name: str,
    looked_at: str,
    *,
    root: Path | None = None,
) -> dict[str, Any]:
    """Claim to its result. Claims about records and those about the table are two suites over two tables.

    With ``root``, outcome and Data Docs are kept in the context there.
    """
    privacy.turn_telemetry_off()
    frame = _blank_as_missing(_with_aspect(frame))
    tables = {_RECORDS: frame, _TABLE: pd.DataFrame([figures])}
    parts = {
        _RECORDS: [claim for claim in claims if not _by_figure(claim)],
        _TABLE: [claim for claim in claims if _by_figure(claim)],
    }
    by_name: dict[str, Any] = {}
    with _quiet():
        import great_expectations as gx
        from great_expectations.checkpoint.actions import UpdateDataDocsAction
        from great_expectations.core.run_identifier import RunIdentifier

        context: Any = (
            gx.get_context(mode="file", project_root_dir=str(root)) if root else gx.get_context(mode="ephemeral")
        )
        actions: list[Any] = [UpdateDataDocsAction(name="data_docs", site_names=[_SITE])] if root else []
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_or_update_pandas("genai_assets")
        for part, table in tables.items():
            batch = source.add_dataframe_asset(_ASSETS[part]).add_batch_definition_whole_dataframe("whole")
            expectations = [_in_their_terms(claim, table, looked_at) for claim in parts[part]]
            suite = context.suites.add_or_update(gx.ExpectationSuite(name=part, expectations=expectations))
            name = run_name if part == _RECORDS else f"{run_name}_{part}"
            definition = context.validation_definitions.add_or_update(
                gx.ValidationDefinition(name=name, data=batch, suite=suite)
            )
            checkpoint = context.checkpoints.add_or_update(
                gx.Checkpoint(
                    name=name,
                    validation_definitions=[definition],
                    actions=actions,
                    result_format={"result_format": "COMPLETE"},
                )
            )
            outcome = checkpoint.run(batch_parameters={"dataframe": table}, run_id=RunIdentifier(run_name=name))
            (validation,) = outcome.run_results.values()
            results: list[Any] = validation.results
            by_name |= {result.expectation_config.meta["claim"]: result for result in results}
    return by_name


def _in_their_terms(claim: Claim, table: pd.DataFrame, looked_at: str) -> Any:
    """A claim as an expectation of Great Expectations, marked with its name."""
    import great_expectations.expectations

    gxe: Any = great_expectations.expectations  # its documented names are not declared as exported
    rule, expectation = claim.rule, claim.expectation
    assert rule is not None
    told = {
        "severity": expectation.severity,
        "description": expectation.description,
        "meta": {"claim": claim.name, "looked_at": looked_at},
    }
    on = {"column": rule.column, **told}
    bounds = {"min_value": _bound(rule.low), "max_value": _bound(rule.high)}
    match rule.kind:
        case "not_null":
            return gxe.ExpectColumnValuesToNotBeNull(**on)
        case "null":
            return gxe.ExpectColumnValuesToBeNull(**on)
        case "unique" if len(rule.columns) > 1:
            return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(rule.columns), **told)
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(**on)
        case "between":
            return gxe.ExpectColumnValuesToBeBetween(**on, **bounds)
        case "length_between":
            return gxe.ExpectColumnValueLengthsToBeBetween(**on, **bounds)
        case "in_set":
            return gxe.ExpectColumnValuesToBeInSet(**on, value_set=_spelt_out(rule, table))
        case "not_in_set":
            return gxe.ExpectColumnValuesToNotBeInSet(**on, value_set=_spelt_out(rule, table))
        case "matches":
            return gxe.ExpectColumnValuesToMatchRegex(**on, regex=_python_pattern(rule.pattern))
        case "matches_not":
            return gxe.ExpectColumnValuesToNotMatchRegex(**on, regex=_python_pattern(rule.pattern))
        case "columns":
            columns = [*rule.columns, *({ASPECT} & set(table.columns))]
            return gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=True, **told)
        case _:
            return gxe.ExpectColumnMaxToBeBetween(**{**on, "column": claim.name}, **_figure_bounds(rule))


def _by_figure(claim: Claim) -> bool:
    """Whether a claim is about one figure of the table."""
    return claim.rule is not None and not claim.rule.about_rows and claim.rule.kind != "columns"


def _figures_of(frame: pd.DataFrame, claims: Iterable[Claim]) -> dict[str, float | None]:
    """The figures of claims about the table, computed by pandas; None where a column is missing."""
    figures: dict[str, float | None] = {}
    for claim in claims:
        rule = claim.rule
        if rule is None or not _by_figure(claim):
            continue
        if rule.kind == "row_count":
            figures[claim.name] = float(len(frame))
        elif rule.column not in frame:
            figures[claim.name] = None
        elif rule.kind == "newest":
            figures[claim.name] = None if frame.empty else _as_number(frame[rule.column].max())
        else:
            values = _blank_as_missing(frame[[rule.column]])[rule.column].dropna()
            figures[claim.name] = table_rules.share_figure(rule, values.value_counts().to_dict())
    return figures


def _figure_bounds(rule: Rule) -> dict[str, Any]:
    return {"min_value": _as_number(rule.low), "max_value": _as_number(rule.high)}


def _as_number(value: Any) -> float | None:
    """A figure as Great Expectations is shown it: times as seconds since 1970."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value


def _bound(value: Any) -> Any:
    """Great Expectations takes no infinity."""
    return None if isinstance(value, float) and np.isinf(value) else value


def _spelt_out(rule: Rule, table: pd.DataFrame) -> list[Any]:
    """The set of a rule; without regard to case, with every spelling that occurs."""
    if not rule.fold_case or rule.column not in table:
        return list(rule.values)
    allowed = {table_rules.folded(value) for value in rule.values}
    stated = {str(value) for value in table[rule.column].dropna()}
    return sorted({*rule.values, *(value for value in stated if table_rules.folded(value) in allowed)})


def _python_pattern(pattern: str) -> str:
    """A final ``$`` is the very end of the text, as it is for ``table_rules``, and not before a last line break."""
    return pattern[:-1] + r"\Z" if re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern) else pattern


def _sampled_rows(frame: pd.DataFrame, claims: Iterable[Claim], found: Mapping[str, ExpectationResult]) -> np.ndarray:
    """Positions of the records that stand for a large manifest, ascending; the same for the same manifest."""
    hashes = pd.util.hash_array(frame["id"].astype(str).to_numpy(object), hash_key=_SAMPLE_KEY)
    chosen = {int(row) for row in np.argsort(hashes, kind="stable")[:SAMPLED]}
    for claim in claims:
        rows = list(found[claim.name].unexpected_rows)
        if claim.rule and claim.rule.kind == "unique":  # repeated records side by side, so that one is not left alone
            columns = list(claim.rule.columns)
            rows = frame.iloc[rows].reset_index(drop=True).assign(row=rows).sort_values(columns)["row"].tolist()
        chosen.update(rows[:_BROKEN_SHOWN])
    return np.array(sorted(chosen))


def _with_aspect(frame: pd.DataFrame) -> pd.DataFrame:
    """With the column that ``table_rules`` derives by itself."""
    if ASPECT in frame or not {"width", "height"} <= set(frame.columns):
        return frame
    sides = frame[["width", "height"]].apply(pd.to_numeric, errors="coerce").astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = sides.max(axis=1, skipna=False).to_numpy() / sides.min(axis=1, skipna=False).to_numpy()
    return frame.assign(**{ASPECT: aspect})


def _blank_as_missing(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy, numbered from 0, whose blank texts are None: expectations on presence then see them."""
    frame = frame.reset_index(drop=True)
    for column in frame.columns:
        if frame[column].dtype == object and column != "keywords":
            texts = frame[column]
            frame[column] = texts.where(texts.notna() & (texts.astype(str).str.strip() != ""), None)
    return frame


def _read_results(
    claims: Iterable[Claim], by_name: Mapping[str, Any], positions: np.ndarray
) -> tuple[ExpectationResult, ...]:
    return tuple(
        _read_result(claim, by_name[claim.name], positions) if claim.rule else _result_of(claim, None)
        for claim in claims
    )


def _read_result(claim: Claim, result: Any, positions: np.ndarray) -> ExpectationResult:
    """Our own, plain form of one result of Great Expectations."""
    found: dict[str, Any] = result.result
    unexpected = found.get("partial_unexpected_list", [])
    if not result.success and not unexpected:
        unexpected = [found["observed_value"]] if "observed_value" in found else _exception_messages(result)
    return ExpectationResult(
        name=claim.name,
        severity=claim.expectation.severity,
        success=bool(result.success),
        unexpected_count=int(found.get("unexpected_count", 0 if result.success else 1)),
        unexpected_percent=float(found.get("unexpected_percent") or 0.0),
        sample=[_plain(value) for value in unexpected[:_SAMPLE_SIZE]],
        unexpected_rows=tuple(sorted(int(positions[row]) for row in found.get("unexpected_index_list") or ())),
        observed=_plain(found.get("observed_value")),
    )


def _exception_messages(result: Any) -> list[str]:
    # One exception is given flat, those of several metrics are nested by metric.
    info: dict[str, Any] = result.exception_info
    nested = [info] if "exception_message" in info else list(info.values())
    return sorted({str(entry["exception_message"]) for entry in nested if entry.get("exception_message")})


def _plain(value: Any) -> Any:
    """``value`` as JSON would have it; what JSON has no form for becomes text."""
    return json.loads(json.dumps(value, default=lambda other: other.item() if hasattr(other, "item") else str(other)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Great Expectations still imports modules that Python has deprecated; nobody here can mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "This pattern is interpreted as a regular expression", UserWarning)  # pandas
        yield


# --- Data Docs ------------------------------------------------------------------------------------------------------
# As built, every page loads its styles, scripts and a logo that counts views (it carries the context's id) from seven
# servers. Nothing here phones home, and a laptop may be offline: the pages are made to stand on their own.

_REMOTE = re.compile(
    r"<script\b.*?</script>"  # without the remote libraries the inline scripts only fail
    r"|<link\b[^>]*\bhref=\"https?://[^>]*>"
    r"|<img\b[^>]*\bsrc=\"https?://[^>]*>",
    re.DOTALL,
)
_MARK = "<!-- self-contained -->"
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { border: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
td .table, td td, td th { font-size: 90%; }
.breadcrumb { list-style: none; padding: 0; display: flex; gap: 1rem; }
.badge { background: #eee; border-radius: .3rem; padding: .1rem .4rem; }
.fa-check-circle::before { content: "\\2714"; color: #197a2e; }
.fa-times::before, .fa-exclamation-triangle::before { content: "\\2718"; color: #b3261e; }
.modal, .btn, .btn-group, .card.mb-3, .nav-tabs, footer { display: none !important; }
nav.navbar { height: auto !important; }
</style>"""


def _make_self_contained(site: Path, *, validations: Path) -> None:
    """Take everything remote out of the Data Docs' pages, and list the runs on the first page in plain HTML."""
    for page in sorted(site.rglob("*.html")):
        text = page.read_text()
        if _MARK not in text:
            text = _REMOTE.sub("", text).replace("</head>", f"{_MARK}{_STYLE}</head>", 1)
            if "validations" in page.relative_to(site).parts:
                text = text.replace("<body>", f"<body>{_say_what_was_looked_at(page, site, validations)}", 1)
            if page == site / "index.html":
                text = text.replace("<body>", f"<body>{_list_runs(site, validations)}", 1)
            durable.write_text(page, text)


def _say_what_was_looked_at(page: Path, site: Path, validations: Path) -> str:
    """A line on which records the page is about."""
    place = page.relative_to(site / "validations").with_suffix(".json")
    results = json.loads((validations / place).read_text())["results"]
    said = {result["expectation_config"]["meta"].get("looked_at", "") for result in results}
    return "".join(f"<p><strong>Great Expectations looked at {html.escape(what)}</strong></p>" for what in said if what)


def _list_runs(site: Path, validations: Path) -> str:
    """A table of every run kept, the newest first; the page's own needs a remote script."""
    rows = []
    for page in sorted((site / "validations").rglob("*.html"), key=lambda path: path.parent.name, reverse=True):
        place = page.relative_to(site / "validations")
        run_name, time = place.parts[-3:-1]
        passed = json.loads((validations / place.with_suffix(".json")).read_text())["success"]
        rows.append(
            f'<tr><td><a href="{html.escape(page.relative_to(site).as_posix())}">{html.escape(run_name)}</a></td>'
            f"<td>{html.escape(time)}</td><td>{'all claims hold' if passed else 'some claims fail'}</td></tr>"
        )
    return (
        f'<h1>Data Docs</h1><p>Expectation suites: <a href="expectations/{_RECORDS}.html">of the records</a>, '
        f'<a href="expectations/{_TABLE}.html">of the table as a whole</a></p>'
        f"<table><tr><th>Validation</th><th>Time (UTC)</th><th>Outcome</th></tr>{''.join(rows)}</table>"
    )
