"""One way to reach a SQL database: SQLite made durable, any other by its SQLAlchemy URL.

Belongs here: connecting, SQLite's settings, times that keep their zone, and creating tables before the first write.
The tables belong to the rooms: the request log, the champion pointer, the retrain ledger.
"""

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.schema import CreateIndex, CreateTable

from genai_assets import credentials

BUSY_TIMEOUT_MILLISECONDS = 10_000


class UtcDateTime(sa.TypeDecorator[datetime]):
    """UTC in, UTC out, also from databases that keep no time zone (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """What is written."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """What is read."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """A few tables behind one SQLAlchemy URL. Nothing is created before the first write.

    One object may be shared by threads, one database by processes. Base class of what keeps something in SQL.

    Args:
        url: SQLAlchemy URL; ``sqlite:///path`` or for example ``postgresql+psycopg://…``.
        metadata: the tables that are created before the first write.

    Raises:
        ValueError: the URL's dialect or driver is not installed.
    """

    def __init__(self, url: str, metadata: sa.MetaData):
        self._url = sa.make_url(url)
        self._metadata = metadata
        try:
            self._engine = sa.create_engine(self._url)
        except (exc.NoSuchModuleError, ImportError) as error:
            raise ValueError(
                f"the database {self.name} needs a dialect or driver that is not installed: {error}. Install it, or "
                "name another database by serving.database_url"
            ) from error
        if self._url.get_backend_name() == "sqlite":
            event.listen(self._engine, "connect", _make_sqlite_durable)
        self._has_tables = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; used again, it reconnects."""
        self._engine.dispose()

    @property
    def name(self) -> str:
        """The URL without what is secret in it, for messages."""
        return credentials.shown(self._url)

    def _create_tables(self) -> None:
        """Make the tables that are not there; two processes may do so at once."""
        if self._has_tables:
            return
        if (file := self._file) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            for table in self._metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
        self._has_tables = True

    def _rows(self, query: sa.Select[Any]) -> list[sa.Row[Any]]:
        """Run a query; a database or table that does not exist yet has no rows.

        Raises:
            FileNotFoundError: the SQLite file was there and is gone.
            sqlalchemy.exc.SQLAlchemyError: it exists but cannot be read.
        """
        file = self._file
        if file is not None and not file.exists():  # connecting would create an empty database
            if self._has_tables:
                raise FileNotFoundError(f"{file} was removed while it was in use")
            return []
        with self._engine.connect() as connection:
            last = self._metadata.sorted_tables[-1]
            return list(connection.execute(query)) if sa.inspect(connection).has_table(last.name) else []

    @property
    def _file(self) -> Path | None:
        """The SQLite file, when the URL names one plainly (no other database, not in memory, no ``file:`` URI)."""
        database = self._url.database or ":memory:"
        if self._url.get_backend_name() != "sqlite" or database == ":memory:" or database.startswith("file:"):
            return None
        return Path(database)


def _make_sqlite_durable(connection: Any, _record: Any) -> None:
    # Rollback journal: the write-ahead mode of SQLite before 3.51.3 can lose a reset.
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode=DELETE")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
