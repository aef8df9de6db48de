"""Rows with pictures: what tables, local Hugging Face datasets and databases have in common.

Belongs here: which column holds the picture (a path, bytes, Hugging Face's struct of both, or base64), which names the
row and which tells that it changed; how a path is kept below its folder; and the refusals of single rows. Reading the
rows is each kind's own, what a row says of its picture ``described``'s.
"""

import base64
import binascii
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genai_assets.datasets.sources import described
from genai_assets.datasets.sources.source import Fetched, Listed, SourceOptions, SourceUnreadable, Surroundings

PICTURE_COLUMNS = ("image", "picture", "bytes", "file_name", "path", "file")
"""Columns that hold the picture when no other is named; the first that is there counts."""

_LONGEST_KEY = 1024
_PASSING = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT})


class RowOptions(SourceOptions):
    """What a table's columns are.

    Attributes:
        picture: the column with the picture; one of :data:`PICTURE_COLUMNS` when not given.
        picture_is: what text in it is: ``path``, ``base64``, or ``auto``, by which only ``data:`` URLs are base64.
        key: the column that names a row for as long as it is there; else the path does, else the row's number.
        state: a column that changes with the row, such as ``updated_at``; then no picture is looked at to find changes.
        root: the folder that paths are relative to and must stay below.
        columns: field of a description to the column it is read from.
    """

    picture: str | None = None
    picture_is: Literal["auto", "path", "base64"] = "auto"
    key: str | None = None
    state: str | None = None
    root: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """The columns that count, by their names."""

    picture: str
    key: str | None
    state: str | None


@dataclass(frozen=True)
class KeyedRow:
    """One row under a key that no other row has.

    Attributes:
        place: its number, from 1 on; of the first row, not of a heading.
        row: column to value; the picture may be missing where it would be dear.
        refusal: why this row is not taken.
    """

    key: str
    place: int
    row: Mapping[str, Any]
    refusal: str = ""


class BadRow(ValueError):
    """A row, or its picture, cannot be taken; the message is the reason.

    Attributes:
        passing: another try may go better.
    """

    def __init__(self, reason: str, *, passing: bool = False):
        super().__init__(reason)
        self.passing = passing


class PictureRows:
    """Turns rows into listed and fetched pictures; the same rows give the same keys, in the same order."""

    def __init__(
        self,
        options: RowOptions,
        surroundings: Surroundings,
        *,
        root: Path | None,
        provenance: Mapping[str, str],
    ):
        """``root`` is the folder of paths when the options name none; without any, paths are refused.

        Raises:
            ValueError: ``columns`` names a field that there is not.
        """
        described.check_columns(options.columns, (), "")
        self.licence = options.licence or surroundings.licence
        self._style = options.style or surroundings.style
        self._options = options
        self._max_bytes = surroundings.max_file_bytes
        root = options.root or root
        self._root = Path(os.path.normpath(root.expanduser().absolute())) if root else None
        self._real_root = os.path.realpath(self._root) if self._root else ""
        self._provenance = dict(provenance)

    def choose(self, available: Collection[str], where: str, *, picture: str | None = None) -> Chosen:
        """The columns that count among those that there are.

        Args:
            available: names of columns.
            where: the table, for messages.
            picture: the column that is known to hold the picture, when the options name none.

        Raises:
            SourceUnreadable: a column that an option names is not there, or none that could hold the picture.
        """
        options = self._options
        try:
            described.check_columns(options.columns, available, where)
        except ValueError as error:
            raise SourceUnreadable(str(error)) from None
        for option in ("picture", "key", "state"):
            column = getattr(options, option)
            if column is not None and column not in available:
                raise SourceUnreadable(
                    f"{where} has no column {column!r}, which {option} names; "
                    f"its columns are {described.listed(available)}"
                )
        picture = options.picture or picture or next((name for name in PICTURE_COLUMNS if name in available), None)
        if picture is None:
            raise SourceUnreadable(
                f"{where} has no column {', '.join(map(repr, PICTURE_COLUMNS))}; set picture to the one with the "
                f"pictures; its columns are {described.listed(available)}"
            )
        return Chosen(picture, options.key, options.state)

    def keyed(
        self,
        rows: Iterable[tuple[int, Mapping[str, Any] | BadRow]],
        chosen: Chosen,
        seen: set[str],
        *,
        prefix: str = "",
    ) -> Iterator[KeyedRow]:
        """Rows under keys of their own; the second of two that would share one is refused.

        Args:
            rows: number and columns, or why the row cannot be read.
            chosen: of :meth:`choose`.
            seen: keys that are taken, which is added to.
            prefix: what the key of a row begins with that names itself no better than within its table: by its number,
                or by the label beside embedded bytes.
        """
        for place, row in rows:
            if isinstance(row, BadRow):
                key = self._unique(f"{prefix}row {place}", place, seen)
                yield KeyedRow(key, place, {}, str(row))
                continue
            stated = self._stated_key(row, chosen)
            if chosen.key is not None and not stated:
                key = self._unique(f"{prefix}row {place}", place, seen)
                yield KeyedRow(key, place, row, f"its key, column {chosen.key!r}, is empty")
                continue
            if chosen.key is None and isinstance(row.get(chosen.picture), Mapping):
                # The path beside embedded bytes is a label, and often the same in every row.
                yield KeyedRow(self._unique(prefix + (stated or f"row {place}"), place, seen), place, row)
                continue
            key = stated or f"{prefix}row {place}"
            if key in seen:
                reason = f"its key {key!r} is that of a row before; keep one of them, or set key to another column"
                yield KeyedRow(self._unique(f"{key} (again)", place, seen), place, row, reason)
                continue
            seen.add(key)
            yield KeyedRow(key, place, row)

    def listed(self, keyed: KeyedRow, chosen: Chosen, embedded: str = "") -> Listed:
        """A row as listed; no picture is opened, but a path is looked up.

        Args:
            keyed: the row; the picture may be missing from it.
            chosen: of :meth:`choose`.
            embedded: state of a picture that is in the table and was not read.
        """
        if keyed.refusal:
            return Listed(keyed.key, f"{embedded} {keyed.refusal}".strip())
        state = self._content_state(keyed.row, chosen, embedded)
        try:
            description = self._description(keyed, chosen)
        except described.BadDescription as bad:
            return Listed(keyed.key, f"{state} {bad}")
        return Listed(keyed.key, f"{state} {described.described_state(description)}", description.concept)

    def fetched(self, keyed: KeyedRow, chosen: Chosen) -> Fetched:
        """A row's picture and description, or why there is none; the row has the picture's column."""
        if keyed.refusal:
            return Fetched(keyed.key, refusal=keyed.refusal)
        try:
            return Fetched(
                keyed.key, self._picture(keyed.row.get(chosen.picture), chosen), self._description(keyed, chosen)
            )
        except described.BadDescription as bad:
            return Fetched(keyed.key, refusal=str(bad))
        except BadRow as bad:
            return Fetched(keyed.key, refusal=str(bad), passing=bad.passing)

    def _description(self, keyed: KeyedRow, chosen: Chosen) -> described.Description:
        row = {name: value for name, value in keyed.row.items() if name != chosen.picture}
        return described.describe(
            row,
            style=self._style,
            licence=self.licence,
            fallback=keyed.key,
            columns=self._options.columns,
            provenance={**self._provenance, "file": keyed.key},
        )

    def _stated_key(self, row: Mapping[str, Any], chosen: Chosen) -> str:
        """What the row itself is named by; "" when only its number is left."""
        if chosen.key is not None:
            value = row.get(chosen.key)
            text = value.hex() if isinstance(value, bytes) else str(value).strip()
            return described.printable(text, at_most=_LONGEST_KEY) if value is not None else ""
        path = _path_in(row.get(chosen.picture), self._options.picture_is)
        return described.printable(path, at_most=_LONGEST_KEY) if path else ""

    @staticmethod
    def _unique(key: str, place: int, seen: set[str]) -> str:
        while key in seen:
            key = f"{key} (row {place})"
        seen.add(key)
        return key

    def _content_state(self, row: Mapping[str, Any], chosen: Chosen, embedded: str) -> str:
        if chosen.state is not None:
            return described.printable(str(row.get(chosen.state)), at_most=_LONGEST_KEY)
        value = row.get(chosen.picture)
        path = _path_in(value, self._options.picture_is)
        if path:
            return f"{embedded} {self._file_state(path)}".strip()
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if embedded or content is None:
            return embedded or "empty"
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        return hashlib.blake2b(data, digest_size=16).hexdigest() if isinstance(data, bytes) else "odd"

    def _file_state(self, path: str) -> str:
        try:
            told = os.stat(self._below_root(path))
        except (OSError, ValueError):
            return "missing"
        return f"{told.st_size}-{told.st_mtime_ns}"

    def _picture(self, value: Any, chosen: Chosen) -> bytes:
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(content, bytes | bytearray | memoryview):
            if len(content) > self._max_bytes:
                raise BadRow(f"{len(content):,} bytes are more than the {self._max_bytes:,} that are allowed")
            return bytes(content)
        if path := _path_in(value, self._options.picture_is):
            return self._read(path)
        if isinstance(content, str) and content:
            return self._from_base64(content)
        if content is None or content == "":
            raise BadRow(f"its picture, column {chosen.picture!r}, is empty")
        raise BadRow(f"column {chosen.picture!r} must hold a path, bytes or base64, not {type(content).__name__}")

    def _from_base64(self, text: str) -> bytes:
        if text.startswith("data:"):
            head, comma, text = text.partition(",")
            if not comma or not head.endswith(";base64"):
                raise BadRow("its data: URL is not base64")
        if len(text) // 4 * 3 > self._max_bytes + 3:
            raise BadRow(f"about {len(text) // 4 * 3:,} bytes are more than the {self._max_bytes:,} that are allowed")
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRow(f"its picture is not base64: {error}") from None

    def _below_root(self, path: str) -> str:
        """The file a path means.

        Raises:
            BadRow: it is no path below the root.
        """
        if self._root is None:
            raise BadRow("it is a path, and no folder is known that it is relative to; set root")
        if "://" in path:
            raise BadRow("it is a URL, and this kind of source reads files only")
        if "\0" in path or any("\ud800" <= sign <= "\udfff" for sign in path):
            raise BadRow("its path holds a zero byte, or characters that are no text")
        file = os.path.normpath(os.path.join(self._root, path))
        if not file.startswith(f"{self._root}{os.sep}".replace("//", "/")):
            raise BadRow(f"its path leads out of the folder {self._root.name}")
        return file

    def _read(self, path: str) -> bytes:
        file = self._below_root(path)
        try:
            if not os.path.realpath(file).startswith(f"{self._real_root}{os.sep}".replace("//", "/")):
                raise BadRow("its path leads out of the folder by a link")
            told, data = _bytes_of(file, self._max_bytes)
        except FileNotFoundError:
            raise BadRow("the file that its path names is not there; add it, or remove the row") from None
        except OSError as error:
            passing = error.errno in _PASSING
            raise BadRow(f"its file cannot be read: {error.strerror}", passing=passing) from None
        if told > self._max_bytes or len(data) > self._max_bytes:
            raise BadRow(f"{max(told, len(data)):,} bytes are more than the {self._max_bytes:,} that are allowed")
        return data


def _path_in(value: Any, picture_is: str) -> str:
    """The path that a picture's column holds; "" when it holds something else."""
    if isinstance(value, Mapping):
        value = value.get("path")
        return value if isinstance(value, str) else ""
    if not isinstance(value, str) or picture_is == "base64":
        return ""
    return "" if picture_is == "auto" and value.startswith("data:") else value


def _bytes_of(file: str, at_most: int) -> tuple[int, bytes]:
    """A file's size and content; of a file that is too large at most one byte more than allowed.

    Raises:
        BadRow: it is no file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a fifo must not wait
    try:
        told = os.fstat(descriptor)
        if not stat.S_ISREG(told.st_mode):
            raise BadRow("its path is not that of a file")
        with open(descriptor, "rb", closefd=False) as opened:
            return told.st_size, opened.read(at_most + 1) if told.st_size <= at_most else b""
    finally:
        os.close(descriptor)
