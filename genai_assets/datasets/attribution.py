"""Attribution: whom a set of records must credit, in one file that can lie beside whatever is made of them.

Belongs here: gathering credits from the records' provenance, by licence and source, and their text. What a licence asks
for is ``licences``; which records were used is the caller's to say (all of a dataset, or those a model was trained on).
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from genai_assets import durable
from genai_assets.datasets.licences import (
    Licence,
    LicencePolicy,
    Obligation,
    canonical_licence,
    licence_facts,
    obligations_of,
)

ATTRIBUTION = "ATTRIBUTION.md"

CHANGES = "Pictures were decoded, laid on white where they are transparent, and scaled."
"""What is done to every picture before it is trained on; licences ask that changes be stated."""


@dataclass(frozen=True)
class Credit:
    """One line of thanks, and how many records it is for."""

    text: str
    records: int


@dataclass(frozen=True)
class Credits:
    """All credits of one source under one licence.

    Attributes:
        licence: what the records state, as a canonical SPDX identifier or expression.
        relied_on: the single licences under which the pictures are taken.
        source: name of the source.
        records: how many there are.
        credits: distinct ones, the most frequent first.
        uncredited: records whose provenance names nobody.
    """

    licence: str
    relied_on: tuple[Licence, ...]
    source: str
    records: int
    credits: tuple[Credit, ...]
    uncredited: int

    @property
    def obligations(self) -> tuple[Obligation, ...]:
        """What the licences relied on ask for."""
        return obligations_of(licence.id for licence in self.relied_on)

    @property
    def owed(self) -> int:
        """Records that must be credited, and of which nobody can say to whom."""
        return self.uncredited if "attribution" in self.obligations else 0


def collect_credits(manifest: pd.DataFrame, allowed: Iterable[str]) -> list[Credits]:
    """The credits of a manifest's records, sorted by licence and source; each record counts once.

    A record's credit is its provenance's ``attribution`` or, without one, made of ``title``, ``author``, ``url``,
    ``package`` with ``version`` and ``licence_notice``, as far as they are there; one
    with neither author nor address names nobody.

    Args:
        manifest: rows with the columns licence, source and provenance (JSON text).
        allowed: licences the policy allows; they decide which side of an ``OR`` is relied on.
    """
    policy = LicencePolicy(allowed)
    canonical = {stated: canonical_licence(stated) for stated in set(manifest["licence"])}
    found: dict[tuple[str, str], Counter[str]] = {}
    for licence, source, provenance in zip(
        manifest["licence"], manifest["source"], manifest["provenance"], strict=True
    ):
        found.setdefault((canonical[licence], source), Counter())[_credit(json.loads(provenance))] += 1
    return [
        Credits(
            licence=licence,
            relied_on=_relied_on(licence, policy),
            source=source,
            records=counts.total(),
            credits=tuple(
                Credit(text, count) for text, count in sorted(counts.items(), key=lambda it: (-it[1], it[0])) if text
            ),
            uncredited=counts[""],
        )
        for (licence, source), counts in sorted(found.items())
    ]


def attribution_text(credits: Iterable[Credits], *, of: str) -> str:
    """The file's text, the same for the same records in any order.

    Args:
        credits: as of :func:`collect_credits`.
        of: what was made of the records, for the heading ("dataset 0f3a…", "model m-12ab…").
    """
    by_licence: dict[str, list[Credits]] = {}
    for each in credits:
        by_licence.setdefault(each.licence, []).append(each)
    total = sum(each.records for group in by_licence.values() for each in group)
    parts = [
        f"# Attribution: {of}",
        f"Made of {total:,} records. Whom they are by, and what their licences ask for, is below; the obligations are "
        "a summary, and the licences' own texts hold.",
    ]
    for licence, group in by_licence.items():
        parts.append(f"## {licence} ({sum(each.records for each in group):,} records)")
        parts.append("\n".join(_about(each) for each in group[0].relied_on))
        if "state changes" in group[0].obligations:
            parts.append(f"Changes: {CHANGES}")
        for each in group:
            parts.append(f"### {each.source} ({each.records:,} records)")
            lines = [f"- {credit.text} ({credit.records:,})" for credit in each.credits]
            if each.uncredited:
                owed = "**To whom is not stated, though the licence asks for it**" if each.owed else "No credit stated"
                lines.append(f"- {owed} ({each.uncredited:,})")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_attribution(path: Path, manifest: pd.DataFrame, allowed: Iterable[str], *, of: str) -> list[Credits]:
    """Write the file of credits for these records, all or nothing, and return what is in it."""
    credits = collect_credits(manifest, allowed)
    durable.write_text(path, attribution_text(credits, of=of))
    return credits


def _relied_on(licence: str, policy: LicencePolicy) -> tuple[Licence, ...]:
    try:
        identifiers = policy.relied_on(licence)
    except ValueError:  # the policy has changed since; what was used is still to be credited
        identifiers = (licence,)
    return tuple(licence_facts(identifier) for identifier in identifiers)


def _about(licence: Licence) -> str:
    named = f"[{licence.name}]({licence.url})" if licence.url else licence.name
    if not licence.known:
        return f"- {named}: what it asks for is not known here; read it."
    return f"- {named}: {', '.join(licence.obligations) or 'asks for nothing'}."


def _credit(provenance: dict[str, str]) -> str:
    said = {name: " ".join(str(text).split()) for name, text in provenance.items() if str(text).strip()}
    if "attribution" in said:
        return _shielded(said["attribution"])
    if not {"author", "url"} & said.keys():
        return ""  # a package, a file or a title alone credits nobody
    parts = [f"“{said['title']}”"] if "title" in said else []
    if "author" in said:
        parts.append(f"by {said['author']}" if parts else said["author"])
    if "url" in said:
        parts.append(said["url"])
    if "package" in said:
        parts.append(f"from the package {' '.join([said['package'], said.get('version', '')]).strip()}")
    if "licence_notice" in said:
        parts.append(f"licence: {said['licence_notice']}")
    return _shielded(", ".join(parts).replace("”, by", "” by"))


def _shielded(text: str) -> str:
    """Text of others as text in Markdown: no markup, no tags."""
    return "".join(f"\\{sign}" if sign in "\\`*<>[]#|" else sign for sign in text)
