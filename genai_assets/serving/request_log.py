"""The request log: every request the service answered and every rating people gave, in a SQL database.

Belongs here: the two tables, writing one committed row, reading them as data frames. SQLite by default (rollback
journal, ``synchronous=FULL``: the write-ahead mode of SQLite before 3.51.3 can lose a reset), any other database by
its SQLAlchemy URL; only standard column types are used. What the rows mean for retraining is ``monitoring``.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from genai_assets.database import Database, UtcDateTime

if TYPE_CHECKING:
    import pandas as pd


class UnknownRequest(LookupError):
    """Feedback names a request, or a picture of it, that the log does not hold."""


class LogUnavailable(RuntimeError):
    """The log could not be read or written; nothing was committed. The cause says why."""


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class RequestEntry:
    """One request as it was answered.

    Attributes:
        prompt: the prompt as the user typed it, before the model's prompt template.
        n: pictures asked for.
        size: pixels as ``"64x64"``.
        seed: seed of the first picture (a request without one is given one, so that every picture can be redrawn).
        model_version: version of the model that was serving.
        status: HTTP status of the answer.
        error_code: the answer's error code, None when it succeeded.
        latency_ms: from the body being read to the answer being ready, milliseconds; None when nothing was drawn.
        picture_ids: ids of the drawn pictures in the picture store, in the order of the answer.
        id: 32 hexadecimal digits, minted here.
        created_at: UTC.
    """

    prompt: str
    n: int
    size: str
    seed: int | None
    model_version: str
    status: int
    error_code: str | None = None
    latency_ms: float | None = None
    picture_ids: list[str] = field(default_factory=list)
    id: str = field(default_factory=_new_id)
    created_at: datetime = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class FeedbackEvent:
    """One person's opinion of one picture; later events on the same picture are kept beside earlier ones.

    Attributes:
        request_id: the request that drew the picture.
        picture_id: the picture's id in the picture store.
        rating: 1 for up, -1 for down.
        comment: free text, may be empty.
        better_caption: what the picture really shows, in the person's words, or None.
        id: 32 hexadecimal digits, minted here.
        created_at: UTC.
    """

    request_id: str
    picture_id: str
    rating: Literal[-1, 1]
    comment: str = ""
    better_caption: str | None = None
    id: str = field(default_factory=_new_id)
    created_at: datetime = field(default_factory=_now)

    def __post_init__(self) -> None:
        if self.rating not in (-1, 1):
            raise ValueError(f"a rating is -1 or 1, not {self.rating!r}")


_metadata = sa.MetaData()

_requests = sa.Table(
    "requests",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("size", sa.String(16), nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Column("model_version", sa.String(128), nullable=False, index=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.String(64)),
    sa.Column("latency_ms", sa.Float),
    sa.Column("picture_ids", sa.JSON, nullable=False),
)

_feedback = sa.Table(
    "feedback",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Column("request_id", sa.ForeignKey("requests.id"), nullable=False, index=True),
    sa.Column("picture_id", sa.String(64), nullable=False),
    sa.Column("rating", sa.SmallInteger, sa.CheckConstraint("rating IN (-1, 1)"), nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("better_caption", sa.Text),
)

REQUEST_COLUMNS = tuple(column.name for column in _requests.columns)
FEEDBACK_COLUMNS = tuple(column.name for column in _feedback.columns)


class RequestLog(Database):
    """The log behind one SQLAlchemy URL. Each write is one committed transaction when its method returns.

    Args:
        url: SQLAlchemy URL; ``sqlite:///path`` or for example ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str):
        super().__init__(url, _metadata)

    def record_request(self, entry: RequestEntry) -> None:
        """Commit one request.

        Raises:
            LogUnavailable: it could not be committed.
        """
        with self._transaction() as connection:
            connection.execute(_requests.insert().values(_row(entry)))

    def record_feedback(self, opinion: FeedbackEvent) -> None:
        """Commit one opinion.

        Raises:
            UnknownRequest: the log holds no such request, or the request drew no such picture.
            LogUnavailable: it could not be committed.
        """
        with self._transaction() as connection:
            drawn = connection.scalar(sa.select(_requests.c.picture_ids).where(_requests.c.id == opinion.request_id))
            if drawn is None:
                raise UnknownRequest(f"there is no request {opinion.request_id!r}")
            if opinion.picture_id not in drawn:
                raise UnknownRequest(f"request {opinion.request_id!r} drew no picture {opinion.picture_id!r}")
            connection.execute(_feedback.insert().values(_row(opinion)))

    def pictures_of(self, request_id: str) -> list[str]:
        """Picture ids of one request, in the order of its answer.

        Raises:
            UnknownRequest: the log holds no such request.
            LogUnavailable: the log could not be read.
        """
        query = sa.select(_requests.c.picture_ids).where(_requests.c.id == request_id)
        rows = self._read(query)
        if not rows:
            raise UnknownRequest(f"there is no request {request_id!r}")
        return list(rows[0][0])

    def requests(self, *, model_version: str | None = None, newest: int | None = None) -> "pd.DataFrame":
        """Requests in the order they came, one row each, columns :data:`REQUEST_COLUMNS`.

        A log that does not exist yet is an empty frame. ``created_at`` is UTC, ``picture_ids`` a list.

        Args:
            model_version: only requests answered by this model.
            newest: at most so many, the newest ones.

        Raises:
            LogUnavailable: the log exists but could not be read (which is not the same as being empty).
        """
        query = sa.select(_requests).order_by(_requests.c.created_at.desc(), _requests.c.id.desc())
        if model_version is not None:
            query = query.where(_requests.c.model_version == model_version)
        if newest is not None:
            query = query.limit(newest)
        return _frame(reversed(self._read(query)), REQUEST_COLUMNS)

    def feedback(self) -> "pd.DataFrame":
        """Feedback events in the order they came, one row each, columns :data:`FEEDBACK_COLUMNS`.

        Raises:
            LogUnavailable: the log exists but could not be read.
        """
        query = sa.select(_feedback).order_by(_feedback.c.created_at, _feedback.c.id)
        return _frame(self._read(query), FEEDBACK_COLUMNS)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            self._create_tables()
            with self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise LogUnavailable(f"the request log {self.name} cannot be written: {_reason(error)}") from error

    def _read(self, query: sa.Select[Any]) -> list[sa.Row[Any]]:
        try:
            return self._rows(query)
        except (SQLAlchemyError, OSError) as error:
            raise LogUnavailable(f"the request log {self.name} cannot be read: {_reason(error)}") from error


def _row(entry: RequestEntry | FeedbackEvent) -> dict[str, Any]:
    return asdict(entry)


def _frame(rows: Any, columns: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd  # here, because the service only writes, and starts a second earlier without it

    frame = pd.DataFrame([tuple(row) for row in rows], columns=pd.Index(columns))
    frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True)
    return frame


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error)


assert {name.name for name in fields(RequestEntry)} == set(REQUEST_COLUMNS)
assert {name.name for name in fields(FeedbackEvent)} == set(FEEDBACK_COLUMNS)
