"""Raw data: what has arrived from every source, taken in batch by batch into one manifest.

Belongs here: fetching what is new or changed, keeping and inspecting it, dropping what is gone, and what the licence
policy lets into the manifest. Nothing is judged but licences: corrupt pictures and empty captions go on to validation.
What has arrived at all is ``arrivals``.

A batch is a folder of tables. ``listing.parquet`` is the memory: every key of every source with its state and the
record or refusal that came of it, so that the next batch fetches only what differs. All else is derived from it:
``manifest.parquet`` (the records that live now), ``refused.parquet`` (what was not taken, and why),
``changes.parquet`` (what this batch added, changed and removed) and ``arrivals.parquet`` (the batch that each picture
first came in with). A manifest depends on what the sources have, not on the batches it came in by.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from genai_assets import durable
from genai_assets.datasets import records
from genai_assets.datasets.arrivals import Arrivals, LastListing, pictures_of
from genai_assets.datasets.inspection import Inspections
from genai_assets.datasets.licences import LicencePolicy, canonical_licence
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record
from genai_assets.datasets.sources.source import DatasetSource, Description, Fetched, Listed
from genai_assets.settings import Settings

MANIFEST = "manifest.parquet"
REFUSED = "refused.parquet"
CHANGES = "changes.parquet"
ARRIVALS = "arrivals.parquet"
LISTING = "listing.parquet"

_PROGRESS_EVERY = 100
_MOST_REFUSALS_IN_A_SUMMARY = 50
_ASK_AGAIN = ""  # a state that no source lists: the key is wanted at the next ingestion
_PLACE = ["source", "key"]
_COLUMNS = list(dict.fromkeys([*_PLACE, "state", "refusal", "lives", "batch", *records.COLUMNS]))
"""Of a listing: a record's, empty for a refusal, and what is known of its key."""

OnProgress = Callable[[str, int], None]
"""Told a source's name and how many of its pictures were fetched."""


class NothingNew(Exception):
    """What was asked for again came out as it was: there is no batch to make."""


class MassRemoval(ValueError):
    """More than half of all pictures would vanish at once; the message says which source, and how to allow it."""


@dataclass(frozen=True)
class Batch:
    """One arrival.

    Attributes:
        number: 1 for the first.
        name: names it for people and as a partition key.
        previous: the folder of the batch before it, None for the first.
    """

    number: int
    name: str
    previous: Path | None = None

    @property
    def last_listing(self) -> Path | None:
        """The listing of the batch before it; None when there is none to compare with."""
        listing = self.previous / LISTING if self.previous else None
        return listing if listing and listing.is_file() else None


def is_unchanged(settings: Settings, arrivals: Arrivals, last: LastListing) -> bool:
    """Whether nothing has to be fetched and nothing is gone; neither pictures nor descriptions are read."""
    pictures = pictures_of(settings.paths.pictures)
    differences = [last.difference(name, listing, pictures) for name, listing in arrivals.listings.items()]
    return not any(found.wanted or found.gone for found in differences) and not last.others(arrivals.listings)


def ingest(
    settings: Settings,
    arrivals: Arrivals,
    out: Path,
    *,
    batch: Batch,
    must_differ: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Take in what has arrived since the batch before: fill ``out`` with the tables of this one.

    Pictures go to the content-addressed store of the settings' home and are inspected on the way. A source whose
    licence is not allowed is not even fetched; single records under such a licence are left out. Of several with the
    same picture, style and caption the first is kept, by the order of the sources, then by key.

    Args:
        settings: which licences, where the store is.
        arrivals: what the sources have now.
        out: an existing folder.
        batch: what the batch is called and what came before; pictures that are known keep their ``added_at``.
        must_differ: raise when what was fetched came out as it was in the batch before.
        on_progress: told about progress every hundred pictures and at the end of each source that gave any.

    Returns:
        Figures: ``records``, ``concepts``, ``by_source``, ``by_style``, ``by_licence`` (counts), ``duplicates``
        (records left out), ``refused`` (source, licence, reason and count, the most frequent first), ``refusals``
        (single pictures, how many), ``batch``, ``number``, ``fetched``, ``added``, ``changed``, ``removed`` and
        ``manifest_version``.

    Raises:
        ValueError: nothing is left.
        MassRemoval: more than half of what was there would vanish, and ``dataset.allow_mass_removal`` is not set.
        NothingNew: with ``must_differ``, when nothing does.
        SourceUnreadable: a source ended in the middle. What was fetched stays in the store and is met again.
    """
    before = _read_listing(batch.last_listing)
    with Inspections(settings) as inspections:  # one for all sources: its workers take half a second to start
        intake = _Intake(settings, inspections, before, batch, on_progress)
        for source in arrivals.sources:
            intake.take(source, arrivals.listings[source.name])
    listing = _in_order(intake.rows(), arrivals)
    listing["lives"] = _allowed(listing, settings)
    _check_mass_removal(settings, arrivals, before, listing)
    if must_differ and _says(listing).equals(_says(_in_order(before, arrivals))):
        raise NothingNew

    living = listing[listing["lives"]]
    manifest = _manifest(living)
    refused = _refused(listing, arrivals, settings)
    if manifest.empty:
        reasons = "; ".join(f"{row.source}: {row.reason}" for row in refused.itertuples()) or _nothing_there(arrivals)
        raise ValueError(f"no picture to work with: {reasons}")
    changes = _changes(before[before["lives"]], living)
    records.write_manifest(out / MANIFEST, manifest)
    _write(out / REFUSED, refused)
    _write(out / CHANGES, changes)
    _write(out / ARRIVALS, _first_batches(living, batch))
    _write(out / LISTING, listing)
    return {
        "records": len(manifest),
        "concepts": int(manifest["concept"].nunique()),
        **{f"by_{name}": _counts(manifest[name]) for name in ("source", "style", "licence")},
        "duplicates": len(living) - len(manifest),
        "refused": _most_frequent(refused),
        "refusals": int(refused["count"].sum()),
        "batch": batch.name,
        "number": batch.number,
        "fetched": intake.fetched,
        **{kind: int((changes["change"] == kind).sum()) for kind in ("added", "changed", "removed")},
        "manifest_version": records.manifest_version(manifest),
    }


class _Intake:
    """Gathers the rows of a listing: those that stay, as they are, and those of what is fetched."""

    def __init__(
        self,
        settings: Settings,
        inspections: Inspections,
        before: pd.DataFrame,
        batch: Batch,
        on_progress: OnProgress | None,
    ):
        self._inspections = inspections
        self._store = PictureStore(settings.paths.pictures)
        self._pictures = pictures_of(self._store.root)
        self._before = before
        self._last = LastListing(batch.last_listing)
        self._batch = batch
        self._tell = on_progress or (lambda source, count: None)
        self._now = datetime.now(UTC)
        self._arrived = _first_arrivals(batch.previous)
        self._kept: list[int] = []
        self._new: list[dict[str, Any]] = []
        self.fetched = 0

    def take(self, source: DatasetSource, listing: Mapping[str, Listed]) -> None:
        """Fetch what differs of a source."""
        found = self._last.difference(source.name, listing, self._pictures)
        self._kept += found.kept
        if not found.wanted:
            return
        self._tell(source.name, 0)
        count = 0
        for count, row in enumerate(self._rows_of(source, found.wanted, listing), start=1):
            self._new.append(row)
            if count % _PROGRESS_EVERY == 0:
                self._tell(source.name, count)
        if count % _PROGRESS_EVERY:
            self._tell(source.name, count)
        self.fetched += count

    def rows(self) -> pd.DataFrame:
        """All rows, in no order."""
        kept = self._before.iloc[self._kept]
        if not self._new:
            return kept
        new = _typed(pd.DataFrame(self._new, columns=_COLUMNS))
        return pd.concat([kept, new], ignore_index=True) if len(kept) else new

    def _rows_of(
        self, source: DatasetSource, wanted: Sequence[str], listing: Mapping[str, Listed]
    ) -> Iterator[dict[str, Any]]:
        """One row for each picture that came or was refused; pictures are kept and inspected on the way."""
        open_keys = dict.fromkeys(wanted)
        came: deque[Fetched] = deque()
        refused: list[Fetched] = []

        def pictures() -> Iterator[bytes]:
            for fetched in source.fetch(wanted):
                if fetched.key not in open_keys:
                    continue  # not asked for, or given twice
                del open_keys[fetched.key]
                if fetched.description is None:
                    refused.append(fetched)
                else:
                    came.append(fetched)
                    yield fetched.data

        for inspection in self._inspections.keep_and_inspect(pictures(), self._store):
            fetched = came.popleft()
            description = fetched.description
            assert description is not None
            fields = {name: getattr(description, name) for name in _DESCRIBED}
            fields["opt_out"] = description.opt_out or inspection.opt_out
            fields |= _licence_of(description)
            size = {"width": inspection.width, "height": inspection.height}
            added_at = self._arrived.get(inspection.id) or description.added_at or self._now
            try:
                record = Record(id=inspection.id, source=source.name, added_at=added_at, **size, **fields)
            except ValidationError as error:
                reason = f"its description is not valid: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
                refused.append(Fetched(fetched.key, refusal=reason))
            else:
                yield self._row(source.name, fetched.key, listing[fetched.key].state, record=record)
        for fetched in refused:
            yield self._refused_row(source, fetched, listing[fetched.key].state)

    def _refused_row(self, source: DatasetSource, fetched: Fetched, state: str) -> dict[str, Any]:
        if fetched.passing:
            state = _ASK_AGAIN
            if (known := self._known(source.name, fetched.key)) is not None:
                return known | {"state": state}
        reason = fetched.refusal or "the source gave neither a picture nor a reason"
        return self._row(source.name, fetched.key, state, refusal=reason, licence=source.licence)

    def _known(self, source: str, key: str) -> dict[str, Any] | None:
        """The row of a picture that was there before, if it was one and the store still has it."""
        position = self._positions.get((source, key))
        if position is None or self._before["id"].iloc[position] not in self._pictures:
            return None
        return _rows(self._before.iloc[[position]])[0]

    @cached_property
    def _positions(self) -> dict[tuple[str, str], int]:
        places = zip(self._before["source"], self._before["key"], strict=True)
        return {place: position for position, place in enumerate(places)}

    def _row(
        self, source: str, key: str, state: str, *, record: Record | None = None, refusal: str = "", licence: str = ""
    ) -> dict[str, Any]:
        row = {"key": key, "state": state, "refusal": refusal, "lives": False, "batch": self._batch.name}
        if record is None:
            return row | _NO_RECORD | {"source": source, "licence": licence}
        said = record.model_dump() | {"provenance": json.dumps(record.provenance, sort_keys=True)}
        return row | said | {"keywords": list(record.keywords)}


_DESCRIBED = [name for name in records.COLUMNS if name not in ("id", "source", "width", "height", "added_at")]
_NO_RECORD: dict[str, Any] = {
    **dict.fromkeys(records.COLUMNS, ""),
    "width": 0,
    "height": 0,
    "added_at": pd.NaT,
    "keywords": [],
    "variant": False,
    "synthetic": False,
    "provenance": "{}",
}


def _licence_of(description: Description) -> dict[str, Any]:
    """The licence by its SPDX identifier, so that one licence counts as one; how it was stated is provenance."""
    licence = canonical_licence(description.licence)
    if licence == description.licence:
        return {}
    return {"licence": licence, "provenance": description.provenance | {"licence_stated": description.licence}}


def _read_listing(path: Path | None) -> pd.DataFrame:
    return _typed(records.read_manifest(path)[_COLUMNS] if path else pd.DataFrame(columns=_COLUMNS))


def _typed(listing: pd.DataFrame) -> pd.DataFrame:
    """With the types of a listing, which an empty table or one of refusals alone would not have by itself."""
    times = pd.to_datetime(listing["added_at"], utc=True).astype("datetime64[us, UTC]")
    types = dict.fromkeys(["lives", "variant", "synthetic"], "bool") | {"width": "int64", "height": "int64"}
    return listing.assign(added_at=times).astype(types)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _in_order(listing: pd.DataFrame, arrivals: Arrivals) -> pd.DataFrame:
    """By the order of the sources, then by key; so that which of two doubles is kept depends on nothing else."""
    places = {source.name: place for place, source in enumerate(arrivals.sources)}
    ordered = listing.assign(place=[places.get(name, len(places)) for name in listing["source"]])
    return ordered.sort_values(["place", *_PLACE], ignore_index=True).drop(columns="place")


def _says(listing: pd.DataFrame) -> pd.DataFrame:
    """What a listing says, in a form that compares: without when it came, by which nothing changed."""
    return listing.drop(columns=["batch", "added_at"]).assign(keywords=listing["keywords"].map(tuple))


def _allowed(listing: pd.DataFrame, settings: Settings) -> "pd.Series[bool]":
    policy = LicencePolicy(settings.dataset.allowed_licences)
    allowed = {licence for licence in listing["licence"].unique() if policy.refusal(licence) is None}
    return (listing["refusal"] == "") & listing["licence"].isin(allowed)


def _manifest(living: pd.DataFrame) -> pd.DataFrame:
    unique = living.drop_duplicates(["id", "style", "caption"])[list(records.COLUMNS)]
    first = living.groupby("id")["added_at"].min()
    unique = unique.assign(added_at=unique["id"].map(first))
    return unique.sort_values(["id", "caption", "style"], ignore_index=True)


def _refused(listing: pd.DataFrame, arrivals: Arrivals, settings: Settings) -> pd.DataFrame:
    """Source, key, licence, reason and count of all that was not taken; a whole source has no key and no count."""
    policy = LicencePolicy(settings.dataset.allowed_licences)
    rows: list[tuple[str, str, str, str, int | None]] = [
        (name, "", licence, reason, None) for name, licence, reason in arrivals.refused
    ]
    left = listing.loc[~listing["lives"], ["source", "key", "licence", "refusal"]]
    reasons = {licence: policy.refusal(licence) or "" for licence in left["licence"].unique()}
    rows += [(source, key, said, why or reasons[said], 1) for source, key, said, why in left.itertuples(index=False)]
    table = pd.DataFrame(rows, columns=["source", "key", "licence", "reason", "count"])
    return table.astype({**dict.fromkeys(["source", "key", "licence", "reason"], "string"), "count": "Int64"})


def _most_frequent(refused: pd.DataFrame) -> list[dict[str, Any]]:
    """The refusals by source, licence and reason, for a summary that stays short."""
    columns = ["source", "licence", "reason"]
    whole = refused.loc[refused["count"].isna(), columns].assign(count=None)
    single = refused[refused["count"].notna()].groupby(columns, as_index=False)["count"].sum()
    rows = sorted(_rows(pd.DataFrame(single)), key=lambda row: (-row["count"], *(row[name] for name in columns)))
    rows = [*_rows(whole), *rows][:_MOST_REFUSALS_IN_A_SUMMARY]
    return [{**row, "count": None if row["count"] is None else int(row["count"])} for row in rows]


def _changes(before: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """What differs between the records that lived and those that live: change, source, key, id; sorted."""
    said = [name for name in records.COLUMNS if name not in ("id", "added_at")]

    def by_place(listing: pd.DataFrame) -> dict[tuple[str, str], tuple[str, ...]]:
        told = listing[said].assign(keywords=listing["keywords"].map(tuple)).itertuples(index=False)
        places = zip(listing["source"], listing["key"], strict=True)
        return {place: (one, repr(tuple(row))) for place, one, row in zip(places, listing["id"], told, strict=True)}

    old, new = by_place(before), by_place(now)
    rows = [("added", *place, new[place][0]) for place in new.keys() - old.keys()]
    rows += [("changed", *place, new[place][0]) for place in new.keys() & old.keys() if new[place] != old[place]]
    rows += [("removed", *place, old[place][0]) for place in old.keys() - new.keys()]
    return pd.DataFrame(sorted(rows), columns=["change", *_PLACE, "id"], dtype="string")


def _first_arrivals(previous: Path | None) -> dict[str, datetime]:
    """When each picture of the batch before first arrived, by id."""
    if previous is None:
        return {}
    manifest = pd.read_parquet(previous / MANIFEST, columns=["id", "added_at"])
    first = manifest.groupby("id")["added_at"].min()
    return {str(picture): moment for picture, moment in zip(first.index, first.tolist(), strict=True)}


def _first_batches(living: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    """Each living picture's id and the batch that it first came in with."""
    known: dict[str, str] = {}
    if batch.previous and (batch.previous / ARRIVALS).is_file():
        table = pd.read_parquet(batch.previous / ARRIVALS)
        known = dict(zip(table["id"], table["batch"], strict=True))
    ids = sorted(living["id"].unique())
    return pd.DataFrame({"id": ids, "batch": [known.get(one, batch.name) for one in ids]}, dtype="string")


def _check_mass_removal(settings: Settings, arrivals: Arrivals, before: pd.DataFrame, now: pd.DataFrame) -> None:
    """Stop when what lived is gone by the half, though nobody changed a setting.

    Counted are pictures that their source no longer has, or can no longer give; not those of sources that the settings
    name no more, of a limit or of a licence. A picture that is still there under another key is not gone.
    """
    lived = before[before["lives"] & before["source"].isin(list(arrivals.there))]
    given = set(zip(*(now.loc[now["refusal"] == "", name] for name in _PLACE), strict=True))
    gone = [
        (source, picture)
        for source, key, picture in zip(lived["source"], lived["key"], lived["id"], strict=True)
        if (source, key) not in given
        and not (key in arrivals.there[source] and key not in arrivals.listings[source])  # beyond the limit
    ]
    still = set(now.loc[now["refusal"] == "", "id"])
    lost = Counter(source for source, picture in gone if picture not in still)
    if settings.dataset.allow_mass_removal or 2 * lost.total() <= int(before["lives"].sum()):
        return
    where = ", ".join(f"{count:,} of {name}" for name, count in lost.most_common(3))
    raise MassRemoval(
        f"{lost.total():,} of {int(before['lives'].sum()):,} pictures would be removed at once ({where}), as if a disk "
        "was not there; nothing was changed. If they are meant to go, run once with dataset.allow_mass_removal = true "
        "(GENAI_DATASET__ALLOW_MASS_REMOVAL=true)"
    )


def _nothing_there(arrivals: Arrivals) -> str:
    empty = [
        name for name, listing in arrivals.listings.items() if not listing and name not in ("feedback", "synthetic")
    ]
    if empty:
        return f"nothing is in {', '.join(empty)}"
    return "set dataset.folder, dataset.sources or dataset.icon_sets"


def _write(path: Path, table: pd.DataFrame) -> None:
    with durable.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
