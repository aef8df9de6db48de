"""Tables as sources: Parquet, CSV and JSON lines, with paths of pictures or with the pictures themselves.

Belongs here: reading the three formats in bounded pieces. What a row's columns mean is ``picture_rows``', what they say
of the picture ``described``'s.

The state of a picture that a path names is its file's size and time of change; of one embedded in CSV or JSON lines a
digest of it, as it is read anyway. Bytes in a Parquet file are not read to list it: their state is the size and time of
change of the Parquet file and the row's number, so a rewritten file is fetched again whole and found the same by
content. A ``state`` column spares that.
"""

import contextlib
import csv
import glob
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from genai_assets.datasets.sources import described
from genai_assets.datasets.sources.picture_rows import BadRow, Chosen, KeyedRow, PictureRows, RowOptions
from genai_assets.datasets.sources.source import Fetched, Listed, SourceOptions, SourceUnreadable, Surroundings

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson")

LIST_ROWS = 4096
"""Rows that are read at a time when they are small."""

_BATCH_BYTES = 32 * 1024**2
_MORE_THAN_PICTURE = 1 << 20  # what a line may hold beside its picture


class TableOptions(RowOptions):
    """Where the table is.

    Attributes:
        path: a ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson`` file, or a pattern with ``*`` for several
            of one kind (shards).
    """

    path: str


class TableSource:
    """Pictures that a table names or holds.

    A row's key is what the ``key`` column says, else the picture's path, else its number. Rows are read in batches: a
    Parquet file of a million rows needs the memory of one batch and of the keys.
    """

    Options: ClassVar[type[SourceOptions]] = TableOptions

    def __init__(self, options: TableOptions, surroundings: Surroundings):
        """Nothing is read yet."""
        path = Path(options.path).expanduser().absolute()
        base = _before_magic(path) if glob.has_magic(str(path)) else path.parent
        self.name = options.name or f"table:{path.name}"
        self._path = path
        self._max_bytes = surroundings.max_file_bytes
        self._rows = PictureRows(options, surroundings, root=base, provenance={"table": path.name})
        self.licence = self._rows.licence

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> Self:
        """A source by its options.

        Raises:
            ValueError: ``columns`` names a field that there is not.
        """
        return cls(options, surroundings)

    def list(self) -> Iterator[Listed]:
        """Every row; of Parquet without the pictures.

        Raises:
            SourceUnreadable: no table, one that cannot be read, or without a column that is needed.
        """
        return listed_tables(self._tables(), self._rows)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The rows with these keys, in the table's order; as many in memory as have 32 MiB together.

        Raises:
            SourceUnreadable: as of :meth:`list`.
        """
        return fetched_tables(self._tables(), self._rows, keys)

    def _tables(self) -> Iterator[tuple["PictureTable", str]]:
        for path in (paths := self._paths()):
            yield open_table(path, self._max_bytes), f"{path.name}/" if len(paths) > 1 else ""

    def _paths(self) -> Sequence[Path]:
        if not glob.has_magic(str(self._path)) or self._path.is_file():
            if not self._path.is_file():
                raise SourceUnreadable(f"there is no table {self._path}; set path to a table's file")
            return [self._path]
        paths = sorted(Path(name) for name in glob.glob(str(self._path), recursive=True) if Path(name).is_file())
        if not paths:
            raise SourceUnreadable(f"no table matches {self._path}")
        return paths


class PictureTable(Protocol):
    """An open table.

    Attributes:
        columns: their names.
        picture: the column that is known to hold the pictures; None when names must tell.
        where: the table, for messages.
    """

    columns: Sequence[str]
    picture: str | None
    where: str

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Number and columns of every row, or why it cannot be read; without the pictures where these are dear."""
        ...

    def embedded_state(self, keyed: KeyedRow, chosen: Chosen) -> str:
        """State of a picture that :meth:`rows` leaves out; "" when it leaves none out."""
        ...

    def with_pictures(self, rows: Iterator[KeyedRow], chosen: Chosen) -> Iterator[KeyedRow]:
        """The given rows with their pictures, in the table's order."""
        ...


def listed_tables(tables: Iterable[tuple[PictureTable, str]], rows: PictureRows) -> Iterator[Listed]:
    """Every row of tables, which come with what the keys of their unnamed rows begin with."""
    seen: set[str] = set()
    for table, prefix in tables:
        chosen = rows.choose(table.columns, table.where, picture=table.picture)
        for keyed in rows.keyed(table.rows(chosen), chosen, seen, prefix=prefix):
            yield rows.listed(keyed, chosen, table.embedded_state(keyed, chosen))


def fetched_tables(
    tables: Iterable[tuple[PictureTable, str]], rows: PictureRows, keys: Collection[str]
) -> Iterator[Fetched]:
    """The rows with these keys, table by table."""
    keys = frozenset(keys)
    seen: set[str] = set()
    for table, prefix in tables:
        chosen = rows.choose(table.columns, table.where, picture=table.picture)
        keyed = rows.keyed(table.rows(chosen), chosen, seen, prefix=prefix)
        for row in table.with_pictures((row for row in keyed if row.key in keys), chosen):
            yield rows.fetched(row, chosen)


def open_table(path: Path, max_bytes: int) -> PictureTable:
    """A table by its file's suffix.

    Raises:
        SourceUnreadable: an unknown suffix, or a file that cannot be read or is no such table.
    """
    suffix = path.suffix.casefold()
    if suffix in PARQUET_SUFFIXES:
        return ParquetTable(path)
    if suffix in CSV_SUFFIXES:
        return CsvTable(path, max_bytes)
    if suffix in JSON_SUFFIXES:
        return JsonTable(path, max_bytes)
    known = ", ".join((*PARQUET_SUFFIXES, *CSV_SUFFIXES, *JSON_SUFFIXES))
    raise SourceUnreadable(f"{path} is no table that can be read (known are {known})")


class ParquetTable:
    """A Parquet file, read in batches."""

    def __init__(self, path: Path):
        """Opens the file and reads its footer.

        Raises:
            SourceUnreadable: it cannot be.
        """
        self.where = str(path)
        with _parquet_errors(path):
            told = path.stat()
            # Buffered, or a row group's pictures would be read into memory together.
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        self._path = path
        self._state = f"{told.st_size}-{told.st_mtime_ns}"
        self.schema = self._file.schema_arrow
        self.columns: Sequence[str] = tuple(self.schema.names)
        self.picture: str | None = None

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Number and columns of every row, without pictures' bytes."""
        columns = light_columns(self.schema, chosen)
        place = 0
        for group in range(self._file.metadata.num_row_groups):
            if not columns:  # nothing but pictures
                yield from ((place + number, {}) for number in range(1, self._size(group) + 1))
                place += self._size(group)
                continue
            for batch in self._batches(group, columns):
                for row in batch.to_pylist():
                    place += 1
                    yield place, row

    def embedded_state(self, keyed: KeyedRow, chosen: Chosen) -> str:
        """State of a picture that is in the file; "" when a path is all there is."""
        return f"{self._state}-{keyed.place}" if is_embedded(self.schema, chosen) else ""

    def with_pictures(self, rows: Iterator[KeyedRow], chosen: Chosen) -> Iterator[KeyedRow]:
        """The given rows with their pictures, in the file's order."""
        if not is_embedded(self.schema, chosen):
            yield from rows
            return
        wanted: dict[int, KeyedRow] = {}
        for row in rows:
            if row.refusal:
                yield row
            else:
                wanted[row.place] = row
        place = 1
        for group in range(self._file.metadata.num_row_groups):
            if not any(number in wanted for number in range(place, place + self._size(group))):
                place += self._size(group)
                continue
            for batch in self._batches(group, [chosen.picture]):
                yield from filled(wanted, place, batch.column(0), chosen)
                place += len(batch)

    def _size(self, group: int) -> int:
        return self._file.metadata.row_group(group).num_rows

    def _batches(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """A row group in batches that have 32 MiB on average."""
        told = self._file.metadata.row_group(group)
        chunks = (told.column(index) for index in range(told.num_columns))
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns)
        )
        rows = max(1, min(LIST_ROWS, _BATCH_BYTES * told.num_rows // max(size, 1)))
        with _parquet_errors(self._path):
            yield from self._file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """What goes wrong with a Parquet file, in words."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceUnreadable(
            f"{path} cannot be read as Parquet: {error}; it may be damaged or cut off: write it again"
        ) from None


def is_embedded(schema: pa.Schema, chosen: Chosen) -> bool:
    """Whether an Arrow table holds the pictures themselves."""
    kind = schema.field(chosen.picture).type
    return _is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def light_columns(schema: pa.Schema, chosen: Chosen) -> list[str]:
    """What a listing reads of an Arrow table: the columns that can describe, and of a picture no more than its path."""
    light = []
    for field in schema:
        if field.name == chosen.picture and pa.types.is_struct(field.type):
            light += [f"{field.name}.path"] if field.type.get_field_index("path") >= 0 else []
        elif field.name == chosen.picture:
            light += [] if _is_bytes(field.type) else [field.name]
        elif _can_describe(field.type) or field.name in (chosen.key, chosen.state):
            light.append(field.name)
    return light


def filled(wanted: Mapping[int, KeyedRow], first: int, pictures: Any, chosen: Chosen) -> Iterator[KeyedRow]:
    """The wanted rows among those from number ``first`` on, with their pictures from an Arrow column."""
    for index in range(len(pictures)):
        if row := wanted.get(first + index):
            yield replace(row, row={**row.row, chosen.picture: pictures[index].as_py()})


class TextTable:
    """A table of text, read line by line; pictures in it are read along."""

    def __init__(self, path: Path, max_bytes: int):
        """Reads as much as it needs to know the columns.

        Raises:
            SourceUnreadable: it cannot be.
        """
        self.path = path
        self.where = str(path)
        self._max_line = max_bytes // 3 * 4 + _MORE_THAN_PICTURE
        self.columns: Sequence[str] = self._columns()
        self.picture: str | None = None

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Number and columns of every row, or why it cannot be read."""
        raise NotImplementedError

    def _columns(self) -> tuple[str, ...]:
        raise NotImplementedError

    def embedded_state(self, keyed: KeyedRow, chosen: Chosen) -> str:
        """None: what is in the row is digested."""
        return ""

    def with_pictures(self, rows: Iterator[KeyedRow], chosen: Chosen) -> Iterator[KeyedRow]:
        """The rows as they are: they have their pictures."""
        return rows

    def _unreadable(self, error: Exception, line: int) -> SourceUnreadable:
        if isinstance(error, UnicodeDecodeError):
            return SourceUnreadable(f"{self.path} is not UTF-8 text (after line {line}): {error}; save it as UTF-8")
        if isinstance(error, OSError):
            return SourceUnreadable(f"{self.path} cannot be read: {error.strerror}; see that it may be read")
        return SourceUnreadable(f"{self.path}, line {line} cannot be read: {error}; mend the line")


class CsvTable(TextTable):
    """A CSV file with a heading, or one with tabs; every value is text."""

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Number and columns of every row, or why it cannot be read."""
        # The limit is the process's, and smaller than a picture as text; it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), min(self._max_line, sys.maxsize)))
        line = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = self._reader(file)
                for place, row in enumerate(reader, start=1):
                    line = reader.line_num
                    if None in row or None in row.values():
                        few = "more" if None in row else "fewer"
                        yield place, BadRow(f"line {line} has {few} cells than the first line has columns")
                    else:
                        yield place, row
        except (csv.Error, OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error, line + 1) from None

    def _columns(self) -> tuple[str, ...]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                return tuple(self._reader(file).fieldnames or ())
        except (csv.Error, OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error, 1) from None

    def _reader(self, file: Any) -> "csv.DictReader[str]":
        return csv.DictReader(file, delimiter="\t" if self.path.suffix.casefold() == ".tsv" else ",", strict=True)


class JsonTable(TextTable):
    """JSON lines: an object a line."""

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Number of the line and columns of every row, or why it cannot be read."""
        line = 0
        try:
            for line, text in self._lines():
                yield line, text if isinstance(text, BadRow) else _object(text, line)
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error, line) from None

    def _columns(self) -> tuple[str, ...]:
        columns: dict[str, None] = {}
        found = 0
        for _, row in self.rows(Chosen("", None, None)):
            if isinstance(row, BadRow):
                continue
            columns |= dict.fromkeys(row)
            found += 1
            if found == 100:
                break
        if not found:
            raise SourceUnreadable(f"{self.path} has no line with a JSON object")
        return tuple(columns)

    def _lines(self) -> Iterator[tuple[int, str | BadRow]]:
        with self.path.open("rb") as file:
            number = 0
            while text := file.readline(self._max_line):
                number += 1
                if len(text) == self._max_line and not text.endswith(b"\n"):
                    while (rest := file.readline(self._max_line)) and not rest.endswith(b"\n"):
                        pass
                    yield number, BadRow(f"line {number} has more than {self._max_line:,} bytes")
                elif text.strip():
                    yield number, text.decode("utf-8-sig")


def _object(text: str, line: int) -> Mapping[str, Any] | BadRow:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"line {line} is not JSON: {error}")
    if not isinstance(row, dict):
        return BadRow(f"line {line} is not a JSON object, but {described.printable(text.strip(), at_most=40)}")
    return row


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _can_describe(kind: pa.DataType) -> bool:
    """Whether a column can hold what describes, names or dates a picture: no bytes, vectors or nested things."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _can_describe(kind.value_type)
    return not _is_bytes(kind) and not pa.types.is_nested(kind)


def _before_magic(path: Path) -> Path:
    """The last folder of a pattern that is no pattern."""
    while glob.has_magic(str(path)):
        path = path.parent
    return path
