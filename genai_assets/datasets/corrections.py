"""Corrections of captions: what people, or a model they chose, made of what a source says.

Belongs here: the log of people's corrections, which is only ever added to, and how captions are replaced in a manifest.
The source's own caption is never lost: it stands in the record's provenance, and a correction can be forgotten again.
A record keeps its concept, so that no caption moves it to another split.

Where corrections come from is ``label_studio``; what a model says is ``auto_captions``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy import exc

from genai_assets import durable
from genai_assets.database import Database, UtcDateTime
from genai_assets.datasets.personal_data import find_personal_data, mask
from genai_assets.datasets.records import CAPTION_ORIGINAL

CAPTION_BY = "caption_by"
"""Key of a record's provenance: who wrote the caption, when it was not the source."""

FEWEST_OF_AN_ID = 8
"""So many digits of a picture's id name it on the command line."""


class LogUnreadable(RuntimeError):
    """The log of corrections cannot be read or written; the message names it."""


class NoSuchCorrection(ValueError):
    """There is nothing to forget under this id."""


@dataclass(frozen=True)
class Correction:
    """One person's caption for one picture.

    Attributes:
        picture: the record's id.
        original: the source's caption at that time; when the source says something else by now, that counts.
        shown: the caption the person saw: the source's, a model's, or an earlier correction.
        caption: what they made of it.
        by: who, as the tool names them.
        at: when, UTC.
        task: the tool's number for it.
    """

    picture: str
    original: str
    shown: str
    caption: str
    by: str
    at: datetime
    task: str

    @property
    def key(self) -> str:
        """Digest of the correction, by which it is known again."""
        said = [self.picture, self.original, self.caption, self.by, self.at.astimezone(UTC).isoformat(), self.task]
        return durable.digest_json(said)


@dataclass(frozen=True)
class AutoCaption:
    """What a model said of a picture.

    Attributes:
        caption: not empty.
        model: name and digest of the model.
    """

    caption: str
    model: str


@dataclass(frozen=True)
class Conflict:
    """Two people's captions for one picture, neither of whom had seen the other's; the newer one counts."""

    used: Correction
    unused: Correction


@dataclass(frozen=True)
class Added:
    """What became of corrections that were handed to the log.

    Attributes:
        added: how many are new.
        known: how many the log had already; they change nothing, forgotten ones stay forgotten.
        conflicts: see :class:`Conflict`.
    """

    added: int
    known: int
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        number: they count up.
        kind: a correction, or the forgetting of all of the picture's corrections before it.
        picture: the record's id.
        correction: None for a forgetting.
        import_digest: SHA-256 of the file it came in, empty for a forgetting.
        logged_at: when it came into the log, UTC.
    """

    number: int
    kind: Literal["correct", "forget"]
    picture: str
    correction: Correction | None
    import_digest: str
    logged_at: datetime


_metadata = sa.MetaData()

_log = sa.Table(
    "corrections",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(64), unique=True, nullable=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("picture", sa.String(64), nullable=False, index=True),
    sa.Column("original", sa.Text, nullable=False, default=""),
    sa.Column("shown", sa.Text, nullable=False, default=""),
    sa.Column("caption", sa.Text, nullable=False, default=""),
    sa.Column("by", sa.Text, nullable=False, default=""),
    sa.Column("at", UtcDateTime(timezone=True), nullable=True),
    sa.Column("task", sa.Text, nullable=False, default=""),
    sa.Column("import_digest", sa.String(64), nullable=False, default=""),
    sa.Column("logged_at", UtcDateTime(timezone=True), nullable=False),
)


class CorrectionLog(Database):
    """Everything people ever said of captions, in the order in which it came; nothing is changed or removed.

    Args:
        url: SQLAlchemy URL.
    """

    def __init__(self, url: str):
        super().__init__(url, _metadata)

    def add(self, corrections: Iterable[Correction], *, import_digest: str) -> Added:
        """Keep corrections, all or none. One that is in the log already is passed over.

        Raises:
            LogUnreadable: the database is damaged, locked or full; nothing was added.
        """
        given = sorted({one.key: one for one in corrections}.values(), key=lambda one: (one.at, one.key))
        if not given:
            return Added(0, 0, ())
        try:
            entries = self.entries()
            self._create_tables()
            known = {entry.correction.key for entry in entries if entry.correction}
            new = [one for one in given if one.key not in known]
            rows = [
                {
                    "key": one.key,
                    "kind": "correct",
                    "picture": one.picture,
                    "original": one.original,
                    "shown": one.shown,
                    "caption": one.caption,
                    "by": one.by,
                    "at": one.at,
                    "task": one.task,
                    "import_digest": import_digest,
                    "logged_at": datetime.now(UTC),
                }
                for one in new
            ]
            if rows:
                with self._engine.begin() as connection:
                    connection.execute(_log.insert(), rows)
        except exc.DBAPIError as error:
            raise self._unreadable(error) from error
        return Added(len(new), len(given) - len(new), _conflicts(effective(entries), new))

    def forget(self, picture: str) -> tuple[str, int]:
        """Let a picture's corrections no longer count, so that its source's caption does; the log keeps them.

        Args:
            picture: the id, or the first eight digits or more of it.

        Returns:
            The whole id, and how many corrections counted until now.

        Raises:
            NoSuchCorrection: no correction of such a picture counts, or the digits name more than one.
            LogUnreadable: as of :meth:`add`.
        """
        counting = effective(self.entries())
        found = sorted({id_ for id_, _ in counting if id_.startswith(picture)})
        if len(picture) < FEWEST_OF_AN_ID:
            raise NoSuchCorrection(
                f"{picture!r} is too short: give at least {FEWEST_OF_AN_ID} digits of a picture's id"
            )
        if not found:
            raise NoSuchCorrection(f"no correction of a picture {picture}… counts; see `genai data captions log`")
        if len(found) > 1:
            raise NoSuchCorrection(f"{picture!r} names {len(found)} pictures, {', '.join(found)}: give more digits")
        row = {"kind": "forget", "picture": found[0], "logged_at": datetime.now(UTC)}
        try:
            with self._engine.begin() as connection:
                connection.execute(_log.insert(), [row])
        except exc.DBAPIError as error:
            raise self._unreadable(error) from error
        return found[0], sum(id_ == found[0] for id_, _ in counting)

    def entries(self) -> list[Entry]:
        """The whole log in order; empty when there is none yet.

        Raises:
            LogUnreadable: it is there and cannot be read.
        """
        try:
            rows = self._rows(sa.select(_log).order_by(_log.c.number))
        except exc.DBAPIError as error:
            raise self._unreadable(error) from error
        return [
            Entry(
                row.number,
                row.kind,
                row.picture,
                Correction(row.picture, row.original, row.shown, row.caption, row.by, row.at, row.task)
                if row.kind == "correct"
                else None,
                row.import_digest,
                row.logged_at,
            )
            for row in rows
        ]

    def effective(self) -> "Effective":
        """The corrections that count, see :func:`effective`.

        Raises:
            LogUnreadable: as of :meth:`entries`.
        """
        return effective(self.entries())

    def _unreadable(self, error: exc.DBAPIError) -> LogUnreadable:
        return LogUnreadable(
            f"the log of corrections {self.name} cannot be used: {error.orig}. It is the only copy of what people "
            "corrected: restore it from a backup, or import their files anew, rather than remove it"
        )


Effective = dict[tuple[str, str], Correction]
"""The corrections that count, by picture and the source's caption they were made for."""


def effective(entries: Sequence[Entry]) -> Effective:
    """Of each picture and source's caption the correction that was made last, among those after the last forgetting."""
    forgotten = {entry.picture: entry.number for entry in entries if entry.kind == "forget"}
    found: Effective = {}
    for entry in entries:
        one = entry.correction
        if one and entry.number > forgotten.get(entry.picture, 0):
            place = (one.picture, one.original)
            if place not in found or one.at >= found[place].at:
                found[place] = one
    return found


def corrections_version(counting: Effective) -> str:
    """Digest (16 hexadecimal digits) of the corrections that count: what a stage's inputs say of them."""
    return durable.digest_json(sorted(one.key for one in counting.values()))[:16]


def apply_captions(
    manifest: pd.DataFrame, corrections: Effective, auto: Mapping[str, AutoCaption] | None = None
) -> pd.DataFrame:
    """A manifest in which people's corrections, and a model's captions where the source gave none, stand.

    A correction goes before a model's caption; each counts only for the caption the source gave when it was made.
    The source's caption and who wrote the present one go into the provenance. A record without a concept that gets a
    caption gets a concept of its own, made of its id, so that a later caption never moves it. Everything else is as it
    was; corrections of pictures that are not there are passed over. Done twice, it changes nothing more.

    Args:
        manifest: as of :func:`records.to_frame`; not changed.
        corrections: as of :func:`effective`.
        auto: what a model said, by picture; used for blank captions only.

    Returns:
        A new table, sorted as manifests are.
    """
    auto = auto or {}
    changed = manifest.copy()
    concerned = manifest["id"].isin({picture for picture, _ in corrections} | set(auto)).to_numpy()
    for row in np.flatnonzero(concerned).tolist():
        record = manifest.iloc[row]
        provenance: dict[str, str] = json.loads(record["provenance"])
        original = provenance[CAPTION_ORIGINAL] if CAPTION_ORIGINAL in provenance else record["caption"] or ""
        caption, by = _caption_of(record["id"], original, corrections, auto)
        if caption != original:
            provenance |= {CAPTION_ORIGINAL: original, CAPTION_BY: by}
            label = changed.index[row]
            changed.at[label, "caption"] = caption
            changed.at[label, "concept"] = record["concept"] or f"picture {record['id'][:16]}"
            changed.at[label, "provenance"] = json.dumps(provenance, sort_keys=True)
    return changed.sort_values(["id", "caption"], ignore_index=True)


def _caption_of(
    picture: str, original: str, corrections: Effective, auto: Mapping[str, AutoCaption]
) -> tuple[str, str]:
    """The caption that counts for a picture of which its source says ``original``, and who wrote it."""
    if correction := corrections.get((picture, original)):
        return correction.caption, told_person(correction)
    if picture in auto and not original.strip():
        return auto[picture].caption, f"model {auto[picture].model}"
    return original, ""


def told_person(correction: Correction) -> str:
    """Who corrected, fit for a manifest that others read: an e-mail address is masked; the log has it whole."""
    by = mask(correction.by, find_personal_data(correction.by, ["e-mail address"]))
    return f"annotator {by}, {correction.at.astimezone(UTC):%Y-%m-%d}"


def _conflicts(before: Effective, new: Sequence[Correction]) -> tuple[Conflict, ...]:
    """Where a new correction meets another one that its maker had not seen; ``new`` in order of time."""
    counting, found = dict(before), []
    for one in new:
        place = (one.picture, one.original)
        other = counting.get(place)
        newer = other is None or one.at >= other.at
        # Who saw the other's caption and changed it meant to.
        if other and other.caption != one.caption and not (newer and one.shown == other.caption):
            found.append(Conflict(one, other) if newer else Conflict(other, one))
        if newer:
            counting[place] = one
    return tuple(found)
