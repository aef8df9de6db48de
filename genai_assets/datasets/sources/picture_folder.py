"""A team's own folder of pictures with captions as a source.

Belongs here: finding the pictures of a folder and what it says of them: an imagefolder's ``metadata.jsonl`` or
``metadata.csv``, a ``.txt`` file beside each picture, or the pictures' names. What a row says is read by ``described``;
whether a picture or caption is any good is decided by validation.
"""

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from genai_assets import durable
from genai_assets.datasets import opt_out
from genai_assets.datasets.sources.described import (
    CAPTION_COLUMNS,
    BadDescription,
    check_columns,
    describe,
    listed,
    printable,
    words_of_file_name,
)
from genai_assets.datasets.sources.source import (
    Description,
    Fetched,
    Listed,
    SourceOptions,
    SourceUnreadable,
    Surroundings,
)

METADATA = ("metadata.jsonl", "metadata.csv")
PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg"}
)
SIDECAR_SUFFIX = ".txt"
MAX_FILE_BYTES = Surroundings.max_file_bytes

Captions = Literal["sidecars", "file_names"]
"""What a picture that no metadata names takes its caption from."""

_READING = 2  # raise it when the same folder would give other descriptions
_LONGEST_SIDECAR = 1 << 20
_LEADS_OUT = "leads out of the folder by a link; copy the file in"


class _Refused(Exception):
    """One picture cannot be taken; the message is the reason."""


@dataclass(frozen=True)
class _File:
    """A file that was found, as cheaply as a listing can: size and time of change, or why it is not taken."""

    path: str
    state: str
    size: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class _Row:
    """What a metadata file says of one picture: the row as it stands and where, for messages."""

    said: Mapping[str, Any]
    where: str


class PictureFolderSource:
    """Pictures below a folder, with captions from metadata, sidecars or names.

    Each line of ``metadata.jsonl`` is a JSON object with ``file_name`` (relative to the folder) and ``text`` or
    ``caption``; further columns as of ``described.KNOWN_COLUMNS``. ``metadata.csv`` has the same columns, keywords with
    commas. A picture that it does not name takes the text of its sidecar (``cup.png``, ``cup.txt``), else an empty
    caption; or, by choice, the words of its own name. Hidden files are passed over. ``.noai`` sidecars reserve their
    pictures.

    A picture's key is its path in the folder. Names that lead out, links to nothing, files that are none and the like
    are refused one by one, each with its reason.
    """

    class Options(SourceOptions):
        """Options of the kind ``folder``.

        Attributes:
            path: the folder; those below it count too.
            captions: ``sidecars`` or ``file_names``, for pictures that no metadata names.
            columns: field of a description to the metadata's column for it, where that has another name.
        """

        path: Path
        captions: Captions = "sidecars"
        columns: dict[str, str] = {}  # noqa: RUF012 -- pydantic copies it

    def __init__(
        self,
        folder: Path,
        style: str,
        licence: str,
        *,
        name: str | None = None,
        captions: Captions = "sidecars",
        columns: Mapping[str, str] | None = None,
        max_file_bytes: int = MAX_FILE_BYTES,
    ):
        """Nothing is read yet.

        Args:
            folder: where the pictures are; folders below it count too.
            style: style of the pictures that state none.
            licence: SPDX identifier of the pictures that state none.
            name: of the source; ``folder:`` and the folder's name when not given.
            captions: what a picture that no metadata names takes its caption from.
            columns: field of a description to the metadata's column for it.
            max_file_bytes: a larger file is refused before it is read.
        """
        self.folder = folder.expanduser().absolute()
        self.name = name or f"folder:{printable(self.folder.name)}"
        self.licence = licence
        self._style = style
        self._captions = captions
        self._columns = dict(columns or {})
        self._max_file_bytes = max_file_bytes

    KIND: ClassVar[str] = "folder"

    @classmethod
    def open(cls, options: "PictureFolderSource.Options", surroundings: Surroundings) -> Self:
        """A source by its options. Reads nothing yet."""
        return cls(
            options.path,
            options.style or surroundings.style,
            options.licence or surroundings.licence,
            name=options.name,
            captions=options.captions,
            columns=options.columns,
            max_file_bytes=surroundings.max_file_bytes,
        )

    def list(self) -> Iterator[Listed]:
        """Every picture by its path; no picture and no sidecar is opened, metadata is read.

        The state is size and time of change of picture and sidecar, and a digest of what metadata says.

        Raises:
            SourceUnreadable: there is no such folder, a part of it may not be read, or its metadata cannot be
                understood.
        """
        said = [_READING, self._style, self.licence, self._captions, self._columns, self._max_file_bytes]
        defaults = durable.digest_json(said)[:8]
        for key, picture in self._pictures.items():
            row = self._rows.get(key)
            concept = ""
            if row is not None:
                described = _digest_of_row(row.said)
                concept = str(row.said.get(self._columns.get("concept", "concept")) or "")
            elif self._captions == "file_names":
                described = ""
            else:
                sidecar = self._sidecar_of(picture)
                described = sidecar.state if sidecar else ""
            signal = self._signal(key)
            yield Listed(key, " ".join((defaults, picture.state, described, signal)).rstrip(), concept=concept)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """Bytes and descriptions, one picture in memory at a time; in the order of ``keys``."""
        for key in keys:
            picture = self._pictures.get(key)
            if picture is None:
                continue
            try:
                if picture.refusal:
                    raise _Refused(picture.refusal)
                yield Fetched(key, self._read(picture), self._description(key, picture))
            except (_Refused, BadDescription) as refused:
                yield Fetched(key, refusal=str(refused))
            except FileNotFoundError:
                continue  # gone since the listing
            except OSError as error:
                yield Fetched(key, refusal=f"it cannot be read: {error.strerror}", passing=True)

    def _read(self, picture: _File) -> bytes:
        if picture.size > self._max_file_bytes:
            raise _Refused(f"{picture.size:,} bytes are more than the {self._max_file_bytes:,} that are read")
        return self._bytes_of(picture, self._max_file_bytes)

    def _bytes_of(self, file: _File, at_most: int) -> bytes:
        if not self._found.leads_inside(file.path):  # looked at again: it may have been another file when it was listed
            raise _Refused(_LEADS_OUT)
        return _bytes_of(file.path, at_most)

    def _description(self, key: str, picture: _File) -> Description:
        said: Mapping[str, Any] = {}
        if (row := self._rows.get(key)) is not None:
            said = row.said
        elif self._captions == "file_names":
            said = {"caption": words_of_file_name(key)}
        elif sidecar := self._sidecar_of(picture):
            try:
                said = {"caption": self._bytes_of(sidecar, _LONGEST_SIDECAR).decode("utf-8-sig")}
            except UnicodeDecodeError:
                raise _Refused("the text file beside it is not UTF-8; save it as UTF-8") from None
        try:
            return describe(
                said,
                style=self._style,
                licence=self.licence,
                fallback=key,
                columns=self._columns if row else None,
                provenance={"folder": printable(self.folder.name), "file": key},
                signal=self._signal(key),
            )
        except BadDescription as bad:
            raise BadDescription(f"{row.where}: {bad}" if row else str(bad)) from None

    def _signal(self, key: str) -> str:
        return opt_out.signal_in_sidecars(key, self._reservations) if self._reservations else ""

    def _sidecar_of(self, picture: _File) -> _File | None:
        return self._found.sidecars.get(os.path.splitext(picture.path)[0])

    @property
    def _reservations(self) -> frozenset[str]:
        return self._found.reservations

    @cached_property
    def _pictures(self) -> dict[str, _File]:
        """Every picture by its key: those found, and those that only the metadata names, with the reason why not."""
        pictures = dict(self._found.pictures)
        for key, row in self._rows.items():
            if key not in pictures:
                name = str(row.said.get("file_name") or "")
                pictures[key] = _File("", state="named", refusal=f"{row.where}: {self._why_not(name)}")
        return dict(sorted(pictures.items()))

    def _why_not(self, name: str) -> str:
        """Why a name of the metadata is none of the pictures that were found."""
        path = os.path.normpath(self.folder / name) if "\0" not in name else ""
        if not name or not path.startswith(f"{self.folder}{os.sep}"):
            return "its file_name is not a file below the folder"
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return "the file is not there; add it, or remove the line"
        except OSError as error:
            return f"its file_name cannot be looked up: {error.strerror}"
        if not os.path.realpath(path).startswith(f"{os.path.realpath(self.folder)}{os.sep}"):
            return "its file_name leads out of the folder by a link"
        if not stat.S_ISREG(mode):
            return "its file_name is not a file"
        return f"the file is hidden or not a picture by its name ({listed(PICTURE_SUFFIXES)})"

    @cached_property
    def _found(self) -> "_Found":
        if not self.folder.exists():
            raise SourceUnreadable(
                f"there is no folder {self.folder}; mount its disk, or name the folder of pictures that is meant"
            )
        if not self.folder.is_dir():
            raise SourceUnreadable(f"{self.folder} is a file; name the folder that holds the pictures")
        return _Found(self.folder)

    @cached_property
    def _rows(self) -> dict[str, _Row]:
        """What metadata says, by key; a name that is no key of a picture is one of a refusal."""
        there = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        if len(there) > 1:
            raise SourceUnreadable(f"{self.folder} has {' and '.join(METADATA)}; keep one of them")
        if not there:
            return {}
        [path] = there
        rows: dict[str, _Row] = {}
        columns: set[str] = set()
        for number, said in _read_rows(path):
            columns |= said.keys()
            name = said.get("file_name")
            if "file_name" in said and not isinstance(name, str):
                raise SourceUnreadable(f"{path}, line {number}: file_name must be text, not {printable(repr(name))}")
            key = self._key_of(str(name or ""), f"line {number}")
            if key in rows:
                raise SourceUnreadable(f"{path}, line {number} names {printable(key)} again; keep one of its lines")
            rows[key] = _Row(said, f"{path.name}, line {number}")
        try:
            check_columns(self._columns, columns, str(path))
        except ValueError as error:
            raise SourceUnreadable(str(error)) from None
        for needed in (("file_name",), () if "caption" in self._columns else CAPTION_COLUMNS):
            if needed and rows and not columns & set(needed):
                raise SourceUnreadable(
                    f"{path} has no column {' or '.join(map(repr, needed))}; its columns are {listed(columns)}"
                )
        return rows

    def _key_of(self, name: str, line: str) -> str:
        """The path within the folder that a row means; of one that leads elsewhere the name, told apart by its line."""
        path = os.path.normpath(name) if name and "\0" not in name else ""
        if not path or path == "." or os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
            return f"{printable(name)} ({line})"
        return printable(path, at_most=len(path)) if not _is_text(path) else path


class _Found:
    """What is in a folder: pictures by key, text files by their path without suffix, and ``.noai`` files."""

    def __init__(self, folder: Path):
        self._root = os.path.realpath(folder)
        self.pictures: dict[str, _File] = {}
        self.sidecars: dict[str, _File] = {}
        reservations: set[str] = set()
        waiting = [(str(folder), "")]
        while waiting:
            home, prefix = waiting.pop()
            try:
                entries = list(os.scandir(home))
            except OSError as error:
                raise SourceUnreadable(
                    f"the folder {home} cannot be read: {error.strerror}; allow it, or move it elsewhere"
                ) from error
            for entry in entries:
                name = entry.name
                if name.startswith(".") and not opt_out.is_noai_sidecar(name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{prefix}{name}/"))
                elif not self._take(entry, prefix + name) and opt_out.is_noai_sidecar(name):
                    reservations.add(prefix + name)
        self.reservations = frozenset(reservations)

    def _take(self, entry: "os.DirEntry[str]", key: str) -> bool:
        """Note a picture or its text; whether it is one of them."""
        stem, suffix = os.path.splitext(entry.path)
        suffix = suffix.lower()
        if suffix == SIDECAR_SUFFIX:
            sidecar = self._file(entry)
            if not sidecar.refusal:
                self.sidecars[stem] = sidecar
        elif suffix in PICTURE_SUFFIXES:
            if not _is_text(key):
                self.pictures[printable(key, at_most=len(key) * 4)] = _File(
                    entry.path, "name", refusal="its name is not UTF-8; rename it"
                )
            else:
                self.pictures[key] = self._file(entry)
        elif entry.is_symlink() and entry.is_dir() and not self.leads_inside(entry.path):
            self.pictures[f"{key}/"] = _File(entry.path, "link", refusal="leads out of the folder by a link")
        else:
            return False
        return True

    def _file(self, entry: "os.DirEntry[str]") -> _File:
        try:
            status = entry.stat()
        except FileNotFoundError:
            return _File(entry.path, "link", refusal="is a link to a file that is not there; remove it")
        except OSError as error:
            return _File(entry.path, "link", refusal=f"cannot be looked up: {error.strerror}")
        if entry.is_symlink() and not self.leads_inside(entry.path):
            return _File(entry.path, "link", refusal=_LEADS_OUT)
        if not stat.S_ISREG(status.st_mode):
            return _File(entry.path, "special", refusal="is not a file that can be read")
        return _File(entry.path, f"{status.st_size}-{status.st_mtime_ns:x}", status.st_size)

    def leads_inside(self, path: str) -> bool:
        """Whether a path is one of this folder when all links are followed."""
        return os.path.realpath(path).startswith(f"{self._root}{os.sep}")


def _bytes_of(path: str, at_most: int) -> bytes:
    """A file's bytes; whatever took its place since the listing, nothing is waited for and not more is read."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Refused("is not a file that can be read")
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise _Refused(f"it has more than the {at_most:,} bytes that are read")
    return data


def _is_text(name: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in name) if not name.isascii() else True


def _digest_of_row(said: Mapping[str, Any]) -> str:
    return durable.digest_bytes(json.dumps(said, sort_keys=True, default=str).encode())[:16]


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row.

    Raises:
        SourceUnreadable: it cannot be read or understood; the message has the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceUnreadable(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise SourceUnreadable(f"{path} cannot be read: {error.strerror}") from error
    read: Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]
    read = _csv_rows if path.suffix == ".csv" else _json_rows
    yield from read(path, text)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SourceUnreadable(f"{path}, line {number} is not JSON: {error}; mend or remove the line") from None
        if not isinstance(row, dict):
            shown = printable(line.strip(), at_most=40)
            raise SourceUnreadable(f"{path}, line {number} is not a JSON object with columns, but {shown}")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise SourceUnreadable(
                    f"{path}, line {reader.line_num} has {'more' if None in row else 'fewer'} cells than the first "
                    "line has columns; put text with commas in quotation marks"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise SourceUnreadable(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from None
