"""The readiness report: whether the data can be trained on, and what to mend first, on one page.

Belongs here: gathering what other stages found, the verdict in words, drift between the newest batch and those before
it, and the page. Nothing is judged anew: a record's faults are ``validation``'s, clusters ``duplicates``', splits
``splits``'. The page needs no network and no other file; everything it says is in ``readiness.json``, too.
"""

import base64
import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from genai_assets import durable
from genai_assets.datasets import duplicates
from genai_assets.datasets.caption_quality import masked_caption
from genai_assets.datasets.expectations import CAPTION_PROBLEMS, Claim, claims_of
from genai_assets.datasets.validation import MOST_RECORDS_ARE_USABLE
from genai_assets.settings import Settings
from genai_assets.templates import page_template

PAGE, FACTS = "readiness.html", "readiness.json"

FEWEST_TO_COMPARE = 50
"""Records on either side; with fewer, whether a batch differs is unknown."""

LARGE_SHIFT = 0.15
"""Total variation distance from which two distributions differ enough to be told: this share of records has moved."""

QUARANTINE_TO_MENTION = 0.1
"""A larger share of records in quarantine, or refused, is a warning."""

_DRAWS = 200  # of two batches from the same distribution, to know how far chance alone takes them apart
_THUMBNAIL = 72  # pixels; a page of some two hundred of them stays well below 2 MB
_A_CLASS, _CLASSES, _FROM_QUARANTINE, _CLUSTERS, _A_CLUSTER = 12, 12, 24, 8, 4
_BARS = 12
_REFUSALS = 30
_SAMPLE_KEY = "genai-readiness1"  # sixteen characters, as the hash wants them

Verdict = Literal["Ready", "Ready, with warnings", "Not ready"]
Known = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Shift:
    """How the newest batch differs from the records before it in one respect.

    Attributes:
        name: what was compared.
        differs: yes, no, or unknown when there is too little to tell.
        distance: total variation distance of the two distributions, 0–1; None when unknown.
        by_chance: the distance that chance alone reaches once in a hundred times, at these numbers; None when unknown.
        gained: the value (or range) whose share grew most, with its share before and now.
    """

    name: str
    differs: Known
    distance: float | None = None
    by_chance: float | None = None
    gained: str = ""


@dataclass(frozen=True)
class Drift:
    """How the newest batch differs from everything before it.

    Attributes:
        differs: yes when it does in any respect, unknown when that cannot be told.
        why: in a sentence.
        batch, newest, before: name of the newest batch, its records, and those before.
        shifts: each respect.
    """

    differs: Known
    why: str
    batch: str = ""
    newest: int = 0
    before: int = 0
    shifts: tuple[Shift, ...] = ()


@dataclass(frozen=True)
class Mend:
    """One thing to mend.

    Attributes:
        level: "stops", "warns" or "notes".
        title: what is wrong.
        records: how many records it concerns; None when it is about the whole.
        advice: what to do.
    """

    level: Literal["stops", "warns", "notes"]
    title: str
    records: int | None
    advice: str


@dataclass(frozen=True)
class Materials:
    """What a report is made of.

    Attributes:
        manifest: validated records.
        quarantine: the others, with their ``reason``.
        refused: what ingestion did not take, see ``validation.Intake``.
        summary: of validated_data.
        batches: picture id to the name of the batch it first came in with; names sort by age. None: by the day.
        splits: the table of splits, or None.
        clusters: of ``duplicates``, or None.
        provenance: what everything was made from, for the foot of the page.
    """

    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    refused: pd.DataFrame
    summary: Mapping[str, Any]
    batches: Mapping[str, str] | None = None
    splits: pd.DataFrame | None = None
    clusters: pd.DataFrame | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


def write_readiness(
    out: Path, materials: Materials, settings: Settings, thumbnail: Callable[[str], bytes]
) -> dict[str, Any]:
    """Write ``out/readiness.html`` and ``out/readiness.json``; the same materials give the same bytes.

    Args:
        out: an existing folder.
        materials: what the other stages found.
        settings: thresholds, to say them.
        thumbnail: picture id to bytes of a small picture.

    Returns:
        ``verdict``, ``mend_first`` (titles in order), ``drift`` ("yes", "no" or "unknown"), ``seen``, ``kept``,
        ``quarantined``, ``refused``.
    """
    summary = materials.summary
    drift = find_drift(materials.manifest, materials.batches)
    mends = find_mends(materials, drift, settings)
    verdict = judge(mends)
    facts = {
        "verdict": verdict,
        "mend": [asdict(mend) for mend in mends],
        "counts": {name: summary[name] for name in ("seen", "refused", "doubles", "records", "kept", "quarantined")},
        "quarantined_by_reason": summary["quarantined_by_reason"],
        "refused_by_reason": summary["refused_by_reason"],
        "refused_sources": summary["refused_sources"],
        "checks": [*summary["checks"], *summary["own_checks"]],
        "splits": _count_splits(materials.splits),
        "clusters": 0 if materials.clusters is None else int(materials.clusters["cluster"].nunique()),
        "straddling": count_straddling(materials.clusters, materials.splits),
        "drift": asdict(drift),
        "distributions": {chart.name: dict(chart.bars) for chart in charts_of(materials.manifest)},
        "provenance": dict(materials.provenance),
    }
    durable.write_json(out / FACTS, facts)
    # Relative, so that the page is the same in any home, and the link works from a file and over HTTP.
    data_docs = Path(os.path.relpath(materials.summary["data_docs"], out)).as_posix()
    durable.write_text(out / PAGE, _render(materials, facts, drift, mends, settings, thumbnail, data_docs))
    return {
        "verdict": verdict,
        "mend_first": [mend.title for mend in mends if mend.level != "notes"],
        "drift": drift.differs,
        **{name: summary[name] for name in ("seen", "kept", "quarantined", "refused")},
    }


# --- verdict --------------------------------------------------------------------------------------------------------

ADVICE: dict[str, str] = {
    "manifest_has_records": "Add pictures, or lower readiness.min_records when these few are meant.",
    "manifest_has_the_columns_of_a_record": "The manifest was written by other code; materialize raw_data again.",
    "sources_are_present": "Give every source a name, so that a fault can be traced to where it came from.",
    "captions_are_readable": "Read the texts in the encoding they were written in: garbled captions teach nothing.",
    "captions_say_something": "Replace file names and stock phrases by what the picture shows (genai data captions).",
    "captions_have_enough_words": "Say more of what the picture shows, or lower captions.min_words.",
    "captions_have_few_enough_words": "Shorten them: what is beyond the text encoder's window is never read.",
    "captions_are_in_the_language": "Translate them, or add their language to captions.languages.",
    "captions_hold_no_addresses": "Take e-mail addresses and telephone numbers out of the captions.",
    "captions_hold_no_secrets": "Take keys and passwords out of the captions, and revoke them: they were in your data.",
    "near_duplicates_are_few": "Look at the clusters below, and keep one of each (curation.keep).",
    "categories_are_balanced": "Add pictures of the rarest categories, or raise fine_tune.class_balance.",
    "no_source_dominates": "Add pictures from elsewhere, or raise readiness.max_source_share when that is meant.",
    "synthetic_records_are_few": "Add real pictures, or lower synthetic.max_share.",
    "records_are_fresh": "Nothing new has come for long: see whether the sources are still read.",
    MOST_RECORDS_ARE_USABLE.name: "So many faults point at the source itself: see the reasons for quarantine below.",
}
"""What to do about a claim that fails; each other claim's records are in quarantine."""

_QUARANTINE_ADVICE: dict[str, str] = {
    "duplicate": "The earliest caption of each picture was kept; nothing to do, unless the other caption is better.",
    "undecodable": "Fetch or export these files again: they are damaged or of a format that is not read.",
    "blank": "They show nearly one colour; look whether the export went wrong.",
    "picture missing": "The store has lost them; materialize raw_data again.",
    "picture changed": "The store's files were changed by hand; materialize raw_data again.",
    "size differs from the record": "Materialize raw_data again: the manifest is not of these files.",
    "opted out": "Their makers reserve them. Leave them out.",
    "licence not allowed": "Leave them out, or add the licence to dataset.allowed_licences when it is.",
    "no licence": "State a licence for them, or for their source.",
    "no caption": "Write captions, or let a model propose them (captions.model).",
    "caption too long": "Shorten the captions, or raise dataset.max_caption_length.",
    "picture too narrow": "Export them larger, or lower dataset.min_side.",
    "picture too low": "Export them larger, or lower dataset.min_side.",
    "too long": "Cut them to the part that matters, or raise readiness.max_aspect.",
}


def judge(mends: Sequence[Mend]) -> Verdict:
    """The verdict in words: what stops comes before what warns."""
    levels = {mend.level for mend in mends}
    return "Not ready" if "stops" in levels else "Ready, with warnings" if "warns" in levels else "Ready"


def find_mends(materials: Materials, drift: Drift, settings: Settings) -> list[Mend]:
    """What to mend, in the order of effect: what stops training, then what concerns the most records."""
    summary = materials.summary
    claims = {claim.name: claim for claim in claims_of(settings)}
    found = [
        _mend_of_check(check, claims.get(check["name"]))
        for check in [*summary["checks"], *summary["own_checks"]]
        if not check["passed"] and check["name"] != "own_expectations_hold"
    ]
    many = QUARANTINE_TO_MENTION * max(summary["seen"], 1)
    for reason, count in summary["quarantined_by_reason"].items():
        level = "warns" if count > many and reason != "duplicate" else "notes"
        advice = _QUARANTINE_ADVICE.get(reason, "See the examples below.")
        found.append(Mend(level, f"In quarantine: {reason}", count, advice))
    for reason, count in summary["refused_by_reason"].items():
        level = "warns" if count > many else "notes"
        found.append(Mend(level, f"Refused: {reason}", count, "It never came into the manifest; see the table below."))
    for source in summary["refused_sources"]:
        advice = "Its licence is not among dataset.allowed_licences; nothing of it was fetched."
        found.append(Mend("notes", f"A whole source was refused: {source}", None, advice))
    if drift.differs == "yes":
        advice = "When that is meant, nothing; else look at what the newest batch brought."
        found.append(Mend("warns", drift.why, drift.newest, advice))
    if materials.splits is not None:
        sizes = materials.splits["split"].value_counts()
        for split in ("train", "validation", "held_out"):
            if not sizes.get(split, 0):
                title = f"No record is in the split {split.replace('_', ' ')}"
                found.append(Mend("stops", title, None, "Add concepts, or raise the split's share."))
    if straddling := count_straddling(materials.clusters, materials.splits):
        title = f"{straddling:,} cluster{'s' * (straddling > 1)} of near duplicates reach into two splits"
        advice = "What is tested with was nearly trained on. Materialize duplicate_clusters, then splits."
        found.append(Mend("warns", title, None, advice))
    order = {"stops": 0, "warns": 1, "notes": 2}
    return sorted(found, key=lambda mend: (order[mend.level], -(mend.records or 0), mend.title))


def count_straddling(clusters: pd.DataFrame | None, splits: pd.DataFrame | None) -> int:
    """How many clusters of near duplicates have pictures in two splits; what is kept for later is in none."""
    if clusters is None or splits is None:
        return 0
    parted = splits[splits["split"] != "later"]
    together = clusters[["id", "cluster"]].merge(parted[["id", "split"]], on="id")
    return int((together.groupby("cluster")["split"].nunique() > 1).sum())


def _mend_of_check(check: Mapping[str, Any], claim: Claim | None) -> Mend:
    level = "stops" if check["severity"] == "critical" else "warns"
    about_rows = claim is not None and claim.rule is not None and claim.rule.about_rows
    title = check["name"].replace("_", " ") + ": does not hold"
    if check["observed"] is not None and claim and claim.rule:
        title += f" ({_shown_figure(check['observed'])}, bound {_shown_figure(claim.rule.high or claim.rule.low)})"
    concerns = about_rows or check["name"] == MOST_RECORDS_ARE_USABLE.name
    advice = ADVICE.get(check["name"]) or "See the claim's records in unexpected.parquet of validated_data."
    return Mend(level, title, check["unexpected_count"] if concerns else None, advice)


def _shown_figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- drift ----------------------------------------------------------------------------------------------------------


def find_drift(manifest: pd.DataFrame, batches: Mapping[str, str] | None = None) -> Drift:
    """Whether the newest batch is like the records before it: yes, no or unknown.

    Each respect (category, source, style, licence, caption length, size, aspect) is compared by the total variation
    distance: half the sum of the differences of all shares, that is the share of records that would have to change.
    Numbers are counted in tenths of the earlier records. A respect differs when the distance is at least
    :data:`LARGE_SHIFT` and more than chance reaches once in a hundred times, which is found by drawing batches of these
    sizes from all records together.

    Args:
        manifest: validated records.
        batches: picture id to name of its batch; names sort by age. None: the records of one day are a batch.
    """
    names = (
        pd.to_datetime(manifest["added_at"], utc=True).dt.date if batches is None else manifest["id"].map(dict(batches))
    )
    known = manifest[names.notna().to_numpy()].assign(batch=names.dropna().astype(str).to_numpy())
    if known["batch"].nunique() < 2:
        return Drift("unknown", "There is one batch so far: nothing to compare the newest with.")
    newest = known["batch"].max()
    now, before = known[known["batch"] == newest], known[known["batch"] != newest]
    sizes = {"batch": newest, "newest": len(now), "before": len(before)}
    if min(len(now), len(before)) < FEWEST_TO_COMPARE:
        few = f"{len(now):,} new and {len(before):,} earlier records are too few to compare."
        return Drift("unknown", few, **sizes)
    shifts = tuple(_shift(name, before_of, now_of) for name, before_of, now_of in _respects(before, now))
    differing = [shift.name for shift in shifts if shift.differs == "yes"]
    if differing:
        return Drift("yes", f"The newest batch differs in {_listed(differing)}", **sizes, shifts=shifts)
    return Drift("no", "The newest batch is like the records before it.", **sizes, shifts=shifts)


def _respects(before: pd.DataFrame, now: pd.DataFrame) -> list[tuple[str, "pd.Series[Any]", "pd.Series[Any]"]]:
    both = [
        (name, before[column], now[column])
        for name, column in (("category", "category"), ("source", "source"), ("style", "style"), ("licence", "licence"))
    ]
    for name, measure in _NUMBERS.items():
        earlier, newer = measure(before), measure(now)
        edges = np.unique(np.quantile(earlier, np.linspace(0, 1, 11)[1:-1]))
        both.append((name, _in_tenths(earlier, edges), _in_tenths(newer, edges)))
    return both


def _in_tenths(values: "pd.Series[float]", edges: np.ndarray) -> "pd.Series[str]":
    """Each number's range, in words."""
    said = [f"up to {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges.tolist()))]
    said.append(f"over {edges[-1]:g}")
    places = np.searchsorted(edges, values.to_numpy(), side="left")
    return pd.Series([said[place] for place in places], index=values.index)


def _shift(name: str, before: "pd.Series[Any]", now: "pd.Series[Any]") -> Shift:
    counts = pd.DataFrame({"before": before.value_counts(), "now": now.value_counts()}).fillna(0).sort_index()
    earlier, newer = counts["before"].to_numpy(), counts["now"].to_numpy()
    distance = _total_variation(earlier, newer)
    by_chance = _distance_by_chance(earlier + newer, int(earlier.sum()), int(newer.sum()))
    differs: Known = "yes" if distance >= LARGE_SHIFT and distance > by_chance else "no"
    gains = newer / newer.sum() - earlier / earlier.sum()
    most = int(gains.argmax())
    was, is_now = earlier[most] / earlier.sum(), newer[most] / newer.sum()
    gained = f"{str(counts.index[most]) or 'none'}: {was:.0%} before, {is_now:.0%} now" if gains[most] > 0 else ""
    return Shift(name, differs, round(distance, 4), round(by_chance, 4), gained)


def _total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def _distance_by_chance(together: np.ndarray, before: int, now: int) -> float:
    """The 99th percentile of the distance between two batches drawn from the same records; seeded by nothing else."""
    draw = np.random.default_rng([before, now, len(together)])
    shares = together / together.sum()
    pairs = zip(draw.multinomial(before, shares, _DRAWS), draw.multinomial(now, shares, _DRAWS), strict=True)
    return float(np.quantile([_total_variation(one, other) for one, other in pairs], 0.99))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- figures --------------------------------------------------------------------------------------------------------

_NUMBERS: dict[str, Callable[[pd.DataFrame], "pd.Series[float]"]] = {
    "words in a caption": lambda frame: frame["caption"].str.count(r"\S+").astype(float),
    "longer side": lambda frame: frame[["width", "height"]].max(axis=1).astype(float),
    "aspect": lambda frame: (frame["width"] / frame["height"]).round(2),
}


@dataclass(frozen=True)
class Chart:
    """Counts to draw as bars.

    Attributes:
        name: of what is counted.
        bars: label and count, in the order to draw.
        note: what a reader should know.
    """

    name: str
    bars: tuple[tuple[str, int], ...]
    note: str = ""


def charts_of(manifest: pd.DataFrame) -> list[Chart]:
    """Histograms of the validated records: categories, sources, styles, licences, sizes, aspects, caption lengths."""
    if manifest.empty:
        return []
    charts = [
        _values(name, manifest[column])
        for name, column in (
            ("category", "category"),
            ("source", "source"),
            ("style", "style"),
            ("licence", "licence"),
        )
    ]
    sides = _NUMBERS["longer side"](manifest)
    charts.append(_ranges("longer side, pixels", sides, [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096]))
    aspect = _NUMBERS["aspect"](manifest)
    edges = [0.25, 0.5, 0.75, 0.95, 1.05, 1.33, 2.0, 4.0]
    charts.append(_ranges("aspect, width over height", aspect, edges, note="1 is a square"))
    words = _NUMBERS["words in a caption"](manifest)
    charts.append(_ranges("words in a caption", words, [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 60]))
    return charts


def _values(name: str, column: "pd.Series[Any]") -> Chart:
    counts = column.replace("", "none stated").value_counts()
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")
    shown = [(str(label), int(count)) for label, count in counts.head(_BARS).items()]
    rest = counts.iloc[_BARS:]
    if len(rest):
        shown.append((f"{len(rest)} others", int(rest.sum())))
    return Chart(name, tuple(shown))


def _ranges(name: str, values: "pd.Series[float]", edges: Sequence[float], note: str = "") -> Chart:
    """Counts between edges; each range has its lower edge and not its upper one. Empty ends are left out."""
    places = np.searchsorted(edges, values.to_numpy(), side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    whole = all(float(edge).is_integer() for edge in edges)
    labels = [f"under {edges[0]:g}"]
    for low, high in pairwise(edges):
        labels.append(f"{low:g}" if whole and high == low + 1 else f"{low:g}–{high - 1 if whole else high:g}")
    labels.append(f"{edges[-1]:g} and more")
    filled = np.flatnonzero(counts)
    span = range(int(filled[0]), int(filled[-1]) + 1)
    return Chart(name, tuple((labels[place], int(counts[place])) for place in span), note)


def bars_svg(chart: Chart) -> str:
    """A chart as inline SVG: one bar a row, label before it and count behind it; colours come from the page."""
    row, label, bar, count = 22, 150, 250, 60
    most = max((value for _, value in chart.bars), default=1) or 1
    described = "; ".join(f"{name} {value:,}" for name, value in chart.bars)
    parts = [
        f'<svg viewBox="0 0 {label + bar + count} {row * len(chart.bars) + 4}" role="img" '
        f'aria-label="{html.escape(f"{chart.name}: {described}")}">'
    ]
    for number, (name, value) in enumerate(chart.bars):
        y = number * row
        shown = name if len(name) <= 21 else name[:20] + "…"
        parts.append(f'<text x="{label - 8}" y="{y + 15}" text-anchor="end">{html.escape(shown)}</text>')
        parts.append(
            f'<rect x="{label}" y="{y + 4}" width="{max(bar * value / most, 1.5 if value else 0):.1f}" height="14" '
            'rx="2"/>'
        )
        parts.append(f'<text x="{label + bar * value / most + 8:.1f}" y="{y + 15}" class="count">{value:,}</text>')
    return "".join([*parts, "</svg>"])


def _count_splits(splits: pd.DataFrame | None) -> dict[str, dict[str, int]]:
    """Split to its records, concepts, categories and styles."""
    if splits is None:
        return {}
    return {
        str(name): {
            "records": len(rows),
            "concepts": int(rows["concept"].nunique()),
            "categories": int(rows["category"].nunique()) if "category" in rows else 0,
            "styles": int(rows["style"].nunique()),
        }
        for name, rows in splits.groupby("split")
    }


# --- the page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """A picture on the page; without an address there is none to show."""

    address: str
    alt: str
    line: str = ""


class _Tiles:
    """Makes tiles of pictures, each picture drawn once."""

    def __init__(self, thumbnail: Callable[[str], bytes], settings: Settings):
        self._thumbnail, self._rules = thumbnail, settings.captions
        self._addresses: dict[str, str] = {}

    def tile(self, picture: str, caption: str, line: str = "") -> _Tile:
        said = self.masked(caption)
        if picture not in self._addresses:
            self._addresses[picture] = self._address(picture)
        return _Tile(self._addresses[picture], said or "picture without a caption", line or said)

    def of(self, frame: pd.DataFrame) -> list[_Tile]:
        """A tile for each record of a frame."""
        return [self.tile(picture, caption) for picture, caption in zip(frame["id"], frame["caption"], strict=True)]

    def masked(self, caption: str) -> str:
        return masked_caption(caption, self._rules) if isinstance(caption, str) else ""

    def _address(self, picture: str) -> str:
        try:
            with Image.open(io.BytesIO(self._thumbnail(picture))) as image:
                small = image.convert("RGB")
        except (OSError, ValueError):  # it is missing or cannot be decoded: that is told beside it
            return ""
        small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=70, method=4)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sample(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """So many records, chosen by a keyed hash of the picture: the same ones however the table grows or is sorted."""
    hashes = pd.util.hash_array(frame["id"].astype(str).to_numpy(object), hash_key=_SAMPLE_KEY)
    return frame.iloc[np.argsort(hashes, kind="stable")[:count]]


def _render(
    materials: Materials,
    facts: Mapping[str, Any],
    drift: Drift,
    mends: Sequence[Mend],
    settings: Settings,
    thumbnail: Callable[[str], bytes],
    data_docs: str,
) -> str:
    tiles = _Tiles(thumbnail, settings)
    claims = {claim.name: claim for claim in claims_of(settings)}
    return page_template(
        "genai_assets.datasets",
        "readiness.html.j2",
        words=lambda name: str(name).replace("_", " "),
        count=lambda number: f"{number:,}",
    ).render(
        facts=facts,
        verdict=facts["verdict"],
        verdict_kind={"Ready": "good", "Ready, with warnings": "warn", "Not ready": "bad"}[facts["verdict"]],
        mends=mends,
        sheets=_sheets(materials.manifest, tiles),
        charts=[(chart, bars_svg(chart)) for chart in charts_of(materials.manifest)],
        clusters=_clusters(materials, tiles),
        quarantine=_quarantine(materials, tiles),
        refused=_refused(materials.refused),
        captions=_caption_checks(facts["checks"]),
        splits=facts["splits"],
        drift=drift,
        checks=[(check, claims.get(check["name"])) for check in facts["checks"]],
        thresholds=settings.readiness,
        data_docs=data_docs,
        looked_at=materials.summary["looked_at"],
        provenance=materials.provenance,
    )


def _sheets(manifest: pd.DataFrame, tiles: _Tiles) -> list[tuple[str, int, list[_Tile]]]:
    """A contact sheet for each of the most common categories, styles in turn."""
    if manifest.empty:
        return []
    by = "category" if manifest["category"].nunique() > 1 else "style"
    counts = manifest[by].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    sheets = []
    for name, count in counts.head(_CLASSES).items():
        rows = manifest[manifest[by] == name]
        styles = sorted(rows["style"].unique())
        each = math.ceil(_A_CLASS / min(len(styles), _A_CLASS))
        chosen = pd.concat([_sample(rows[rows["style"] == style], each) for style in styles[:_A_CLASS]])[:_A_CLASS]
        sheets.append((str(name) or "no category", int(count), tiles.of(chosen)))
    return sheets


def _clusters(materials: Materials, tiles: _Tiles) -> list[tuple[int, list[_Tile]]]:
    """The largest clusters of near duplicates, side by side."""
    if materials.clusters is None or materials.clusters.empty:
        return []
    groups = duplicates.cluster_groups(materials.manifest, materials.clusters, materials.splits, count=_CLUSTERS)
    return [
        (
            len(members),
            [
                tiles.tile(
                    member.id, member.caption, " · ".join(filter(None, [member.style, member.split, member.joined]))
                )
                for member in members[:_A_CLUSTER]
            ],
        )
        for members in groups
    ]


def _quarantine(materials: Materials, tiles: _Tiles) -> list[dict[str, Any]]:
    """Each reason with its count and examples; the pictures are shared out among the reasons."""
    reasons = materials.summary["quarantined_by_reason"]
    rows = materials.quarantine
    each = max(_FROM_QUARANTINE // max(len(reasons), 1), 2)
    shown = []
    for reason, count in reasons.items():
        first = rows["reason"].str.split("; ").str[0].fillna("")
        of_reason = rows[first.str.startswith(reason)]
        examples = _sample(of_reason, each)
        shown.append(
            {
                "reason": reason,
                "count": count,
                "advice": _QUARANTINE_ADVICE.get(reason, ""),
                "tiles": tiles.of(examples),
                "said": [tiles.masked(str(text)) for text in examples["reason"].head(3)],
            }
        )
    return shown


def _refused(refused: pd.DataFrame) -> list[dict[str, Any]]:
    """Refusals by source, licence and reason, the most frequent first; whole sources have no count."""
    if refused.empty:
        return []
    columns = ["source", "licence", "reason"]
    grouped = refused.fillna({column: "" for column in columns}).groupby(columns, as_index=False)
    counted = pd.DataFrame(grouped["count"].sum(min_count=1))
    counted = counted.sort_values(["count", *columns], ascending=[False, True, True, True])
    rows = counted.head(_REFUSALS).astype(object)
    told: list[dict[str, Any]] = [dict(row) for _, row in rows.where(rows.notna(), None).iterrows()]
    return told


def _caption_checks(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [check for check in checks if check["name"] in CAPTION_PROBLEMS and not check["passed"]]
