"""The dataset card: a README in Hugging Face's form that says what a dataset version holds, with the graph's figures.

Belongs here: gathering the figures from the manifest and the summaries of the stages before, and the files of a card:
``README.md`` (YAML front matter, then Markdown), ``manifest.parquet`` (every record with its split), ``croissant.json``
and ``ATTRIBUTION.md``. Nothing is measured anew: a figure that no stage gave is left out. All of them, by name, are in
``figures.json``.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets import croissant, records
from genai_assets.datasets.attribution import ATTRIBUTION, Credits, write_attribution
from genai_assets.datasets.licences import canonical_licence, licence_facts
from genai_assets.settings import Settings

CARD = "README.md"
MANIFEST = "manifest.parquet"
FIGURES = "figures.json"

LIMITS = (
    "Faces are not detected: whether a person can be recognised in a picture was not looked at.",
    "Personal data in captions (e-mail addresses, telephone numbers, keys) is flagged by rules only, which miss some.",
    "Opt-outs are found where a file's metadata, a sidecar or a field of its source states them; an opt-out stated "
    "elsewhere, on a site's page or in its robots.txt, is not.",
    "Licences are those that the sources state; nobody has checked that a source may grant them.",
    "Captions are the sources' own words and describe the main subject alone.",
)
"""What is not known of any dataset that this graph makes."""

_HUB_LICENCES = frozenset(
    {"apache-2.0", "mit", "0bsd", "isc", "zlib", "bsd-2-clause", "bsd-3-clause", "unlicense", "cc0-1.0", "pddl"}
    | {f"cc-by-{version}" for version in ("2.0", "2.5", "3.0", "4.0")}
    | {f"cc-by-{kind}-{version}" for kind in ("sa", "nc", "nd", "nc-sa", "nc-nd") for version in ("3.0", "4.0")}
    | {"odc-by", "odbl", "ofl-1.1", "cdla-sharing-1.0", "cdla-permissive-2.0", "gfdl", "lgpl-2.1", "lgpl-3.0"}
)
"""Licences that Hugging Face knows by name; the others are "other" with a name and a link."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SIZES_BEYOND = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"))
_LONGEST_TABLE = 30


def make_dataset_card(
    manifest: pd.DataFrame,
    splits: pd.DataFrame,
    settings: Settings,
    out: Path,
    *,
    versions: Mapping[str, str],
    raw: Mapping[str, Any],
    validated: Mapping[str, Any],
    split_summary: Mapping[str, Any] | None = None,
    duplicates: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a card's files into ``out``.

    Args:
        manifest: validated records.
        splits: table with the columns id, caption and split.
        settings: ``governance``, the licences allowed, how splits are made.
        out: an existing folder.
        versions: data version of each stage it is made from, by name; ``validated_data`` names the dataset's version.
        raw, validated, split_summary, duplicates: summaries of these stages; what one lacks is left out of the card.

    Returns:
        ``title``, ``version``, ``records``, ``splits`` (counts), ``licences`` (counts), ``synthetic_share``,
        ``opted_out``, ``uncredited`` (records whose licence asks for a credit that nobody stated) and ``sha256`` of the
        manifest.
    """
    table = _published(manifest, splits)
    with durable.replacing(out / MANIFEST) as temporary:
        table.to_parquet(temporary, index=False)
    sha256 = durable.digest_file(out / MANIFEST)
    version = versions.get("validated_data", records.manifest_version(manifest))
    credits = write_attribution(out / ATTRIBUTION, manifest, settings.dataset.allowed_licences, of=f"dataset {version}")
    figures = _figures(table, raw, validated, split_summary or {}, duplicates or {})
    title = settings.governance.title or f"Pictures for the style “{settings.dataset.house_style}”"
    durable.write_json(out / FIGURES, {"title": title, "versions": dict(versions), **figures})
    text = _card(title, version, figures, credits, settings, versions)
    durable.write_text(out / CARD, text)
    described = croissant.croissant(
        name=title,
        description=_description(title, figures, settings),
        version=version,
        table=MANIFEST,
        sha256=sha256,
        size=(out / MANIFEST).stat().st_size,
        splits=sorted(figures["splits"]),
        licences=_links(credits),
        creators=settings.governance.creators,
        url=settings.governance.url,
        language=settings.governance.language,
        keywords=_tags(settings),
        published=_newest_day(manifest),
        citation=f"{', '.join(settings.governance.creators) or 'genai_assets'}: {title}, version {version}",
        responsible_use=_responsible_use(figures, settings),
    )
    durable.write_json(out / croissant.CROISSANT, described)
    return {
        "title": title,
        "version": version,
        "records": figures["records"],
        "splits": figures["splits"],
        "licences": figures["licences"],
        "synthetic_share": figures["synthetic_share"],
        "opted_out": figures["opted_out"],
        "uncredited": sum(each.owed for each in credits),
        "sha256": sha256,
    }


def _published(manifest: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """The records with their split, without the time they arrived at, which says nothing of the data."""
    table = manifest.merge(splits[["id", "caption", "split"]], on=["id", "caption"], how="left")
    table["split"] = table["split"].fillna("")
    table = table.sort_values(["id", "caption"], ignore_index=True)
    return table[[column.name for column in croissant.COLUMNS]]


def _figures(
    table: pd.DataFrame,
    raw: Mapping[str, Any],
    validated: Mapping[str, Any],
    split_summary: Mapping[str, Any],
    duplicates: Mapping[str, Any],
) -> dict[str, Any]:
    quarantined = dict(validated.get("quarantined_by_reason", {}))
    sizes = table[["width", "height"]].to_numpy()
    characters = table["caption"].str.len().to_numpy()
    words = np.array([len(caption.split()) for caption in table["caption"]])
    return {
        "records": len(table),
        "concepts": int(table["concept"].nunique()),
        "styles": _counts(table["style"]),
        "sources": _counts(table["source"]),
        "licences": _counts(map(canonical_licence, table["licence"])),
        "categories": _counts(name or "(none)" for name in table["category"]),
        "splits": _counts(table["split"]),
        "by_style_and_split": {str(style): _counts(rows["split"]) for style, rows in table.groupby("style", sort=True)},
        "caption_characters": _spread(characters),
        "caption_words": _spread(words),
        "distinct_captions": int(table["caption"].nunique()),
        "shorter_side": _spread(sizes.min(axis=1) if len(sizes) else sizes),
        "longer_side": _spread(sizes.max(axis=1) if len(sizes) else sizes),
        "synthetic": int(table["synthetic"].sum()),
        "synthetic_share": round(float(table["synthetic"].mean()), 4) if len(table) else 0.0,
        "opted_out": sum(count for reason, count in quarantined.items() if reason.startswith("opted out")),
        "opt_outs_kept": _counts(signal for signal in table["opt_out"] if signal),
        "quarantined": validated.get("quarantined", sum(quarantined.values())),
        "quarantined_by_reason": quarantined,
        "refused": [dict(refusal) for refusal in raw.get("refused", ())],
        "repeated": raw.get("duplicates"),
        "duplicate_clusters": {name: value for name, value in duplicates.items() if isinstance(value, int | float)},
        "warnings": [check["name"] for check in validated.get("checks", ()) if not check["passed"]],
        "later_categories": list(split_summary.get("later_categories", ())),
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter(map(str, values)).items()))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Least, median, 95th percentile and most; empty without values."""
    if not values.size:
        return {}
    named = {"least": 0, "median": 50, "95 %": 95, "most": 100}
    return {name: round(float(np.percentile(values, share)), 1) for name, share in named.items()}


# The card


def _card(
    title: str,
    version: str,
    figures: Mapping[str, Any],
    credits: Sequence[Credits],
    settings: Settings,
    versions: Mapping[str, str],
) -> str:
    parts = [
        _front_matter(title, figures, credits, settings),
        f"# {_text(title)}",
        _description(title, figures, settings),
    ]
    parts += _section("Records", _about_records(figures))
    parts += _section("Splits", _about_splits(figures, settings))
    parts += _section("What was left out", _about_the_rest(figures, settings))
    parts += _section("Licences", _about_licences(credits))
    parts += _section("Limits", ["\n".join(f"- {limit}" for limit in _limits(figures))])
    parts += _section(
        "Versions",
        [
            f"This is version `{version}`; the same records always have the same version.",
            _table(("stage", "version"), sorted(versions.items())),
        ],
    )
    parts += _section(
        "Files",
        [
            f"- `{MANIFEST}`: every record with its split; the pictures themselves are not here, but named by SHA-256\n"
            f"- `{croissant.CROISSANT}`: the same in Croissant's form\n"
            f"- `{ATTRIBUTION}`: whom to credit\n"
            f"- `{FIGURES}`: all figures of this card"
        ],
    )
    if settings.governance.creators:
        parts += _section("By", ["\n".join(f"- {_text(name)}" for name in settings.governance.creators)])
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(title: str, figures: Mapping[str, Any], credits: Sequence[Credits], settings: Settings) -> str:
    """The YAML header, written by Hugging Face's own class, so that its hub reads it."""
    from huggingface_hub import DatasetCardData

    named = _hub_licences(credits)
    data = DatasetCardData(
        language=settings.governance.language,
        license=named if len(named) != 1 else named[0],
        pretty_name=title,
        size_categories=[_size_category(figures["records"])],
        task_categories=["text-to-image"],
        tags=_tags(settings),
        configs=[{"config_name": "records", "data_files": MANIFEST}],
    )
    if "other" in named:  # the hub then wants a name and a link
        data["license_name"], data["license_link"] = "see-attribution", ATTRIBUTION
    return f"---\n{data.to_yaml().strip()}\n---"


def _about_records(figures: Mapping[str, Any]) -> list[str]:
    splits = list(figures["splits"])
    return [
        _table(
            ("style", *splits, "all"),
            [
                (style, *(counts.get(split, 0) for split in splits), sum(counts.values()))
                for style, counts in figures["by_style_and_split"].items()
            ],
        ),
        _table(("source", "records"), _longest(figures["sources"])),
        _table(("category", "records"), _longest(figures["categories"])),
        _table(
            ("measure", "least", "median", "95 %", "most"),
            [
                (label, *(f"{value:g}" for value in figures[name].values()))
                for label, name in (
                    ("caption, characters", "caption_characters"),
                    ("caption, words", "caption_words"),
                    ("shorter side, pixels", "shorter_side"),
                    ("longer side, pixels", "longer_side"),
                )
                if figures[name]
            ],
        ),
        f"{figures['distinct_captions']:,} captions are distinct, of {figures['concepts']:,} concepts. "
        + _about_synthetic(figures),
    ]


def _about_synthetic(figures: Mapping[str, Any]) -> str:
    if not figures["synthetic"]:
        return "No picture was drawn by a model."
    return (
        f"{figures['synthetic']:,} pictures ({figures['synthetic_share']:.1%}) were drawn by a model; `synthetic` "
        "marks them. They are trained on only, within a cap, never validated or tested with."
    )


def _about_splits(figures: Mapping[str, Any], settings: Settings) -> list[str]:
    rules = settings.splits.model_dump(mode="json")
    shares = [
        f"{name.removesuffix('_share').replace('_', ' ')} {value:g}"
        for name, value in sorted(rules.items())
        if name.endswith("_share") and isinstance(value, int | float)
    ]
    told = (
        "A record's split is read off a keyed hash, so that adding or removing data moves no other record; all "
        f"pictures of a concept share it. Shares asked for: {', '.join(shares)}. `held_out` is never trained on."
    )
    later = figures["later_categories"]
    return [told + (f" Kept back for later: {', '.join(map(_text, later))}." if later else "")]


def _about_the_rest(figures: Mapping[str, Any], settings: Settings) -> list[str]:
    said = []
    if figures["repeated"]:
        said.append(f"{figures['repeated']:,} records repeated another's picture and caption and were dropped.")
    if figures["quarantined_by_reason"]:
        said.append(f"{figures['quarantined']:,} records are in quarantine:")
        said.append(_table(("reason", "records"), _longest(figures["quarantined_by_reason"])))
    else:
        said.append("No record is in quarantine.")
    if figures["refused"]:
        said.append("Refused for their licence, or not readable at their source:")
        said.append(
            _table(
                ("source", "licence", "records", "reason"),
                [
                    (
                        each.get("source", ""),
                        each.get("licence", ""),
                        _how_many(each.get("count")),
                        each.get("reason", ""),
                    )
                    for each in figures["refused"][:_LONGEST_TABLE]
                ],
            )
        )
    if settings.governance.honour_opt_outs:
        said.append(f"{figures['opted_out']:,} pictures were left out because their makers reserve them from training.")
    elif figures["opt_outs_kept"]:
        said.append(
            f"**{sum(figures['opt_outs_kept'].values()):,} pictures are in it although their makers reserve them from "
            "training**, because the team's settings say so:"
        )
        said.append(_table(("signal", "records"), _longest(figures["opt_outs_kept"])))
    if figures["duplicate_clusters"]:
        said.append(
            _table(
                ("of near duplicates", "pictures"),
                [(name.replace("_", " "), count) for name, count in sorted(figures["duplicate_clusters"].items())],
            )
        )
    if figures["warnings"]:
        said.append(f"Checks that gave a warning: {', '.join(f'`{name}`' for name in figures['warnings'])}.")
    return said


def _about_licences(credits: Sequence[Credits]) -> list[str]:
    rows: dict[str, tuple[int, str]] = {}
    for each in credits:
        asked = ", ".join(each.obligations) or "nothing"
        if not all(licence.known for licence in each.relied_on):
            asked = "not known here: read it"
        rows[each.licence] = (rows.get(each.licence, (0, ""))[0] + each.records, asked)
    owed = sum(each.owed for each in credits)
    return [
        _table(("licence", "records", "asks for"), [(name, *row) for name, row in rows.items()]),
        f"Whom to credit is in [{ATTRIBUTION}]({ATTRIBUTION})."
        + (f" **Of {owed:,} records it is not known, though their licence asks for it.**" if owed else ""),
    ]


def _limits(figures: Mapping[str, Any]) -> list[str]:
    own = []
    if "(none)" in figures["categories"]:
        own.append(f"{figures['categories']['(none)']:,} records state no category.")
    return [*LIMITS, *own]


def _description(title: str, figures: Mapping[str, Any], settings: Settings) -> str:
    told = (
        f"{figures['records']:,} pictures with captions of {figures['concepts']:,} concepts, "
        f"to teach a text-to-image model the style “{settings.dataset.house_style}”."
    )
    return "\n\n".join(part for part in (_text(settings.governance.description), told) if part)


def _responsible_use(figures: Mapping[str, Any], settings: Settings) -> dict[str, str | list[str]]:
    honoured = settings.governance.honour_opt_outs
    collected = (
        f"Read from {len(figures['sources'])} sources ({', '.join(list(figures['sources'])[:_LONGEST_TABLE])}); "
        "licences outside an allow-list are refused. "
    )
    collected += (
        f"{figures['opted_out']} pictures were left out for an opt-out in their metadata, sidecars or fields."
        if honoured
        else "Opt-outs are recorded and, by the team's settings, not honoured."
    )
    return {
        "dataCollection": collected,
        "dataPreprocessingProtocol": [
            "Every picture is decoded and checked; those that fail are in quarantine with a reason.",
            "Records that repeat a picture and caption are dropped.",
        ],
        "dataLimitations": _limits(figures),
        "dataUseCases": ["Training, validation and testing of text-to-image models."],
        "personalSensitiveInformation": [LIMITS[0], LIMITS[1]],
        "dataReleaseMaintenancePlan": "A change of the records makes a new version; versions are digests of content.",
    }


# Small forms


def _hub_licences(credits: Sequence[Credits]) -> list[str]:
    found = {licence.id for each in credits for licence in each.relied_on}
    return sorted({name.lower() if name.lower() in _HUB_LICENCES else "other" for name in found}) or ["other"]


def _links(credits: Sequence[Credits]) -> list[str]:
    found = {licence.id for each in credits for licence in each.relied_on}
    return sorted(licence_facts(name).url or name for name in found)


def _tags(settings: Settings) -> list[str]:
    style = re.sub(r"[^\w.-]+", "-", settings.dataset.house_style).strip("-").lower()
    return list(dict.fromkeys(["text-to-image", "style", *([style] if style else [])]))


def _size_category(count: int) -> str:
    return next((name for bound, name in (*_SIZES, *_SIZES_BEYOND) if count < bound), "100M<n<1B")


def _newest_day(manifest: pd.DataFrame) -> str | None:
    """The day the newest record came in: of the data, not of the run that makes the card."""
    return None if manifest.empty else str(pd.Timestamp(manifest["added_at"].max()).date())


def _how_many(count: Any) -> str:
    return "all" if count is None else f"{count:,}"


def _longest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    rows = sorted(counts.items(), key=lambda it: (-it[1], it[0]))
    rest = sum(count for _, count in rows[_LONGEST_TABLE:])
    return [*rows[:_LONGEST_TABLE], *([(f"({len(rows) - _LONGEST_TABLE} others)", rest)] if rest else [])]


def _section(title: str, body: Sequence[str]) -> list[str]:
    return [f"## {title}", *body]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else _text(str(cell)) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(text: str) -> str:
    """What others wrote, as one line that is no markup and breaks no table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;").replace("[", r"\[").replace("`", r"\`")


def read_figures(card: Path) -> dict[str, Any]:
    """All figures of a card, from its folder."""
    return json.loads((card / FIGURES).read_text())
