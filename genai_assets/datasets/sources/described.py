"""Rows to descriptions: one place that reads what a table, a metadata file or a sidecar says of a picture.

Belongs here: which columns are understood, under which names, and the words for what is wrong with one. Where a row
comes from, and where its picture is, the kinds of sources know.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from numbers import Integral
from typing import Any

from genai_assets import durable
from genai_assets.datasets import opt_out
from genai_assets.datasets.sources.source import Description

CAPTION_COLUMNS = ("text", "caption")
"""Columns that hold the caption; the first that is there and not empty counts."""

KNOWN_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "caption": CAPTION_COLUMNS,
    "concept": ("concept",),
    "style": ("style",),
    "licence": ("licence", "license"),
    "category": ("category",),
    "keywords": ("keywords",),
    "synthetic": ("synthetic",),
}
"""Field of a description: the columns it is read from when no other is named."""

CREDIT_COLUMNS = ("author", "attribution", "licence_notice", "title", "url")
"""Columns that are kept as provenance, as what is needed to credit a picture."""

_LABELS = frozenset({"concept", "category"})  # classes are often numbers
_YES, _NO = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0", ""})


class BadDescription(ValueError):
    """A row says something that no description can hold; the message is the reason, fit for a table of refusals."""


def describe(
    row: Mapping[str, Any],
    *,
    style: str,
    licence: str,
    fallback: str,
    columns: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
    signal: str = "",
) -> Description:
    """What a row says of its picture; pure, and cheap enough for millions of rows.

    Text loses spare blanks. A concept that is not stated is the caption's :func:`slug`, else that of ``fallback``.
    Columns in :data:`CREDIT_COLUMNS` go into the provenance. An opt-out is looked for in the whole row.

    Args:
        row: column to value; None and absent are the same.
        style, licence: of a picture that states none.
        fallback: what the picture's concept is called by when there is no caption either: its file's name, its key.
        columns: field of a description (a key of :data:`KNOWN_COLUMNS`) to the column it is read from instead.
        provenance: what the source knows of where the picture is from.
        signal: an opt-out that was found elsewhere, such as beside the picture.

    Raises:
        BadDescription: a value of the wrong kind, by its column.
    """
    columns = columns or {}
    caption = _text(row, "caption", columns)
    return Description(
        caption=caption,
        concept=_text(row, "concept", columns) or slug(caption) or slug(fallback) or fallback,
        style=_text(row, "style", columns) or style,
        licence=_text(row, "licence", columns) or licence,
        category=_text(row, "category", columns),
        keywords=_keywords(row, columns),
        synthetic=_yes_or_no(row, "synthetic", columns),
        opt_out=signal or opt_out.signal_in_fields(row),
        provenance={
            **{name: text for name in CREDIT_COLUMNS if (text := _plain(row.get(name)))},
            **(provenance or {}),
        },
    )


def described_state(description: Description) -> str:
    """16 hexadecimal digits that change with anything a description says: part of a picture's ``Listed.state``."""
    return durable.digest_json({**asdict(description), "added_at": str(description.added_at)})[:16]


def check_columns(columns: Mapping[str, str], available: Collection[str], where: str) -> None:
    """See that what an option maps is a field, and that the column it is mapped to is there.

    Raises:
        ValueError: it names the field or column, and what there is.
    """
    if unknown := [field for field in columns if field not in KNOWN_COLUMNS]:
        raise ValueError(f"columns maps {unknown[0]!r}, which is no field; fields are {', '.join(KNOWN_COLUMNS)}")
    for field, column in columns.items():
        if available and column not in available:
            raise ValueError(
                f"{where} has no column {column!r}, which columns.{field} names; its columns are {listed(available)}"
            )


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them, sorted, at most twenty."""
    names = sorted(map(str, names))
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"


def slug(text: str) -> str:
    """Letters and digits of ``text`` in lower case, the rest dashes: ``"A red cup!"`` gives ``"a-red-cup"``."""
    return re.sub(r"[\W_]+", "-", text.casefold()).strip("-")


def words_of_file_name(name: str) -> str:
    """A file's name as a caption: ``"shelf/red_cup-2.final.png"`` gives ``"red cup 2.final"``."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    return " ".join(re.sub(r"[-_]+", " ", stem).split())


def printable(name: str, *, at_most: int = 200) -> str:
    """A name that may hold anything as text that can be shown and kept: nothing unprintable, no longer than told."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)
    return shown if len(shown) <= at_most else f"{shown[:at_most]}… ({len(name)} characters)"


def _value(row: Mapping[str, Any], field: str, columns: Mapping[str, str]) -> tuple[str, Any]:
    """The column that counts for a field, and its value."""
    names = (columns[field],) if field in columns else KNOWN_COLUMNS[field]
    for name in names:
        value = row.get(name)
        if value is not None and value != "" and value == value:  # a table's missing text may be a NaN
            return name, value
    return names[0], None


def _text(row: Mapping[str, Any], field: str, columns: Mapping[str, str]) -> str:
    name, value = _value(row, field, columns)
    if value is None:
        return ""
    if field in _LABELS and isinstance(value, Integral) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadDescription(f"{name} must be text, not {_shown(value)}")
    return _encodable(" ".join(value.split()), name)


def _keywords(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, ...]:
    name, value = _value(row, "keywords", columns)
    if value is None:
        return ()
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise BadDescription(f"{name} must be a list of texts, or one text with commas, not {_shown(value)}")
    return tuple(dict.fromkeys(_encodable(word.strip(), name) for word in words if word.strip()))


def _yes_or_no(row: Mapping[str, Any], field: str, columns: Mapping[str, str]) -> bool:
    name, value = _value(row, field, columns)
    said = str(value if value is not None else "").strip().casefold()
    if said not in _YES | _NO:
        raise BadDescription(f"{name} must be true or false, not {_shown(value)}")
    return said in _YES


def _encodable(text: str, name: str) -> str:
    if "\x00" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise BadDescription(f"{name} holds characters that are no text; save it as UTF-8")
    return text


def _plain(value: Any) -> str:
    return " ".join(value.encode("utf-8", "replace").decode().split()) if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
