"""Databases as sources: the rows of one query, through SQLAlchemy.

Belongs here: opening a database so that it can only be read, seeing that the query is one that only reads, streaming
its rows, and keeping passwords out of names, logs and errors. What a row's columns mean is ``picture_rows``', what they
say of the picture ``described``'s.

With a ``state`` column a listing transfers no picture. Without one every picture's bytes are read to be digested, or
its path is looked up: right, but dear.
"""

import os
import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import sqlalchemy as sa
from pydantic import ConfigDict, SecretStr
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from genai_assets import credentials
from genai_assets.datasets.sources.picture_rows import KeyedRow, PictureRows, RowOptions
from genai_assets.datasets.sources.source import Fetched, Listed, SourceOptions, SourceUnreadable, Surroundings

READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET TRANSACTION READ ONLY",
    "mysql": "SET TRANSACTION READ ONLY",
    "mariadb": "SET TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
}
"""Dialect: the statement that makes a transaction one that reads. In others a reading account is the only guard."""

_ROWS_AT_ONCE = 1000
_PICTURES_AT_ONCE = 16
_KEYS_AT_ONCE = 200
_FEW = 0.05  # share of the rows that is asked for by key

_WRITING = frozenset(
    {
        *("insert", "update", "delete", "merge", "upsert", "into", "create", "alter", "drop", "truncate", "grant"),
        *("revoke", "attach", "detach", "pragma", "vacuum", "copy", "call", "exec", "execute", "lock", "load"),
    }
)
_TOKENS = re.compile(
    r"""
    --[^\n]*                        # comments
    | /\*.*?(?:\*/|\Z)
    | (?P<text>'(?:[^']|'')*'       # text and quoted names
      | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\]
      | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<word>[^\W\d]\w*)
    | (?P<end>;)
    | (?P<other>\S)
    """,
    re.VERBOSE | re.DOTALL,
)


class SqlOptions(RowOptions):
    """Which database, and which rows.

    Attributes:
        url: of SQLAlchemy, ``dialect+driver://user:password@host/database``. Kept as a secret. All of it, or the
            password, may be ``$NAME``: the environment variable's value, so that no secret need stand in the settings.
        query: one ``SELECT`` or ``WITH``, whose rows are the pictures.
        key: the column that names a row for as long as it is there.
        state: a column that changes with the row, such as ``updated_at``: with it, listing reads no picture.
        root: the folder that a column of paths is relative to.
    """

    # An error about another option would otherwise show the URL.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr
    query: str
    key: str | None = "id"


class SqlSource:
    """Pictures that a query gives: as bytes, or as paths below ``root``.

    The connection can only read where the database knows how (:data:`READ_ONLY`); rows are streamed.
    """

    Options: ClassVar[type[SourceOptions]] = SqlOptions

    def __init__(self, options: SqlOptions, surroundings: Surroundings):
        """Nothing is connected to yet.

        Raises:
            ValueError: no URL of SQLAlchemy, a query that might write, or no key.
        """
        self._url = _parsed(options.url.get_secret_value())
        self._query = read_only_query(options.query)
        if options.key is None:
            raise ValueError("key must name the column by which a row is known")
        place = Path(self._url.database or "").name or self._url.host or "database"
        self.name = options.name or f"sql:{place}"
        self._rows = PictureRows(options, surroundings, root=None, provenance={"database": place})
        self.licence = self._rows.licence

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> Self:
        """A source by its options.

        Raises:
            ValueError: no URL of SQLAlchemy, a query that might write, or ``columns`` names a field that there is not.
        """
        return cls(options, surroundings)

    def list(self) -> Iterator[Listed]:
        """Every row that the query gives; with a ``state`` column without the pictures.

        Raises:
            SourceUnreadable: the database cannot be reached, the query fails, or a column is missing.
        """
        with _Session(self._url, self._query) as session:
            chosen = self._rows.choose(session.columns, self.name)
            columns = [name for name in session.columns if chosen.state is None or name != chosen.picture]
            rows = session.rows(columns, _ROWS_AT_ONCE if chosen.state else _PICTURES_AT_ONCE)
            for keyed in self._rows.keyed(enumerate(rows, start=1), chosen, set()):
                yield self._rows.listed(keyed, chosen)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The rows with these keys; sixteen pictures in memory at a time.

        Raises:
            SourceUnreadable: as of :meth:`list`.
        """
        keys = frozenset(keys)
        with _Session(self._url, self._query) as session:
            chosen = self._rows.choose(session.columns, self.name)
            assert chosen.key is not None
            rows = session.rows([chosen.key], _ROWS_AT_ONCE)
            # The keys are all read before the first picture: not every driver streams two results at once.
            wanted: dict[Any, KeyedRow] = {}
            total = 0
            for row in self._rows.keyed(enumerate(rows, start=1), chosen, set()):
                total += 1
                if row.key in keys and row.refusal:
                    yield self._rows.fetched(row, chosen)
                elif row.key in keys:
                    wanted[row.row[chosen.key]] = row
            # Rows by their keys, a few at a time, are read in a scan each where the key has no index.
            few = len(wanted) < total * _FEW
            batches = [wanted] if wanted and not few else _parts(wanted, _KEYS_AT_ONCE)
            for batch in batches:
                among = (chosen.key, list(batch)) if few else None
                for row in session.rows(session.columns, _PICTURES_AT_ONCE, among=among):
                    keyed = batch.pop(row[chosen.key], None)  # a second row of the same key finds it taken
                    if keyed is not None:
                        yield self._rows.fetched(KeyedRow(keyed.key, keyed.place, row), chosen)


def read_only_query(query: str) -> str:
    """A query that is one statement and reads, without a closing semicolon.

    Comments, text and quoted names are passed over. It is the first of two guards: the connection reads only, too.

    Raises:
        ValueError: several statements, one that is no ``SELECT`` or ``WITH``, or one with a word that writes.
    """
    words, first, end = [], "", 0
    for token in _TOKENS.finditer(query):
        if token["end"]:
            end = end or token.start() + 1
        elif token["word"] or token["text"] or token["other"]:
            if end:
                raise ValueError("query must be one statement; there is another after the semicolon")
            first = first or token[0].casefold()
            words += [token["word"].casefold()] if token["word"] else []
    if first not in ("select", "with"):
        raise ValueError(f"query must be a SELECT, or a WITH that ends in one; it begins with {first.upper()!r}")
    if writing := next((word for word in words if word in _WRITING), None):
        raise ValueError(f"query must only read, but has the word {writing.upper()}; quote it if it is a column's name")
    return query[: end - 1] if end else query


def _parts(rows: dict[Any, KeyedRow], size: int) -> Iterator[dict[Any, KeyedRow]]:
    remaining = iter(list(rows.items()))
    while part := dict(islice(remaining, size)):
        yield part


def _parsed(url: str) -> sa.URL:
    url = _from_environment(url)
    try:
        parsed = sa.make_url(url)
        if parsed.password is not None:
            parsed = parsed.set(password=_from_environment(str(parsed.password)))
        dialect = parsed.get_dialect()
    except exc.ArgumentError as error:
        scheme = url.partition("://")[0]
        known = f": SQLAlchemy knows no {scheme!r}" if isinstance(error, exc.NoSuchModuleError) else ""
        raise ValueError(f"url must be one of SQLAlchemy, dialect+driver://user@host/database{known}") from None
    if dialect.is_async:
        raise ValueError(f"url names the driver {parsed.drivername!r}, which works asynchronously; name another one")
    if dialect.name == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("url must name the SQLite database's file: sqlite:////folder/name.db")
    return parsed


def _from_environment(text: str) -> str:
    name = re.fullmatch(r"\$([A-Za-z_]\w*)", text)
    if name is None:
        return text
    if name[1] not in os.environ:
        raise ValueError(f"url names the environment variable {name[1]}, which is not set")
    return os.environ[name[1]]


class _Session:
    """A connection that reads, for as long as a ``with`` block lasts.

    Attributes:
        columns: of the query's rows.
    """

    def __init__(self, url: sa.URL, query: str):
        self._url = url
        self._query = query
        self.columns: Sequence[str] = ()

    def __enter__(self) -> Self:
        try:
            self._engine = _engine(self._url)
        except ImportError as error:
            raise SourceUnreadable(
                f"the database {self._shown} needs the driver {error.name}, which is not installed; install it"
            ) from None
        try:
            self._connection = self._engine.connect()
            if statement := READ_ONLY.get(self._engine.dialect.name):
                self._connection.exec_driver_sql(statement)
            text = sa.text(_without_parameters(self._query))
            empty = sa.select(sa.text("*")).select_from(sa.text(f"({text.text}\n) AS pictures")).where(sa.false())
            with self._connection.execute(empty) as result:
                self.columns = tuple(result.keys())
        except Exception as error:
            self._close()
            raise self._unreadable(error) from None
        self._table = text.columns(*map(sa.column, self.columns)).subquery("pictures")
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def rows(
        self, columns: Sequence[str], at_once: int, *, among: tuple[str, list[Any]] | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """Rows of the query with these columns, so many read at a time; those whose column has one of the values."""
        query = sa.select(*(self._table.c[name] for name in columns))
        if among is not None:
            query = query.where(self._table.c[among[0]].in_(among[1]))
        options = {"stream_results": True, "yield_per": at_once}
        try:
            with self._connection.execute(query, execution_options=options) as result:
                for row in result.mappings():
                    yield dict(row)
        except exc.SQLAlchemyError as error:
            raise self._unreadable(error) from None

    @property
    def _shown(self) -> str:
        return credentials.shown(self._url)

    def _unreadable(self, error: Exception) -> SourceUnreadable:
        said = str(getattr(error, "orig", None) or error).strip()
        for secret in credentials.secrets_of(self._url):
            said = said.replace(secret, "***")
        return SourceUnreadable(f"the database {self._shown} cannot be read: {said}; see url and query")

    def _close(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        self._engine.dispose()


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, poolclass=NullPool, hide_parameters=True)
    file = Path(str(url.database)).expanduser().absolute()

    def connected() -> sqlite3.Connection:
        # By its own URI: a database that is not there must not be made, nor one that is there be written.
        return sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, check_same_thread=False)

    return sa.create_engine("sqlite://", creator=connected, poolclass=NullPool, hide_parameters=True)


def _without_parameters(query: str) -> str:
    """The query with its colons marked as text: nothing in it is a parameter."""
    return re.sub(r"(?<![:\\\w]):(?=\w)", r"\\:", query)
