"""A folder of pictures somewhere else as a source: whatever place fsspec can reach by a URL.

Belongs here: listing such a place without reading a picture, and reading what is asked for, many at a time and within
bounds. What a row says is read by ``described``; the layouts are those of a folder on the disk (``picture_folder``).

The place is named by the team's own settings, so it may lie in their own network. A web server that redirects may do so
to public addresses and to itself only.
"""

import asyncio
import base64
import io
import itertools
import json
import os
import posixpath
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp
import fsspec
import tenacity
import yarl
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from pydantic import Field

from genai_assets import durable
from genai_assets.datasets import opt_out
from genai_assets.datasets.sources import addresses
from genai_assets.datasets.sources.described import (
    CAPTION_COLUMNS,
    BadDescription,
    check_columns,
    describe,
    listed,
    printable,
    words_of_file_name,
)
from genai_assets.datasets.sources.downloads import TRANSIENT_STATUSES, in_short, innermost, jittered
from genai_assets.datasets.sources.picture_folder import METADATA, PICTURE_SUFFIXES, SIDECAR_SUFFIX, Captions
from genai_assets.datasets.sources.source import (
    Description,
    Fetched,
    Listed,
    SourceOptions,
    SourceUnreadable,
    Surroundings,
)
from genai_assets.datasets.sources.url_list import rows_of_csv, rows_of_jsonl

EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol: the extra of ours that installs its fsspec implementation."""

HERE = frozenset({"file", "local", "memory"})
"""Protocols that need no network."""

_T = TypeVar("_T")

_READING = 1  # raise it when the same place would give other descriptions
_LONGEST_SIDECAR = 1 << 20
_LONGEST_METADATA = 1 << 28
_LONGEST_INDEX = 1 << 26
_MEMORY = 1 << 28
_DEEPEST = 32
_CHUNK = 1 << 16
_FAILURES_THAT_MEAN_NO_ACCESS = 20
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest")
_VALIDATORS = ("ETag", "Content-MD5", "Digest", "Last-Modified")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")
_BOTOCORE_MAY_PASS = frozenset({"HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"})


class RemoteOptions(SourceOptions):
    """Options of ``kind = "url"``.

    Attributes:
        url: of the folder: ``s3://bucket/pictures``, ``https://example.com/pictures/``, ``gs://…``, ``file:///…``.
        storage_options: of its fsspec implementation (``endpoint_url``, ``anon``, …). A value ``$NAME`` is taken from
            the environment, so that no secret need stand in the settings; most implementations find the usual
            variables (``AWS_ACCESS_KEY_ID``, …) by themselves.
        captions: ``sidecars`` or ``file_names``, for pictures that no metadata names.
        columns: field of a description to the column of the metadata that it is read from.
        at_once: files read at a time.
        attempts: for each file, the first among them; only failures that may pass are tried again.
        backoff_seconds: before the second attempt; each further one waits twice as long.
        timeout_seconds: for one file, to its last byte.
        listing_minutes: a listing is kept and believed for so long, as sensors ask each minute; when not given, 15 for
            web servers, which are asked for each file's headers, and 0 for all others.
    """

    url: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*(::|://)", repr=False)
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    captions: Captions = "sidecars"
    columns: dict[str, str] = Field(default_factory=dict)
    at_once: int = Field(default=16, ge=1, le=256)
    attempts: int = Field(default=4, ge=1, le=20)
    backoff_seconds: float = Field(default=0.5, ge=0)
    timeout_seconds: float = Field(default=120.0, gt=0)
    listing_minutes: float | None = Field(default=None, ge=0)


class _Refused(Exception):
    """One picture cannot be taken; the message is the reason, ``passing`` whether another try may go better."""

    def __init__(self, message: str, *, passing: bool = False):
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class _File:
    """A file as a listing has it. ``size`` is None when the place does not tell."""

    path: str
    size: int | None
    state: str
    refusal: str = ""


@dataclass(frozen=True)
class _Row:
    """What a metadata file says of one picture, and where."""

    said: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class _Read:
    """Bytes of a file, at most one more than were asked for, and the opt-out that came with them."""

    data: bytes
    signal: str = ""


class _Place(Protocol):
    """Somewhere that files lie, by their path below it."""

    def files(self, wanted: Callable[[str], bool]) -> dict[str, _File]:
        """Every file whose path is wanted; no content is read."""
        ...

    def read(self, file: _File, at_most: int) -> _Read:
        """The beginning of a file, one byte more than ``at_most`` when it is longer."""
        ...


class _Snapshot:
    """All that one listing found: pictures, sidecars, reservations and metadata's rows."""

    def __init__(self, files: Mapping[str, _File], rows: Mapping[str, _Row]):
        self.files = files
        self.rows = rows
        self.sidecars = {posixpath.splitext(key)[0]: file for key, file in files.items() if _is_sidecar(key)}
        self.reservations = frozenset(key for key in files if opt_out.is_noai_sidecar(key))
        self.pictures = {key: file for key, file in files.items() if _is_picture(key)}
        for key, row in rows.items():
            if key not in self.pictures:
                why = f"{row.where} names it, but there is no such picture; add the file, or remove the line"
                self.pictures[key] = _File("", None, "named", refusal=why)


class _KeptListing:
    """The last listing on the disk, for processes that ask again soon."""

    def __init__(self, path: Path, *, of: str, seconds: float):
        self._path = path
        self._of = of
        self._seconds = seconds

    def find(self) -> _Snapshot | None:
        """The last listing, if it is of the same place and young enough."""
        if not self._seconds:
            return None
        try:
            said = json.loads(self._path.read_bytes())
            if said["of"] != self._of or not 0 <= time.time() - said["at"] < self._seconds:
                return None
            files = {key: _File(*fields) for key, fields in said["files"].items()}
            return _Snapshot(files, {key: _Row(*fields) for key, fields in said["rows"].items()})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def keep(self, found: _Snapshot) -> None:
        """Write a listing down, all or nothing."""
        if self._seconds:
            files = {key: [file.path, file.size, file.state, file.refusal] for key, file in found.files.items()}
            rows = {key: [row.said, row.where] for key, row in found.rows.items()}
            said = {"of": self._of, "at": time.time(), "files": files, "rows": rows}
            durable.write_text(self._path, json.dumps(said))


class RemoteSource:
    """Pictures below a URL, with captions from metadata, sidecars or names, laid out as in a folder.

    A picture's key is its path below the URL. Its state is the ETag that the place gives it, else its size and time of
    change, and what is said of it. Hidden files are passed over; ``.noai`` sidecars reserve their pictures.
    """

    Options = RemoteOptions

    def __init__(self, options: RemoteOptions, surroundings: Surroundings):
        """Nothing is read yet.

        Raises:
            ValueError: ``storage_options`` names a variable that is not set, or ``columns`` a field that there is not;
                or the URL of a web server has a query, which would be of no use for the files below.
        """
        check_columns(options.columns, (), "")
        self._protocol = re.split(r"::|://", options.url, maxsplit=1)[0].lower()
        if self._protocol in addresses.SCHEMES and "?" in options.url:
            raise ValueError("url may have no query; give what identifies you as storage_options.headers")
        self.url = addresses.recordable(options.url).rstrip("/")
        self.name = options.name or f"url:{self.url}"
        self.licence = options.licence or surroundings.licence
        self._style = options.style or surroundings.style
        self._options = options
        self._storage_options = _with_environment(options.storage_options)
        self._offline = surroundings.offline
        self._max_file_bytes = surroundings.max_file_bytes
        self._listing = _KeptListing(
            surroundings.cache / "listing.json",
            of=durable.digest_json([_READING, self.url, options.captions, options.columns]),
            seconds=60 * (15 if self._protocol in addresses.SCHEMES else 0)
            if options.listing_minutes is None
            else 60 * options.listing_minutes,
        )
        self._place: _Place | None = None
        self._found: _Snapshot | None = None

    @classmethod
    def open(cls, options: RemoteOptions, surroundings: Surroundings) -> Self:
        """A source by its options. Reads nothing yet.

        Raises:
            ValueError: as of the constructor.
        """
        return cls(options, surroundings)

    def list(self) -> Iterable[Listed]:
        """Every picture by its path; metadata is read, no picture and no sidecar is.

        Raises:
            SourceUnreadable: the settings say offline, the place cannot be reached or read, its protocol has no
                implementation here, nothing lies there, or its metadata cannot be understood.
        """
        self._found = self._look()
        return [self._listed(key, picture, self._found) for key, picture in sorted(self._found.pictures.items())]

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The pictures with these keys as they arrive, so many at a time and a bounded number of bytes in memory.

        Raises:
            SourceUnreadable: the first twenty could not be read and not one could, for reasons that may pass; or as of
                :meth:`list`.
        """
        found = self._found if self._found is not None else self._look()
        failures, succeeded = 0, False
        for came in self._as_they_arrive([key for key in dict.fromkeys(keys) if key in found.pictures], found):
            failures, succeeded = failures + came.passing, succeeded or not came.refusal
            if not succeeded and failures >= _FAILURES_THAT_MEAN_NO_ACCESS:
                raise SourceUnreadable(
                    f"{self.name}: none of {failures} pictures can be read, the last: {came.refusal}"
                )
            yield came

    def _as_they_arrive(self, keys: Sequence[str], found: _Snapshot) -> Iterator[Fetched]:
        waiting: dict[Future[Fetched | None], int] = {}

        def done() -> Iterator[Fetched]:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                del waiting[future]
                if (came := future.result()) is not None:
                    yield came

        with ThreadPoolExecutor(self._options.at_once, thread_name_prefix="remote") as pool:
            try:
                for key in keys:
                    size = found.pictures[key].size
                    charge = self._max_file_bytes if size is None else min(size, self._max_file_bytes)
                    while waiting and (
                        len(waiting) >= self._options.at_once or sum(waiting.values()) + charge > _MEMORY
                    ):
                        yield from done()
                    waiting[pool.submit(self._fetched, key, found)] = charge
                while waiting:
                    yield from done()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _fetched(self, key: str, found: _Snapshot) -> Fetched | None:
        picture = found.pictures[key]
        try:
            if picture.refusal:
                raise _Refused(picture.refusal)
            read = self._read(picture, self._max_file_bytes)
            return Fetched(key, read.data, self._description(key, found, read.signal))
        except (_Refused, BadDescription) as refused:
            return Fetched(key, refusal=str(refused), passing=getattr(refused, "passing", False))
        except FileNotFoundError:
            return None  # gone since the listing
        except Exception as error:  # implementations of fsspec raise what they like
            return Fetched(key, refusal=f"it cannot be read: {self._without_secrets(error)}", passing=True)

    def _read(self, file: _File, limit: int) -> _Read:
        too_large = f"larger than the limit of {limit:,} bytes"
        if (file.size or 0) > limit:
            raise _Refused(too_large)
        at_most = limit if file.size is None else file.size
        read = self._again(lambda: self._somewhere().read(file, at_most), file.path)
        if len(read.data) > at_most:
            if file.size is None:
                raise _Refused(too_large)
            raise _Refused("longer than it was listed: it changed meanwhile", passing=True)
        return read

    def _description(self, key: str, found: _Snapshot, signal: str) -> Description:
        said: Mapping[str, Any] = {}
        row = found.rows.get(key)
        if row is not None:
            said = row.said
        elif self._options.captions == "file_names":
            said = {self._caption_column: words_of_file_name(key)}
        elif sidecar := found.sidecars.get(posixpath.splitext(key)[0]):
            try:
                said = {self._caption_column: self._read(sidecar, _LONGEST_SIDECAR).data.decode("utf-8-sig")}
            except UnicodeDecodeError:
                raise _Refused("the text file beside it is not UTF-8; save it as UTF-8") from None
            except FileNotFoundError:
                said = {}  # gone since the listing; the next one tells
        try:
            return describe(
                said,
                style=self._style,
                licence=self.licence,
                fallback=key,
                columns=self._options.columns,
                provenance={"url": self.url, "file": key},
                signal=opt_out.signal_in_sidecars(key, found.reservations) or signal,
            )
        except BadDescription as bad:
            raise BadDescription(f"{row.where}: {bad}" if row else str(bad)) from None

    @property
    def _caption_column(self) -> str:
        return self._options.columns.get("caption", CAPTION_COLUMNS[0])

    def _listed(self, key: str, picture: _File, found: _Snapshot) -> Listed:
        row = found.rows.get(key)
        concept, said = "", ""
        if row is not None:
            said = durable.digest_bytes(json.dumps(row.said, sort_keys=True, default=str).encode())[:16]
            concept = str(row.said.get(self._options.columns.get("concept", "concept")) or "")
        elif self._options.captions == "sidecars" and (sidecar := found.sidecars.get(posixpath.splitext(key)[0])):
            said = sidecar.state
        signal = opt_out.signal_in_sidecars(key, found.reservations)
        options = [_READING, self._style, self.licence, self._options.captions, self._options.columns]
        state = durable.digest_json([options, picture.state, said, signal, self._max_file_bytes])[:16]
        return Listed(key, state, concept=concept)

    def _look(self) -> _Snapshot:
        if self._offline and self._protocol not in HERE:
            raise SourceUnreadable(
                f"{self.url} is not read: the settings say offline; set dataset.offline = false, or remove the source"
            )
        if (kept := self._listing.find()) is not None:
            return kept
        try:
            place = self._somewhere()
            files = self._again(lambda: place.files(_is_wanted), self.url)
            rows = dict(self._rows(files))
        except SourceUnreadable:
            raise
        except FileNotFoundError:
            raise SourceUnreadable(f"there is nothing at {self.url}; set url to a folder that is there") from None
        except PermissionError as error:
            raise SourceUnreadable(
                f"{self.url} may not be read: {self._without_secrets(error)}; give credentials by the environment"
            ) from None
        except Exception as error:  # implementations of fsspec raise what they like
            raise SourceUnreadable(f"{self.url} cannot be read: {self._without_secrets(error)}") from None
        if not files:
            raise SourceUnreadable(
                f"no picture is listed at {self.url}; an empty place cannot be told from a wrong one: to give a source "
                "up, remove it from the settings"
            )
        found = _Snapshot(files, rows)
        self._listing.keep(found)
        return found

    def _rows(self, files: Mapping[str, _File]) -> Iterator[tuple[str, _Row]]:
        there = [name for name in METADATA if name in files]
        if len(there) > 1:
            raise SourceUnreadable(f"{self.url} has {' and '.join(METADATA)}; keep one of them")
        seen: set[str] = set()
        columns: set[str] = set()
        for name in there:
            where = f"{self.url}/{name}"
            try:
                text = self._read(files[name], _LONGEST_METADATA).data.decode("utf-8-sig")
            except _Refused as refused:
                raise SourceUnreadable(f"{where}: {refused}") from None
            except UnicodeDecodeError as error:
                raise SourceUnreadable(f"{where} is not UTF-8 text: {error}; save it as UTF-8") from None
            lines = io.StringIO(text, newline="")
            for number, said in rows_of_csv(lines, where) if name.endswith(".csv") else rows_of_jsonl(lines, where):
                columns |= said.keys()
                file = said.get("file_name")
                if file is not None and not isinstance(file, str):
                    raise SourceUnreadable(
                        f"{where}, line {number}: file_name must be text, not {printable(repr(file))}"
                    )
                key = posixpath.normpath(file) if file else ""
                if not key or key == "." or key.startswith(("/", "../")):
                    key = f"{printable(file or '')} (line {number})"
                if key in seen:
                    raise SourceUnreadable(
                        f"{where}, line {number} names {printable(key)} again; keep one of its lines"
                    )
                seen.add(key)
                yield key, _Row(said, f"{name}, line {number}")
            for needed in (("file_name",), (self._options.columns.get("caption"), *CAPTION_COLUMNS)):
                if seen and not columns & set(needed):
                    names = " or ".join(repr(column) for column in needed if column)
                    raise SourceUnreadable(f"{where} has no column {names}; its columns are {listed(columns)}")
            check_columns(self._options.columns, columns, where)

    def _somewhere(self) -> _Place:
        if self._place is None:
            self._place = self._reach()
        return self._place

    def _reach(self) -> _Place:
        protocol, url, kwargs = self._protocol, self._options.url, dict(self._storage_options)
        if protocol in addresses.SCHEMES:
            parts = urlsplit(url)
            if parts.username is not None:  # as a header, which aiohttp sends to this server only; not in listings
                said = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
                authorization = f"Basic {base64.b64encode(said).decode()}"
                kwargs["headers"] = {"Authorization": authorization, **kwargs.get("headers", {})}
                url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            kwargs.update(get_client=_client_that_stays_with(parts.hostname or ""), encoded=True)
        try:
            system, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, **kwargs)
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            mend = f"install genai_assets[{extra}]" if extra else "install its fsspec implementation"
            raise SourceUnreadable(f"{protocol}:// cannot be read here: {in_short(error)}; {mend}") from None
        except ValueError as error:
            raise SourceUnreadable(f"{self.url} cannot be understood: {self._without_secrets(error)}") from None
        if isinstance(system, HTTPFileSystem):
            return _WebPlace(system, root, self._options)
        return _FsspecPlace(system, root, self._options.timeout_seconds)

    def _again(self, do: Callable[[], _T], key: str) -> _T:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(self._options.attempts),
            wait=lambda state: jittered(self._options.backoff_seconds, state.attempt_number, key),
            reraise=True,
        )(do)

    def _without_secrets(self, error: BaseException) -> str:
        """What an error says, without any of the values that were given to reach the place."""
        parts = urlsplit(self._options.url)
        hidden = [*_texts(self._storage_options), parts.username or "", parts.password or "", parts.query]
        told = in_short(addresses.refusal_within(error) or error)
        for secret in sorted(hidden, key=len, reverse=True):
            if len(secret) > 3 and not secret.startswith(("http://", "https://")):
                told = told.replace(secret, "***")
        return told


class _FsspecPlace:
    """A place by fsspec's general interface: object stores, file servers, memory."""

    def __init__(self, system: AbstractFileSystem, root: str, timeout_seconds: float):
        self._system = system
        self._root = root.rstrip("/")
        self._timeout = timeout_seconds

    def files(self, wanted: Callable[[str], bool]) -> dict[str, _File]:
        """Every file below the root, by one flat listing where the place has one, else folder by folder."""
        self._system.invalidate_cache()
        if _has_flat_listing(self._system):
            infos: Iterable[dict[str, Any]] = self._system.find(self._root, detail=True).values()
        else:
            infos = self._walk()
        found: dict[str, _File] = {}
        for info in infos:
            key = info["name"].removeprefix(self._root).removeprefix("/")
            if info["type"] == "directory" or not info["name"].startswith(f"{self._root}/") or not wanted(key):
                continue
            found[key] = _File(info["name"], info.get("size"), _state(info), self._why_not(info))
        return found

    def _walk(self) -> Iterator[dict[str, Any]]:
        # fsspec's own find and walk pass over inner folders that cannot be read, and so would call them empty.
        folders = deque([(self._root, 0)])
        while folders:
            folder, depth = folders.popleft()
            for info in self._system.ls(folder, detail=True):
                if info["type"] != "directory":
                    yield info
                elif depth < _DEEPEST and info["name"].rstrip("/") != folder and not info.get("islink"):
                    folders.append((info["name"].rstrip("/"), depth + 1))

    def _why_not(self, info: Mapping[str, Any]) -> str:
        if not isinstance(self._system, LocalFileSystem):
            return ""
        if not os.path.realpath(info["name"]).startswith(f"{os.path.realpath(self._root)}/"):
            return "leads out of the folder by a link; copy the file in"
        return "" if os.path.isfile(info["name"]) else "is not a file that can be read"

    def read(self, file: _File, at_most: int) -> _Read:
        """The beginning of a file by one ranged read."""
        if file.size == 0:
            return _Read(b"")  # no range of nothing can be asked for
        system = self._system
        if not isinstance(system, AsyncFileSystem):
            return _Read(system.cat_file(file.path, start=0, end=at_most + 1))

        async def in_time() -> bytes:
            return await asyncio.wait_for(system._cat_file(file.path, start=0, end=at_most + 1), self._timeout)

        return _Read(sync(system.loop, in_time))


class _WebPlace:
    """A folder on a web server that answers with an index page; what the page links to below itself is there."""

    def __init__(self, system: HTTPFileSystem, root: str, options: RemoteOptions):
        self._system = system
        self._root = yarl.URL(root, encoded=True)
        if not self._root.raw_path.endswith("/"):
            self._root = self._root.with_path(f"{self._root.raw_path}/", encoded=True, keep_query=True)
        self._at_once = options.at_once
        self._timeout = aiohttp.ClientTimeout(total=options.timeout_seconds)

    def files(self, wanted: Callable[[str], bool]) -> dict[str, _File]:
        """Follow index pages, then ask for the headers of every file that is wanted."""
        return sync(self._system.loop, self._files, wanted)

    def read(self, file: _File, at_most: int) -> _Read:
        """A file's beginning, as it streams in: neither length nor range that the server states is relied on."""
        return sync(self._system.loop, self._get, file.path, at_most)

    async def _files(self, wanted: Callable[[str], bool]) -> dict[str, _File]:
        links: dict[str, str] = {}
        seen = {str(self._root)}
        folders = deque([(str(self._root), 0)])
        while folders:
            folder, depth = folders.popleft()
            for link in await self._links(folder):
                if (url := self._below(folder, link)) is None:
                    continue
                key = unquote(url.raw_path.removeprefix(self._root.raw_path))
                if url.raw_path.endswith("/"):
                    if depth < _DEEPEST and str(url) not in seen and not _is_hidden(key):
                        seen.add(str(url))
                        folders.append((str(url), depth + 1))
                elif wanted(key):
                    links.setdefault(key, str(url))
        slots = asyncio.Semaphore(self._at_once)

        async def headed(key: str, url: str) -> tuple[str, _File | None]:
            async with slots:
                return key, await self._head(url)

        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(headed(key, url)) for key, url in links.items()]
        except BaseExceptionGroup as group:
            raise innermost(group) from None
        return {key: file for key, file in (task.result() for task in asked) if file is not None}

    async def _links(self, folder: str) -> Sequence[str]:
        """What the index page of a folder links to.

        Raises:
            SourceUnreadable: the page is none, or longer than any index page is.
        """
        read = await self._get(folder, _LONGEST_INDEX)
        if len(read.data) > _LONGEST_INDEX:
            raise SourceUnreadable(f"{addresses.recordable(folder)} answers with more than an index page can be")
        page = _IndexPage()
        page.feed(read.data.decode("utf-8", "replace"))
        return [*dict.fromkeys(page.links)]

    def _below(self, folder: str, link: str) -> yarl.URL | None:
        """The address of a link of an index page, without query and fragment; None when it is not below the root."""
        try:
            url = yarl.URL(folder, encoded=True).join(addresses.web_address(link)).with_query(None).with_fragment(None)
        except (addresses.AddressRefused, ValueError):
            return None
        path = posixpath.normpath(unquote(url.raw_path)) + "/"
        same = (url.scheme, url.host, url.port) == (self._root.scheme, self._root.host, self._root.port)
        below = path.startswith(unquote(self._root.raw_path)) and len(path) > len(unquote(self._root.raw_path))
        return url if same and below else None

    async def _head(self, url: str) -> _File | None:
        session = await self._system.set_session()
        kwargs = {**self._system.kwargs, "headers": self._headers(), "timeout": self._timeout}
        for ask in (session.head, session.get):  # some servers have no HEAD; the body of a GET is left unread
            async with ask(yarl.URL(url, encoded=True), allow_redirects=True, **kwargs) as response:
                if response.status in (405, 501) and ask == session.head:
                    continue
                if response.status in (404, 410):
                    return None  # a page may link to what is gone
                response.raise_for_status()
                size = response.content_length if "Content-Encoding" not in response.headers else None
                return _File(
                    url, size, _state({"size": size, **{name: response.headers.get(name) for name in _VALIDATORS}})
                )
        return None

    async def _get(self, url: str, at_most: int) -> _Read:
        session = await self._system.set_session()
        kwargs = {**self._system.kwargs, "headers": self._headers(), "timeout": self._timeout}
        async with session.get(yarl.URL(url, encoded=True), **kwargs) as response:
            if response.status in (404, 410):
                raise FileNotFoundError(url)
            response.raise_for_status()
            chunks, size = [], 0
            async for chunk in response.content.iter_chunked(_CHUNK):
                chunks.append(chunk)
                size += len(chunk)
                if size > at_most:
                    break
            return _Read(b"".join(chunks), opt_out.signal_in_fields(response.headers))

    def _headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity", **self._system.kwargs.get("headers", {})}


class _IndexPage(HTMLParser):
    """Gathers the links of a page."""

    def __init__(self):
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag that opens."""
        if tag == "a":
            self.links += [target.strip() for name, target in attrs if name == "href" and target]


def _client_that_stays_with(host: str) -> Callable[..., Any]:
    """Makes sessions that go to ``host`` wherever it is, and by its redirects to public addresses only."""

    async def check(_session: Any, _context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        target = redirect.response.headers.get("Location", "")
        url = redirect.url.join(addresses.web_address(target)) if target else redirect.url
        addresses.check_url(url, allow_private=url.host == host)

    async def client(**kwargs: Any) -> aiohttp.ClientSession:
        kwargs.pop("loop", None)
        resolver = addresses.PublicResolver(aiohttp.ThreadedResolver(), trusted=frozenset({host}))
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver), trace_configs=[trace], **kwargs)

    return client


def _has_flat_listing(system: AbstractFileSystem) -> bool:
    """Whether the implementation lists everything below a path by itself, and so raises what goes wrong."""
    kind = type(system)
    if issubclass(kind, AsyncFileSystem):
        return kind._find is not AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find and not issubclass(kind, LocalFileSystem)


def _may_pass(error: BaseException) -> bool:
    if addresses.refusal_within(error) is not None:
        return False
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in TRANSIENT_STATUSES
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    if isinstance(error, SourceUnreadable):
        return False
    if type(error).__module__.startswith("botocore"):
        return bool(_BOTOCORE_MAY_PASS & {kind.__name__ for kind in type(error).__mro__})
    return isinstance(error, OSError | aiohttp.ClientError | TimeoutError)


def _state(info: Mapping[str, Any]) -> str:
    """What a place tells cheaply that changes with a file's content."""
    tag = next((info[name] for name in _ETAGS if info.get(name)), None)
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    return f"{info.get('size')} {tag if tag is not None else time}"


def _is_wanted(key: str) -> bool:
    if opt_out.is_noai_sidecar(key):
        return True
    return not _is_hidden(key) and (_is_picture(key) or _is_sidecar(key) or key in METADATA)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


def _is_picture(key: str) -> bool:
    return posixpath.splitext(key)[1].lower() in PICTURE_SUFFIXES


def _is_sidecar(key: str) -> bool:
    return posixpath.splitext(key)[1].lower() == SIDECAR_SUFFIX


def _with_environment(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``$NAME`` and ``${NAME}`` replaced by what the environment says, at any depth."""

    def value_of(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: value_of(f"{name}.{inner}", said) for inner, said in value.items()}
        if isinstance(value, list | tuple):
            return [value_of(name, said) for said in value]
        variable = re.fullmatch(r"\$(?:(\w+)|\{(\w+)\})", value) if isinstance(value, str) else None
        if variable is None:
            return value
        called = variable[1] or variable[2]
        if called not in os.environ:
            raise ValueError(f"storage_options.{name} is to be taken from the variable {called}, which is not set")
        return os.environ[called]

    return {name: value_of(name, value) for name, value in options.items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))
