"""Arrivals: what every source has now, and how that differs from what was ingested; cheap, as sensors look each minute.

Belongs here: listing all sources, the digests by which a change is seen, and which keys are new, changed, gone or to be
asked for again. Fetching what is new, and what becomes of it, is ``ingestion``.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import pandas as pd

from genai_assets import durable
from genai_assets.datasets.licences import LicencePolicy
from genai_assets.datasets.limits import within_limit
from genai_assets.datasets.sources.closed_batches import ClosedBatchesSource
from genai_assets.datasets.sources.configured import sources_from
from genai_assets.datasets.sources.source import DatasetSource, Listed, SourceUnreadable
from genai_assets.settings import Settings

POLICY = "licence policy"
"""Stands among the digests of the sources: other rules let other pictures in."""


@dataclass(frozen=True)
class Arrivals:
    """What all sources have at one moment.

    Attributes:
        sources: those that were listed, in the order of the settings.
        listings: by source, what of it is to come in (``dataset.limit`` applied), by key.
        there: by source, every key it has, also beyond the limit.
        refused: name, licence and reason of sources that the licence policy refuses as a whole; they were not listed.
        digests: by source, another value when anything of it changed; and the licence policy's.
    """

    sources: Sequence[DatasetSource]
    listings: Mapping[str, Mapping[str, Listed]]
    there: Mapping[str, frozenset[str]]
    refused: Sequence[tuple[str, str, str]] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def batch_name(self, number: int) -> str:
        """The name of what has arrived as a batch, fit for a partition key: ``000007-3fa9c1``."""
        return f"{number:06d}-{durable.digest_json(dict(self.digests))[:6]}"


def look(settings: Settings, sources_asked: Sequence[DatasetSource] | None = None) -> Arrivals:
    """List every source.

    Args:
        settings: licences and the limit.
        sources_asked: what to list in the place of the settings' sources.

    Raises:
        SourceUnreadable: a source cannot be listed. Nothing is known then: not even that it is empty.
        ValueError: the settings ask for a source that there is not.
    """
    policy = LicencePolicy(settings.dataset.allowed_licences)
    sources: list[DatasetSource] = []
    listings: dict[str, dict[str, Listed]] = {}
    there: dict[str, frozenset[str]] = {}
    refused: list[tuple[str, str, str]] = []
    digests = {POLICY: durable.digest_json(sorted(settings.dataset.allowed_licences))[:16]}
    for source in sources_from(settings) if sources_asked is None else sources_asked:
        if reason := policy.refusal(source.licence):
            if isinstance(source, ClosedBatchesSource) and not source.files():
                continue  # nothing was drawn yet, so nothing is refused
            refused.append((source.name, source.licence, reason))
            digests[source.name] = durable.digest_json(["refused", source.licence])[:16]
            continue
        everything = list(source.list())
        there[source.name] = frozenset(item.key for item in everything)
        if len(there[source.name]) < len(everything):
            raise SourceUnreadable(f"{source.name} lists a key more than once; this is a fault of that kind of source")
        chosen = within_limit(
            everything,
            settings.dataset.limit,
            concept=lambda item: item.concept or item.key,
            variant=lambda item: item.variant,
        )
        sources.append(source)
        listings[source.name] = {item.key: item for item in sorted(chosen, key=lambda item: item.key)}
        if chosen:  # a source of nothing differs from none by nothing
            digests[source.name] = _digest(listings[source.name].values())
    return Arrivals(sources, listings, there, refused, digests)


@dataclass(frozen=True)
class Difference:
    """How a source differs from what was ingested of it.

    Attributes:
        wanted: keys to be fetched: new, changed, asked for in vain before, or with a picture that the store lost.
        kept: positions in the last listing of what stays as it is.
        gone: positions of what the source has no more.
    """

    wanted: tuple[str, ...]
    kept: tuple[int, ...]
    gone: tuple[int, ...]


class LastListing:
    """What was ingested: each source's keys with their state, read back from an artifact column by column."""

    def __init__(self, path: Path | None):
        """``path`` is the listing of the newest batch, None before the first."""
        columns = ["source", "key", "state", "id"]
        self._table = pd.read_parquet(path, columns=columns) if path else pd.DataFrame(columns=columns)

    def difference(self, source: str, listing: Mapping[str, Listed], pictures: frozenset[str]) -> Difference:
        """Compare a source with what was ingested of it.

        Args:
            source: its name.
            listing: what it has now, by key.
            pictures: ids that the store holds.
        """
        wanted = dict.fromkeys(listing)
        kept: list[int] = []
        gone: list[int] = []
        for position, key, state, picture in self._rows.get(source, ()):
            found = listing.get(key)
            if found is None:
                gone.append(position)
            elif found.state == state and (not picture or picture in pictures):
                kept.append(position)
                del wanted[key]
        return Difference(tuple(wanted), tuple(kept), tuple(gone))

    def others(self, sources: Iterable[str]) -> tuple[int, ...]:
        """Positions of what came from sources that are not among these."""
        return tuple(row[0] for name in self._rows.keys() - set(sources) for row in self._rows[name])

    @cached_property
    def _rows(self) -> dict[str, list[tuple[int, str, str, str]]]:
        by_source: dict[str, list[tuple[int, str, str, str]]] = {}
        columns = (self._table[name].tolist() for name in ("source", "key", "state", "id"))
        for position, (source, *row) in enumerate(zip(*columns, strict=True)):
            by_source.setdefault(source, []).append((position, *row))
        return by_source


def pictures_of(root: Path) -> frozenset[str]:
    """Ids of all pictures in a store, by its folders alone."""
    try:
        folders = [entry for entry in os.scandir(root) if len(entry.name) == 2]
    except FileNotFoundError:
        return frozenset()
    return frozenset(folder.name + name for folder in folders for name in os.listdir(folder.path) if len(name) == 62)


def _digest(listing: Iterable[Listed]) -> str:
    """Of keys and states; the lengths stand before them, so that no two listings give one text."""
    digest = sha256()
    for item in listing:
        key, state = item.key.encode(errors="surrogatepass"), item.state.encode(errors="surrogatepass")
        digest.update(b"%d:%b%d:%b" % (len(key), key, len(state), state))
    return digest.hexdigest()[:16]
