"""When to ask for a retrain: the decision, which is pure, and the ledger of what was asked.

Belongs here: once per reason, not too soon after the last, not too often in a week. Who gathers the state, and who
starts the run, is the graph's.

"Could not read" is not "empty": whoever failed to read hands in :data:`UNKNOWN`. Unknown asks for nothing, because a
reason that cannot be seen is none, and allows nothing, because a ledger that cannot be read may hold the very request.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import exc

from genai_assets import durable
from genai_assets.database import Database, UtcDateTime
from genai_assets.settings import MonitoringSettings

ReasonKind = Literal["drift", "feedback", "new_data"]

BUDGET_PERIOD = timedelta(days=7)


class Unreadable(Enum):
    """The one value that says: this could not be read."""

    UNKNOWN = "unknown"


UNKNOWN: Literal[Unreadable.UNKNOWN] = Unreadable.UNKNOWN
"""State that could not be read; stands where a sequence would."""


@dataclass(frozen=True)
class Reason:
    """Something that speaks for a retrain.

    Attributes:
        kind: what sort of thing happened.
        key: digest of *what* happened (the drifted log's data version, a batch's name, a manifest's version), never of
            when it was seen: the same state seen again is the same reason.
        detail: one sentence for people.
    """

    kind: ReasonKind
    key: str
    detail: str

    def __post_init__(self) -> None:
        if not self.key.strip():
            raise ValueError(f"a {self.kind} reason needs a key derived from its content, got {self.key!r}")

    @property
    def run_key(self) -> str:
        """Names the request for this reason, for ever: ``drift-0123456789abcdef``."""
        return f"{self.kind}-{durable.digest_json([self.kind, self.key])[:16]}"


@dataclass(frozen=True)
class RetrainRequest:
    """One row of the ledger.

    Attributes:
        run_key: of the reason it was asked for.
        kind, detail: of that reason.
        requested_at: UTC.
    """

    run_key: str
    kind: ReasonKind
    detail: str
    requested_at: datetime


@dataclass(frozen=True)
class RetrainDecision:
    """What was decided.

    Attributes:
        request: whether to ask for a retrain now.
        reason: what for; None when nothing is asked.
        run_key: of the reason; None when nothing is asked.
        why: one sentence, also when nothing is asked.
        decided_at: the clock that was decided by, UTC.
    """

    request: bool
    reason: Reason | None
    run_key: str | None
    why: str
    decided_at: datetime


def decide_retrain(
    reasons: Sequence[Reason] | Literal[Unreadable.UNKNOWN],
    ledger_rows: Sequence[RetrainRequest] | Literal[Unreadable.UNKNOWN],
    now: datetime,
    settings: MonitoringSettings,
) -> RetrainDecision:
    """Decide whether to ask for a retrain, for the first of ``reasons`` that was not asked for before.

    A reason held back by the cooldown or the budget is not lost: it is still there, with the same key, at the next
    look. A request dated after ``now`` (a clock was set back) counts as just made.

    Args:
        reasons: the most urgent first, or :data:`UNKNOWN`.
        ledger_rows: all requests ever made, in any order, or :data:`UNKNOWN`.
        now: with its time zone.
        settings: ``retrain_cooldown_hours`` since the last request, and ``max_retrains_a_week`` in the seven days up to
            now.

    Raises:
        ValueError: ``now`` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError("now needs a time zone; use datetime.now(UTC)")
    now = now.astimezone(UTC)

    def not_now(why: str) -> RetrainDecision:
        return RetrainDecision(False, None, None, why, now)

    if isinstance(reasons, Unreadable):
        return not_now("the reasons could not be read, so none is acted on")
    if isinstance(ledger_rows, Unreadable):
        return not_now("the ledger of requests could not be read, so it may hold this request already")
    if not reasons:
        return not_now("no reason to retrain")
    asked = {row.run_key for row in ledger_rows}
    fresh = [reason for reason in reasons if reason.run_key not in asked]
    if not fresh:
        return not_now("every reason was asked for before")
    times = [min(row.requested_at, now) for row in ledger_rows]
    cooldown = timedelta(hours=settings.retrain_cooldown_hours)
    if times and now - max(times) < cooldown:
        return not_now(f"the last request was at {max(times):%Y-%m-%d %H:%M} UTC, {cooldown} must pass")
    # Up to and including seven days ago, so that no window of seven days, ends included, holds more.
    recent = sum(now - time <= BUDGET_PERIOD for time in times)
    if recent >= settings.max_retrains_a_week:
        return not_now(f"{recent} requests in the last seven days, {settings.max_retrains_a_week} are allowed")
    reason = fresh[0]
    return RetrainDecision(True, reason, reason.run_key, f"{reason.kind}: {reason.detail}", now)


class LedgerUnavailable(RuntimeError):
    """The ledger could not be read or written; nothing was recorded. The cause says why."""


_metadata = sa.MetaData()

_retrain_requests = sa.Table(
    "retrain_requests",
    _metadata,
    sa.Column("run_key", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("requested_at", UtcDateTime, nullable=False),
)


class RetrainLedger(Database):
    """Every request for a retrain that was ever made, behind one SQLAlchemy URL. Nothing is created before a write.

    Args:
        url: SQLAlchemy URL; ``settings.database_url``.
    """

    def __init__(self, url: str):
        super().__init__(url, _metadata)

    def rows(self) -> list[RetrainRequest]:
        """All requests, oldest first; none when the ledger does not exist yet.

        Raises:
            LedgerUnavailable: it exists but cannot be read. Hand :data:`UNKNOWN` to :func:`decide_retrain` then.
        """
        try:
            return [RetrainRequest(**row._mapping) for row in self._rows(_ALL)]
        except (exc.SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"the retrain ledger {self.name} cannot be read: {error}") from error

    def ask(
        self,
        reasons: Sequence[Reason] | Literal[Unreadable.UNKNOWN],
        now: datetime,
        settings: MonitoringSettings,
    ) -> RetrainDecision:
        """Read, :func:`decide_retrain` and record in one transaction that shuts others out.

        Several sensors look at the same time: with a plain read, then a write, two of them would both find the budget
        open. Start a run only when the decision says so; its run key keeps a repeated start from being a second run.

        Raises:
            LedgerUnavailable: it could not be read or committed; nothing was recorded, and nothing is to be started.
        """
        try:
            self._create_tables()
            with self._engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.text(f"LOCK TABLE {_retrain_requests.name} IN EXCLUSIVE MODE"))
                else:  # the first write of a transaction takes SQLite's lock; this one changes nothing
                    connection.execute(_retrain_requests.delete().where(sa.false()))
                decision = decide_retrain(reasons, _read(connection), now, settings)
                if decision.request:
                    connection.execute(_retrain_requests.insert().values(_row(decision)))
                return decision
        except (exc.SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"the retrain ledger {self.name} cannot be written: {error}") from error

    def record(self, decision: RetrainDecision) -> bool:
        """Commit a request; the first for a run key stays, recording it again changes nothing.

        Returns:
            True when it was recorded now, False when it was there.

        Raises:
            ValueError: the decision asks for nothing.
            LedgerUnavailable: it could not be committed.
        """
        row = _row(decision)
        try:
            self._create_tables()
            with self._engine.begin() as connection:
                connection.execute(_retrain_requests.insert().values(row))
        except exc.IntegrityError:  # the primary key: another look, or another process, was first
            return False
        except (exc.SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(f"the retrain ledger {self.name} cannot be written: {error}") from error
        return True


_ALL = sa.select(_retrain_requests).order_by(_retrain_requests.c.requested_at, _retrain_requests.c.run_key)


def _read(connection: sa.Connection) -> list[RetrainRequest]:
    return [RetrainRequest(**row) for row in connection.execute(_ALL).mappings()]


def _row(decision: RetrainDecision) -> dict[str, Any]:
    if not decision.request or decision.reason is None or decision.run_key is None:
        raise ValueError(f"only a decision to retrain can be recorded, not: {decision.why}")
    reason = decision.reason
    return asdict(RetrainRequest(decision.run_key, reason.kind, reason.detail, decision.decided_at))
