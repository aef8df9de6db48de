"""Licences: reading what a source states, deciding whether it may be trained on, and what it obliges to.

Belongs here: SPDX identifiers and expressions (https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/), how
people write them instead, the policy's decision with its reason, and one table of what the licences of pictures ask
for. Which licences a team allows is a setting; what a source's licence is, the source says. The table is a reader's
summary for cards and lists of credits, and no legal advice. Whether a model is a derivative of the pictures it learnt
from is not settled, and is not decided here: obligations are listed, so that they can be kept.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

Obligation = Literal[
    "attribution",
    "keep the notice",
    "state changes",
    "share alike",
    "non-commercial",
    "no derivatives",
]
"""What a licence asks for: credit, its text and copyright notice passed on, a word on what was changed, the same
licence for what is made of it, no commercial use, no changed versions."""

OBLIGATIONS: tuple[Obligation, ...] = get_args(Obligation)


class UnreadableLicence(ValueError):
    """What is stated is no SPDX expression, and no other spelling that is known; the message says what is wrong."""


@dataclass(frozen=True)
class Licence:
    """A licence and what it asks for.

    Attributes:
        id: SPDX identifier.
        name: full name.
        url: its text, or a page that says it in short; empty for ``LicenseRef-…``.
        obligations: in the order of :data:`OBLIGATIONS`.
        known: false when nothing but the identifier is known here; its obligations must be read by a person.
    """

    id: str
    name: str
    url: str
    obligations: tuple[Obligation, ...]
    known: bool = True


@dataclass(frozen=True)
class Reading:
    """A stated licence as it was understood.

    Attributes:
        expression: a canonical SPDX expression: the usual case, no deprecated identifiers.
        note: what was taken for what, when the statement was written otherwise; else empty.
    """

    expression: str
    note: str = ""


@dataclass(frozen=True)
class _Name:
    """A single licence: its identifier, ``+`` or not, and the exception it is granted with."""

    id: str
    or_later: bool = False
    exception: str = ""

    def __str__(self) -> str:
        return f"{self.id}{'+' * self.or_later}{f' WITH {self.exception}' if self.exception else ''}"


@dataclass(frozen=True)
class _Both:
    """AND or OR of several terms."""

    operator: Literal["AND", "OR"]
    terms: tuple["_Name | _Both", ...]

    def __str__(self) -> str:
        inner = (
            f"({term})" if isinstance(term, _Both) and self.operator == "AND" else str(term) for term in self.terms
        )
        return f" {self.operator} ".join(inner)


_Term = _Name | _Both


def read_licence(stated: str) -> Reading:
    """Understand a stated licence: an SPDX expression, a name people use, or the address of a Creative Commons deed.

    Identifiers are read without regard to case (SPDX 2.3, annex D.2), deprecated ones as what replaced them
    (``GPL-3.0`` as ``GPL-3.0-only``).

    Raises:
        UnreadableLicence: it is empty, says no version, or is none of these.
    """
    expression = str(_parse(stated))
    note = "" if expression == stated.strip() else f"{' '.join(stated.split())} was read as {expression}"
    return Reading(expression, note)


def canonical_licence(stated: str) -> str:
    """The canonical expression of a stated licence, or the statement without spare blanks when it cannot be read."""
    try:
        return read_licence(stated).expression
    except UnreadableLicence:
        return " ".join(stated.split())


def licence_facts(identifier: str) -> Licence:
    """What is known of a single licence by its SPDX identifier, in any case; ``known`` is false when nothing is."""
    name, _, exception = identifier.partition(" WITH ")
    canonical = _canonical(name.rstrip("+"))
    if found := _KNOWN.get(canonical.casefold()):
        if not exception:
            return found
        return Licence(identifier, f"{found.name}, with {exception}", found.url, found.obligations)
    link = "" if canonical.startswith("LicenseRef-") else f"https://spdx.org/licenses/{canonical}.html"
    return Licence(canonical, canonical, link, (), known=False)


class LicencePolicy:
    """Allows the SPDX identifiers it is given and refuses all others, also the ones nobody thought of.

    Of ``A OR B`` one side must be allowed, of ``A AND B`` both. An exception only adds permissions, so
    ``A WITH exception`` is allowed where ``A`` is, and a licence "or later" where the version named is.
    """

    def __init__(self, allowed: Iterable[str]):
        # What cannot be read may still be an identifier of the team's own; it is compared as it stands.
        self._allowed = {licence.casefold(): licence for licence in map(canonical_licence, allowed)}

    def refusal(self, licence: str) -> str | None:
        """Why pictures under ``licence`` are refused; None when they are allowed."""
        if not licence.strip():
            return "no licence is stated; state one, or leave the pictures out"
        if licence.strip().casefold() in self._allowed:
            return None
        try:
            term = _parse(licence)
        except UnreadableLicence as error:
            return f"licence {' '.join(licence.split())[:80]} is not allowed: {error} (allowed: {self._names})"
        if self._choice(term) is not None:
            return None
        if isinstance(term, _Name):
            return f"licence {term} is not allowed (allowed: {self._names})"
        return f"licence {term} is not allowed, for want of {self._lacking(term)} (allowed: {self._names})"

    def relied_on(self, licence: str) -> tuple[str, ...]:
        """The licences under which pictures are taken: all of an AND; of an OR the allowed side that asks for least.

        Raises:
            ValueError: ``licence`` is refused; the message is the reason.
        """
        if reason := self.refusal(licence):
            raise ValueError(reason)
        try:
            chosen = self._choice(_parse(licence))
        except UnreadableLicence:
            return (self._allowed[licence.strip().casefold()],)  # it is allowed as it stands
        assert chosen is not None
        return tuple(dict.fromkeys(str(name) for name in chosen))

    @property
    def _names(self) -> str:
        return ", ".join(self._allowed.values())

    def _allows(self, name: _Name) -> bool:
        versions = {name.id, str(name), str(_Name(name.id, name.or_later))}
        if name.id.endswith("-or-later"):
            versions.add(f"{name.id.removesuffix('-or-later')}-only")
        return any(version.casefold() in self._allowed for version in versions)

    def _lacking(self, term: _Term) -> str:
        """The single licences that stand in the way, in words; empty when none does."""
        if self._choice(term) is not None:
            return ""
        if isinstance(term, _Name):
            return str(term)
        return f" {term.operator.lower()} ".join(filter(None, map(self._lacking, term.terms)))

    def _choice(self, term: _Term) -> tuple[_Name, ...] | None:
        """The single licences to rely on; None when the policy allows no such choice."""
        if isinstance(term, _Name):
            return (term,) if self._allows(term) else None
        if str(term).casefold() in self._allowed:  # a team may allow an expression as a whole
            return _names_of(term)
        choices = [self._choice(part) for part in term.terms]
        allowed = [choice for choice in choices if choice is not None]
        if term.operator == "AND":
            return tuple(name for choice in allowed for name in choice) if len(allowed) == len(choices) else None
        return min(allowed, key=lambda choice: len(obligations_of(str(name) for name in choice)), default=None)


def _names_of(term: _Term) -> tuple[_Name, ...]:
    return (term,) if isinstance(term, _Name) else tuple(name for part in term.terms for name in _names_of(part))


def obligations_of(identifiers: Iterable[str]) -> tuple[Obligation, ...]:
    """Everything that these licences together ask for, in the order of :data:`OBLIGATIONS`."""
    asked = {obligation for identifier in identifiers for obligation in licence_facts(identifier).obligations}
    return tuple(obligation for obligation in OBLIGATIONS if obligation in asked)


# Reading


_TOKEN = re.compile(r"\s*(?:([()])|([A-Za-z0-9][A-Za-z0-9.:-]*\+?))")
_DEEPEST = 20


@lru_cache(maxsize=4096)
def _parse(stated: str) -> _Term:
    """The term of a stated licence.

    Raises:
        UnreadableLicence: as of :func:`read_licence`.
    """
    text = " ".join(stated.split())
    if not text:
        raise UnreadableLicence("no licence is stated")
    if len(text) > 500:
        raise UnreadableLicence(f"{len(text)} characters are no SPDX expression")
    if known := _spelling(text):
        return _Name(known)
    if re.fullmatch(r"(?:https?://)?(?:www\.)?[\w-]+(?:\.[\w-]+)+/\S*", text):
        raise UnreadableLicence("it is not the address of a licence that is known; state its SPDX identifier")
    if re.fullmatch(r"cc[ -]?by(?:[ -]?(?:nc|sa|nd))*", text, re.IGNORECASE):
        raise UnreadableLicence(f"its version is not stated, for example {text.upper().replace(' ', '-')}-4.0")
    tokens = _tokens(text)
    term, rest = _any_of(tokens, 0)
    if rest:
        raise UnreadableLicence(f"it is no SPDX expression: {' '.join(rest)!r} is left over")
    return term


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UnreadableLicence(f"it is no SPDX expression: {text[position:].strip()[:1]!r} is not of one")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


def _any_of(tokens: list[str], depth: int) -> tuple[_Term, list[str]]:
    return _joined("OR", _all_of, tokens, depth)


def _all_of(tokens: list[str], depth: int) -> tuple[_Term, list[str]]:
    return _joined("AND", _single, tokens, depth)


def _joined(
    operator: Literal["AND", "OR"],
    part: Callable[[list[str], int], tuple[_Term, list[str]]],
    tokens: list[str],
    depth: int,
) -> tuple[_Term, list[str]]:
    first, tokens = part(tokens, depth)
    terms = [first]
    while tokens and tokens[0] in (operator, operator.lower()):
        following, tokens = part(tokens[1:], depth)
        terms.append(following)
    return (_Both(operator, tuple(terms)) if len(terms) > 1 else first), tokens


def _single(tokens: list[str], depth: int) -> tuple[_Term, list[str]]:
    if not tokens or tokens[0] == ")" or tokens[0].upper() in ("AND", "OR", "WITH"):
        raise UnreadableLicence(f"a licence is missing before {' '.join(tokens) or 'its end'}")
    if tokens[0] == "(":
        if depth == _DEEPEST:
            raise UnreadableLicence(f"it has more than {_DEEPEST} brackets in one another")
        inner, rest = _any_of(tokens[1:], depth + 1)
        if not rest or rest[0] != ")":
            raise UnreadableLicence("it has a bracket that is not closed")
        return inner, rest[1:]
    written, rest = tokens[0], tokens[1:]
    name = _Name(_canonical(written.removesuffix("+")), or_later=written.endswith("+"))
    if name.or_later and (later := name.id.replace("-only", "-or-later")) != name.id:
        name = _Name(later)  # GPL-2.0+ is written GPL-2.0-or-later by now
    if rest and rest[0] in ("WITH", "with"):
        if len(rest) < 2 or rest[1] in ("(", ")"):
            raise UnreadableLicence(f"the exception is missing after {name} WITH")
        return _Name(name.id, name.or_later, rest[1]), rest[2:]
    return name, rest


def _canonical(identifier: str) -> str:
    """The usual case of an identifier, deprecated ones as their successors; unknown ones as they stand."""
    folded = identifier.casefold()
    if folded in _DEPRECATED:
        return _DEPRECATED[folded]
    if folded in _KNOWN:
        return _KNOWN[folded].id
    if ported := re.fullmatch(r"cc-by((?:-nc|-nd|-sa)*)-(\d\.\d)-([a-z]{2,4})", folded):
        return f"CC-BY{ported[1].upper()}-{ported[2]}-{ported[3].upper()}"
    if folded.startswith("licenseref-"):
        return f"LicenseRef-{identifier[len('licenseref-') :]}"
    return identifier


def _spelling(text: str) -> str | None:
    """The identifier behind a name or address that is no SPDX expression."""
    folded = text.casefold().strip(" .")
    if deed := re.fullmatch(
        r"(?:https?://)?(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)"
        r"(?:/([a-z]{2,4}))?(?:/(?:deed|legalcode)[\w.-]*)?/?",
        folded,
    ):
        if deed[1] == "publicdomain":
            return {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}.get(deed[2])
        kind, *conditions = deed[2].split("-")
        ported = f"-{deed[4]}" if deed[4] else ""
        # The first deeds were called by-nd-nc; the identifiers are in alphabetical order.
        return _canonical(f"cc-{'-'.join(['by', *sorted(conditions)])}-{deed[3]}{ported}") if kind == "by" else None
    words = re.sub(r"[\s_,-]+", " ", re.sub(r"\((?:the )?\"?([^)]*)\"?\)", " ", folded)).strip()
    words = re.sub(r"^the | licen[cs]e(?= |$)| version(?= )|(?<= )v(?=\d)", "", words).strip()
    words = re.sub(r" (?:international|unported)$", "", words)
    words = words.replace("creative commons ", "cc ").replace("attribution", "by").replace("sharealike", "sa")
    words = words.replace("share alike", "sa").replace("noncommercial", "nc").replace("non commercial", "nc")
    words = words.replace("noderivatives", "nd").replace("noderivs", "nd").replace("no derivatives", "nd")
    if by := re.fullmatch(r"cc ?by((?: (?:nc|sa|nd))*) (\d\.\d)", words):
        return _canonical(f"cc-{'-'.join(['by', *sorted(by[1].split())])}-{by[2]}")
    return _SPELLINGS.get(words)


# Facts

_SPELLINGS = {
    "cc0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "cc0 1.0 universal": "CC0-1.0",
    "cc zero": "CC0-1.0",
    "public domain mark 1.0": "CC-PDM-1.0",
    "apache 2.0": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache software 2.0": "Apache-2.0",
    "bsd 3 clause": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "bsd 2 clause": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "mit": "MIT",
    "expat": "MIT",
    "isc": "ISC",
    "zlib": "Zlib",
    "unlicense": "Unlicense",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gnu general public 3.0": "GPL-3.0-only",
    "mpl 2.0": "MPL-2.0",
    "mozilla public 2.0": "MPL-2.0",
    "sil open font 1.1": "OFL-1.1",
    "ofl 1.1": "OFL-1.1",
    "odc by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "open government 3.0": "OGL-UK-3.0",
}
"""Names in use that are no identifiers, without "the", "licence", "version" and dashes."""


def _table() -> dict[str, Licence]:
    passed_on: tuple[Obligation, ...] = ("attribution", "keep the notice")
    rows: list[tuple[str, str, tuple[Obligation, ...]]] = [
        ("0BSD", "BSD Zero Clause License", ()),
        ("Unlicense", "The Unlicense", ()),
        ("MIT-0", "MIT No Attribution", ()),
        ("PDDL-1.0", "Open Data Commons Public Domain Dedication and License 1.0", ()),
        ("MIT", "MIT License", passed_on),
        ("ISC", "ISC License", passed_on),
        ("Zlib", "zlib License", ("keep the notice", "state changes")),
        ("BSD-2-Clause", 'BSD 2-Clause "Simplified" License', passed_on),
        ("BSD-3-Clause", 'BSD 3-Clause "New" or "Revised" License', passed_on),
        ("Apache-2.0", "Apache License 2.0", (*passed_on, "state changes")),
        ("OFL-1.1", "SIL Open Font License 1.1", (*passed_on, "share alike")),
        ("MPL-2.0", "Mozilla Public License 2.0", (*passed_on, "share alike")),
        ("LAL-1.3", "Licence Art Libre 1.3", (*passed_on, "state changes", "share alike")),
        ("ODC-By-1.0", "Open Data Commons Attribution License 1.0", passed_on),
        ("ODbL-1.0", "Open Data Commons Open Database License 1.0", (*passed_on, "share alike")),
        ("CDLA-Permissive-2.0", "Community Data License Agreement Permissive 2.0", ("keep the notice",)),
        ("CDLA-Sharing-1.0", "Community Data License Agreement Sharing 1.0", (*passed_on, "share alike")),
        ("OGL-UK-3.0", "Open Government Licence 3.0", ("attribution",)),
        ("etalab-2.0", "Etalab Open License 2.0", ("attribution",)),
    ]
    for family, versions in (
        ("GPL", ("2.0", "3.0")),
        ("LGPL", ("2.1", "3.0")),
        ("AGPL", ("3.0",)),
        ("GFDL", ("1.2", "1.3")),
    ):
        for version in versions:
            for suffix, words in (("only", "only"), ("or-later", "or later")):
                said = f"GNU {family} {version} {words}"
                rows.append((f"{family}-{version}-{suffix}", said, (*passed_on, "state changes", "share alike")))
    table = [
        Licence(identifier, name, f"https://spdx.org/licenses/{identifier}.html", obligations)
        for identifier, name, obligations in rows
    ]
    table.append(
        Licence(
            "CC0-1.0", "Creative Commons Zero 1.0 Universal", "https://creativecommons.org/publicdomain/zero/1.0/", ()
        )
    )
    table.append(
        Licence("CC-PDM-1.0", "Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/", ())
    )
    parts: dict[str, tuple[str, tuple[Obligation, ...]]] = {
        "NC": ("NonCommercial", ("non-commercial",)),
        "ND": ("NoDerivatives", ("no derivatives",)),
        "SA": ("ShareAlike", ("share alike",)),
    }
    for kind in ("", "NC", "ND", "SA", "NC-ND", "NC-SA"):
        for version in ("1.0", "2.0", "2.5", "3.0", "4.0"):
            conditions = [parts[part] for part in kind.split("-") if part]
            name = "-".join(["Attribution", *(name for name, _ in conditions)])
            asked = {"attribution", "keep the notice", "state changes"} | {it for _, more in conditions for it in more}
            slug = "-".join(["by", *(part.lower() for part in kind.split("-") if part)])
            table.append(
                Licence(
                    f"CC-{slug.upper()}-{version}",
                    f"Creative Commons {name} {version}",
                    f"https://creativecommons.org/licenses/{slug}/{version}/",
                    tuple(obligation for obligation in OBLIGATIONS if obligation in asked),
                )
            )
    table.append(Licence("LicenseRef-own", "the team's own pictures", "", ()))
    table.append(Licence("LicenseRef-own-output", "drawn by the team's own model", "", ()))
    return {licence.id.casefold(): licence for licence in table}


_KNOWN: Mapping[str, Licence] = _table()

_DEPRECATED: Mapping[str, str] = {
    f"{family}-{version}{plus}".casefold(): f"{family}-{version}-{'or-later' if plus else 'only'}"
    for family, versions in (
        ("GPL", ("2.0", "3.0")),
        ("LGPL", ("2.1", "3.0")),
        ("AGPL", ("3.0",)),
        ("GFDL", ("1.2", "1.3")),
    )
    for version in versions
    for plus in ("", "+")
}
"""Identifiers that SPDX replaced, by what replaced them."""
