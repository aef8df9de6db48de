"""The expectation suite: what a manifest of records must be like before anything is trained on it.

Belongs here: the claims (a stable list, so that checks can be declared from it without running anything), the Great
Expectations suite that tests them, and its Data Docs. This is the only module that knows Great Expectations. What is
done with a record that breaks a claim is decided in ``validation``.
"""

import html
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from genai_assets import durable, privacy
from genai_assets.datasets.licences import LicencePolicy
from genai_assets.datasets.records import COLUMNS
from genai_assets.settings import Settings

Severity = Literal["critical", "warning"]

_SUITE = "records"
_SITE = "local_site"
_SAMPLE_SIZE = 5
_TEXT_COLUMNS = ("id", "caption", "concept", "style", "source", "licence")


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


EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation("manifest_has_records", "critical", "There is at least one record."),
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
    Expectation("widths_are_large_enough", "critical", "No picture is too narrow.", "picture too narrow", "width"),
    Expectation("heights_are_large_enough", "critical", "No picture is too low.", "picture too low", "height"),
    Expectation("sources_are_present", "warning", "Every record says where it came from.", "no source"),
)


@dataclass(frozen=True)
class ExpectationResult:
    """How one claim fared.

    Attributes:
        name: of the :class:`Expectation`.
        severity: of the expectation.
        success: whether the claim held.
        unexpected_count: records that break it; for a claim about the table, 1 when it is broken.
        unexpected_percent: share of the records looked at (missing values are not), 0–100.
        sample: up to five unexpected values as JSON values, or why the claim could not be tested.
        unexpected_rows: positions in the frame of the records that break it, ascending.
    """

    name: str
    severity: Severity
    success: bool
    unexpected_count: int
    unexpected_percent: float
    sample: list[Any]
    unexpected_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class ValidationOutcome:
    """How a manifest fared against the whole suite.

    Attributes:
        success: whether every claim held, warnings too.
        results: one for each of :data:`EXPECTATIONS`, in their order.
        data_docs: the Data Docs' ``index.html``.
    """

    success: bool
    results: tuple[ExpectationResult, ...]
    data_docs: Path


def run_suite(frame: pd.DataFrame, settings: Settings, *, run_name: str) -> ValidationOutcome:
    """Test every claim on a manifest, and add the outcome to the Data Docs.

    Text that is blank counts as missing. The Great Expectations context lies below
    ``settings.paths.great_expectations`` and keeps the outcome of every run.

    Args:
        frame: a manifest as of :func:`records.to_frame`, good or bad.
        settings: bounds on captions, sides and licences.
        run_name: what this run is called in the Data Docs, for example ``"raw_manifest"``.
    """
    privacy.turn_telemetry_off()
    root = settings.paths.great_expectations
    root.mkdir(parents=True, exist_ok=True)
    with _quiet():
        import great_expectations as gx
        from great_expectations.checkpoint.actions import UpdateDataDocsAction
        from great_expectations.core.run_identifier import RunIdentifier

        context = gx.get_context(mode="file", project_root_dir=str(root))
        context.variables.progress_bars = {"globally": False}  # pyright: ignore[reportAttributeAccessIssue]
        batch = (
            context.data_sources.add_or_update_pandas("genai_assets")
            .add_dataframe_asset("manifest")
            .add_batch_definition_whole_dataframe("whole")
        )
        suite = context.suites.add_or_update(
            gx.ExpectationSuite(name=_SUITE, expectations=_build_suite(frame, settings))
        )
        definition = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(name=run_name, data=batch, suite=suite)
        )
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=run_name,
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="data_docs", site_names=[_SITE])],
                result_format={"result_format": "COMPLETE"},
            )
        )
        outcome = checkpoint.run(
            batch_parameters={"dataframe": _blank_as_missing(frame)}, run_id=RunIdentifier(run_name=run_name)
        )
    (validation,) = outcome.run_results.values()
    by_name = {_claim(result): result for result in validation.results}
    results = tuple(_read_result(expectation, by_name[expectation.name]) for expectation in EXPECTATIONS)
    site = root / "gx" / "uncommitted" / "data_docs" / _SITE
    _make_self_contained(site, validations=root / "gx" / "uncommitted" / "validations")
    return ValidationOutcome(all(result.success for result in results), results, site / "index.html")


def _build_suite(frame: pd.DataFrame, settings: Settings) -> list[Any]:
    """The claims in Great Expectations' own terms, each marked with its name."""
    import great_expectations.expectations

    gxe: Any = great_expectations.expectations  # its documented names are not declared as exported

    rules = settings.dataset
    policy = LicencePolicy(rules.allowed_licences)
    stated = set(frame["licence"].dropna()) if "licence" in frame else set()
    allowed = sorted({*rules.allowed_licences, *(licence for licence in stated if policy.refusal(licence) is None)})
    built: dict[str, tuple[type, dict[str, Any]]] = {
        "manifest_has_records": (gxe.ExpectTableRowCountToBeBetween, {"min_value": 1}),
        "manifest_has_the_columns_of_a_record": (
            gxe.ExpectTableColumnsToMatchSet,
            {"column_set": list(COLUMNS), "exact_match": True},
        ),
        "ids_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "id"}),
        "ids_are_content_hashes": (gxe.ExpectColumnValuesToMatchRegex, {"column": "id", "regex": r"^[0-9a-f]{64}\Z"}),
        "records_are_distinct": (gxe.ExpectCompoundColumnsToBeUnique, {"column_list": ["id", "caption"]}),
        "captions_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "caption"}),
        "captions_are_short_enough": (
            gxe.ExpectColumnValueLengthsToBeBetween,
            {"column": "caption", "min_value": 1, "max_value": rules.max_caption_length},
        ),
        "concepts_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "concept"}),
        "styles_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "style"}),
        "licences_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "licence"}),
        "licences_are_allowed": (gxe.ExpectColumnValuesToBeInSet, {"column": "licence", "value_set": allowed}),
        "widths_are_large_enough": (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "width", "min_value": rules.min_side},
        ),
        "heights_are_large_enough": (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "height", "min_value": rules.min_side},
        ),
        "sources_are_present": (gxe.ExpectColumnValuesToNotBeNull, {"column": "source"}),
    }
    suite = []
    for expectation in EXPECTATIONS:
        kind, arguments = built[expectation.name]
        suite.append(
            kind(
                **arguments,
                severity=expectation.severity,
                description=expectation.description,
                meta={"claim": expectation.name},
            )
        )
    return suite


def _blank_as_missing(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy, numbered from 0, whose blank texts are None: expectations on presence then see them."""
    frame = frame.reset_index(drop=True)
    for column in set(_TEXT_COLUMNS) & set(frame.columns):
        texts = frame[column].astype(object)
        frame[column] = texts.where(texts.notna() & (texts.astype(str).str.strip() != ""), None)
    return frame


def _read_result(expectation: Expectation, result: Any) -> ExpectationResult:
    """Our own, plain form of one result of Great Expectations."""
    found: dict[str, Any] = result.result
    unexpected = found.get("partial_unexpected_list", [])
    if not result.success and not unexpected:
        unexpected = [found["observed_value"]] if "observed_value" in found else _exception_messages(result)
    return ExpectationResult(
        name=expectation.name,
        severity=expectation.severity,
        success=bool(result.success),
        unexpected_count=int(found.get("unexpected_count", 0 if result.success else 1)),
        unexpected_percent=float(found.get("unexpected_percent") or 0.0),
        sample=[_plain(value) for value in unexpected[:_SAMPLE_SIZE]],
        unexpected_rows=tuple(sorted(int(row) for row in found.get("unexpected_index_list") or ())),
    )


def _claim(result: Any) -> str:
    """Which claim a result of Great Expectations is about."""
    return result.expectation_config.meta["claim"]


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
            if page == site / "index.html":
                text = text.replace("<body>", f"<body>{_list_runs(site, validations)}", 1)
            durable.write_text(page, text)


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
        f'<h1>Data Docs</h1><p><a href="expectations/{_SUITE}.html">The expectation suite</a></p>'
        f"<table><tr><th>Validation</th><th>Time (UTC)</th><th>Outcome</th></tr>{''.join(rows)}</table>"
    )
