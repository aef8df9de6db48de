"""A list of web addresses as a source: a table whose rows name pictures on the web and say what they show.

Belongs here: reading the list, what of a row counts as its state, and which pictures a run still has to ask for. How
servers are asked is ``downloads``, which addresses may be asked is ``addresses``, what columns mean is ``described``.
"""

import csv
import functools
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from aiohttp.abc import AbstractResolver
from pydantic import Field

import genai_assets
from genai_assets import durable
from genai_assets.datasets.sources import addresses
from genai_assets.datasets.sources.described import (
    CREDIT_COLUMNS,
    BadDescription,
    check_columns,
    describe,
    listed,
    printable,
    words_of_file_name,
)
from genai_assets.datasets.sources.downloads import Download, DownloadCache, Kept, Manners, NoNetwork, download
from genai_assets.datasets.sources.source import (
    Description,
    Fetched,
    Listed,
    SourceOptions,
    SourceUnreadable,
    Surroundings,
)

URL_COLUMNS = ("url", "image_url", "URL")
"""Columns that hold the address when no other is named; the first that is there counts."""

_DAY = 86_400.0


class UrlListOptions(SourceOptions):
    """Options of ``kind = "url-list"``.

    Attributes:
        path: the list: ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, or ``.txt`` with one address a line.
        url_column: the column of addresses; the first of :data:`URL_COLUMNS` when not given.
        columns: field of a description to the column it is read from, as for tables.
        captions: from the ``columns``, or, of rows that have none, from the ``file_names`` in the addresses.
        recheck_days: ask so often whether a picture changed; never when not given.
        at_once, at_once_a_host, delay_seconds, attempts, connect_seconds, total_seconds, max_redirects, user_agent,
            longest_wait_seconds, allow_private_addresses: as :class:`~genai_assets.datasets.sources.downloads.Manners`
            has them.
    """

    path: Path
    url_column: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    captions: Literal["columns", "file_names"] = "columns"
    recheck_days: float | None = Field(default=None, gt=0)
    at_once: int = Field(default=Manners.at_once, ge=1, le=1024)
    at_once_a_host: int = Field(default=Manners.at_once_a_host, ge=1, le=256)
    delay_seconds: float = Field(default=Manners.delay_seconds, ge=0)
    attempts: int = Field(default=Manners.attempts, ge=1, le=20)
    connect_seconds: float = Field(default=Manners.connect_seconds, gt=0)
    total_seconds: float = Field(default=Manners.total_seconds, gt=0)
    max_redirects: int = Field(default=Manners.max_redirects, ge=0, le=20)
    longest_wait_seconds: float = Field(default=Manners.longest_wait_seconds, ge=0)
    user_agent: str = Field(
        default=f"genai_assets/{genai_assets.__version__}", min_length=1, max_length=300, pattern=r"^[ -~]+$"
    )
    allow_private_addresses: bool = False


@dataclass(frozen=True)
class _Row:
    """One picture of the list: its address with all its secrets, and the row it stood in."""

    url: str
    row: dict[str, Any]


class UrlListSource:
    """Pictures at web addresses that a table lists.

    A picture's key is its address without secrets; its state is what its row says. A picture that was downloaded once
    is taken from the cache from then on, and with ``recheck_days`` its server is asked from time to time whether it
    changed (an ``ETag`` or ``Last-Modified`` spares the download).
    """

    Options = UrlListOptions

    def __init__(
        self,
        options: UrlListOptions,
        surroundings: Surroundings,
        *,
        resolver: Callable[[], AbstractResolver] | None = None,
        clock: Callable[[], float] = time.time,
    ):
        """Nothing is read yet.

        Args:
            options: where the list is and how servers are asked.
            surroundings: the cache, the style and licence of rows that state none.
            resolver: makes what looks names up; the system's by default.
            clock: seconds since 1970.
        """
        self.path = options.path.expanduser().absolute()
        self.name = options.name or f"urls:{self.path.stem}"
        self.licence = options.licence or surroundings.licence
        self._style = options.style or surroundings.style
        self._options = options
        self._offline = surroundings.offline
        self._cache = DownloadCache(surroundings.cache)
        self._manners = Manners(
            **{name: value for name, value in options.model_dump().items() if name in Manners.__dataclass_fields__},
            max_bytes=surroundings.max_file_bytes,
        )
        self._resolver = resolver
        self._clock = clock
        self._rows: dict[str, _Row] | None = None

    @classmethod
    def open(cls, options: UrlListOptions, surroundings: Surroundings) -> Self:
        """A source by its options. Reads nothing yet."""
        return cls(options, surroundings)

    def list(self) -> Iterable[Listed]:
        """Every row of the list; no request is made.

        Raises:
            SourceUnreadable: the list is not there, cannot be understood, or holds no address.
        """
        self._rows = self._read()
        concept = self._options.columns.get("concept", "concept")
        return [
            Listed(key=key, state=self._state(row), concept=str(row.row.get(concept) or ""))
            for key, row in self._rows.items()
        ]

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The pictures with these keys: first what is in the cache, then the others as they arrive.

        Each download is in the cache before it is given, so whatever ends a run, the next one goes on from there.

        Raises:
            SourceUnreadable: the list cannot be read, the settings say offline and a picture is not in the cache, or
                no host at all can be reached.
        """
        rows = self._rows if self._rows is not None else self._read()
        wanted: dict[str, list[str]] = {}
        changed: dict[str, Kept] = {}
        self._cache.sweep()
        for key in dict.fromkeys(keys):
            if (row := rows.get(key)) is None:
                continue
            found = self._cache.find(row.url)
            if found is not None and (self._offline or not self._is_due(row.url, found[0].checked)):
                yield self._fetched(key, row, *found)
                continue
            wanted.setdefault(row.url, []).append(key)
            if found is not None:
                changed[row.url] = found[0]
        if wanted and self._offline:
            raise SourceUnreadable(
                f"{len(wanted)} pictures of {self.name} were never downloaded and the settings say offline; run once "
                "with dataset.offline = false"
            )
        arriving = download(list(wanted), self._cache, self._manners, known=changed.get, resolver=self._resolver)
        try:
            for came in arriving:
                yield from self._arrived(came, {key: rows[key] for key in wanted[came.url]})
        except NoNetwork as error:
            raise SourceUnreadable(f"{self.name} cannot be read: {error}; is there a network?") from None
        except OSError as error:
            raise SourceUnreadable(f"{self.name}: downloads cannot be kept: {error}") from error

    def _arrived(self, came: Download, rows: dict[str, _Row]) -> Iterator[Fetched]:
        # A server that cannot be reached just now has not changed its picture: what is in the cache still stands.
        found = None if came.refusal and not came.may_pass else self._cache.find(came.url, verify=bool(came.refusal))
        for key, row in rows.items():
            if found is None:
                refusal = came.refusal or "the download was removed from the cache; run again"
                yield Fetched(key, refusal=refusal, passing=came.may_pass or not came.refusal)
            else:
                yield self._fetched(key, row, *found)

    def _fetched(self, key: str, row: _Row, kept: Kept, data: bytes) -> Fetched:
        try:
            return Fetched(key, data, self._describe(row, kept.opt_out))
        except BadDescription as error:
            return Fetched(key, refusal=str(error))

    def _describe(self, row: _Row, signal: str) -> Description:
        said = dict(row.row)
        shown = addresses.recordable(row.url)
        file = shown.partition("?")[0].rpartition("/")[2]
        caption = self._options.columns.get("caption", "text")
        if self._options.captions == "file_names" and not (said.get(caption) or said.get("caption")):
            said[caption] = words_of_file_name(file)
        credits = {
            name: addresses.recordable(text)
            for name in CREDIT_COLUMNS
            if isinstance(text := said.get(name), str) and "://" in text
        }
        return describe(
            said,
            style=self._style,
            licence=self.licence,
            fallback=file or shown,
            columns=self._options.columns,
            provenance={**credits, "url": shown, "list": self.path.name},
            signal=signal,
        )

    def _state(self, row: _Row) -> str:
        said = [addresses.unsigned(row.url), row.row, self._recheck(row.url, self._clock())]
        return durable.digest_bytes(json.dumps(said, sort_keys=True, default=str).encode())[:16]

    def _is_due(self, url: str, checked: float) -> bool:
        return self._recheck(url, checked) != self._recheck(url, self._clock())

    def _recheck(self, url: str, now: float) -> int:
        """The number of the interval between rechecks that ``now`` is in; each picture's begin at another time."""
        if self._options.recheck_days is None:
            return 0
        phase = int(durable.digest_bytes(addresses.unsigned(url).encode())[:8], 16) / 2**32
        return int(now / _DAY / self._options.recheck_days + phase)

    def _read(self) -> dict[str, _Row]:
        column = self._options.url_column
        rows: dict[str, _Row] = {}
        seen: dict[str, int] = {}
        try:
            for number, row in _read_rows(self.path):
                if column is None:
                    column = next((name for name in URL_COLUMNS if name in row), None)
                if column is None or column not in row:
                    wanted = repr(column) if column else " or ".join(map(repr, URL_COLUMNS))
                    raise SourceUnreadable(f"{self.path} has no column {wanted}; its columns are {listed(row)}")
                if not seen:
                    check_columns(self._options.columns, row, str(self.path))
                url = row[column]
                if not isinstance(url, str) or not url.strip():
                    raise SourceUnreadable(f"{self.path}, line {number}: {column} must be a web address, not {url!r}")
                shown = addresses.recordable(url.strip())
                seen[shown] = seen.get(shown, 0) + 1
                key = shown if seen[shown] == 1 else f"{shown}#{seen[shown]}"
                rows[key] = _Row(url.strip(), {name: said for name, said in row.items() if name != column})
        except UnicodeDecodeError as error:
            raise SourceUnreadable(f"{self.path} is not UTF-8 text: {error}; save it as UTF-8") from None
        except FileNotFoundError:
            raise SourceUnreadable(f"there is no list {self.path}; set path to a file of web addresses") from None
        except ValueError as error:
            raise SourceUnreadable(f"{self.path} cannot be read: {error}") from error
        if not rows:
            raise SourceUnreadable(f"{self.path} holds no addresses; to give a source up, remove it from the settings")
        return rows


def rows_of_csv(lines: Iterable[str], where: str, delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row.

    Raises:
        SourceUnreadable: it is no table; the message begins with ``where`` and has the line.
    """
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise SourceUnreadable(
                    f"{where}, line {reader.line_num} has {'more' if None in row else 'fewer'} cells than the first "
                    "line has columns; put text with commas in quotation marks"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise SourceUnreadable(f"{where}, line {reader.line_num} is not CSV: {error}") from None


def rows_of_jsonl(lines: Iterable[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line that is not blank.

    Raises:
        SourceUnreadable: a line is no JSON object; the message begins with ``where`` and has the line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SourceUnreadable(f"{where}, line {number} is not JSON: {error}; mend or remove the line") from None
        if not isinstance(row, dict):
            shown = printable(line.strip(), at_most=40)
            raise SourceUnreadable(f"{where}, line {number} is not a JSON object with columns, but {shown}")
        yield number, row


def _rows_of_txt(lines: Iterable[str], _where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {URL_COLUMNS[0]: line.strip()}


def _rows_of_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


_READERS: dict[str, Callable[[Iterable[str], str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": rows_of_csv,
    ".tsv": functools.partial(rows_of_csv, delimiter="\t"),
    ".jsonl": rows_of_jsonl,
    ".ndjson": rows_of_jsonl,
    ".txt": _rows_of_txt,
}


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _rows_of_parquet(path)
    elif kind in _READERS:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from _READERS[kind](lines, str(path))
    else:
        raise SourceUnreadable(f"{path} is no list that can be read; its name must end in {listed(_READERS)}, .parquet")
