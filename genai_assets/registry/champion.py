"""The champion pointer: one row that says which model serves, changed by compare-and-swap.

Belongs here: reading the pointer, moving it, and its history. The pointer is the truth; the alias in MLflow is set
from it (``tracking.reconcile_champion``). Whether a challenger deserves the place is decided in ``evaluation``.

Two promotions may run at once (a retrain, a person rolling back). Each names the revision it decided upon; the database
lets exactly one of them move the pointer, and the other is told who the champion is now.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from genai_assets.database import Database, UtcDateTime

DEFAULT_NAME = "default"


@dataclass(frozen=True)
class ModelVersion:
    """A model that may be promoted.

    Attributes:
        version: its data version, as in the folder's digests; what requests are logged with.
        path: folder that stock diffusers loads.
        metrics: figures it was judged by, plain JSON values (``{"kid": 0.31}``).
    """

    version: str
    path: Path
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Champion:
    """The pointer as it stands, or stood.

    Attributes:
        name: which pointer; one a served model.
        model_version: version of the model that serves.
        model_path: its folder.
        metrics: figures it was promoted with.
        revision: 1 for the first champion, one more with each promotion; what the next promotion must name.
        promoted_at: UTC.
        reason: why, in the words of the decision.
    """

    name: str
    model_version: str
    model_path: Path
    metrics: dict[str, Any]
    revision: int
    promoted_at: datetime
    reason: str


class ChampionChanged(RuntimeError):
    """The pointer moved since the promotion was decided upon; nothing was changed.

    Attributes:
        current: the champion now, None when there is none.
    """

    def __init__(self, name: str, expected_revision: int, current: Champion | None):
        self.current = current
        stands = (
            f"it is {current.model_version} at revision {current.revision} ({current.reason})"
            if current
            else "there is no champion (revision 0)"
        )
        super().__init__(
            f"champion {name!r} is not at revision {expected_revision} any more: {stands}. "
            "Evaluate the challenger against it, then promote again."
        )


_metadata = sa.MetaData()


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("model_version", sa.String(128), nullable=False),
        sa.Column("model_path", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("promoted_at", UtcDateTime, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    ]


_champion = sa.Table(
    "champion",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    *_columns(),
)

# Every promotion stays, so that a rollback knows where to go back to.
_history = sa.Table(
    "champion_history",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    *_columns(),
)


class ChampionPointer(Database):
    """The pointer behind one SQLAlchemy URL. Nothing is created before the first promotion.

    Args:
        url: SQLAlchemy URL; ``sqlite:///path`` or for example ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str):
        super().__init__(url, _metadata)

    def current(self, name: str = DEFAULT_NAME) -> Champion | None:
        """The champion, or None when nothing was promoted yet.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database exists but cannot be read (which is not "no champion").
        """
        rows = self._rows(sa.select(_champion).where(_champion.c.name == name))
        return _from_row(rows[0]) if rows else None

    def history(self, name: str = DEFAULT_NAME) -> list[Champion]:
        """Every champion there was, the first one first, the current one last."""
        query = sa.select(_history).where(_history.c.name == name).order_by(_history.c.revision)
        return [_from_row(row) for row in self._rows(query)]

    def promote(self, new: ModelVersion, *, expected_revision: int, reason: str, name: str = DEFAULT_NAME) -> Champion:
        """Make ``new`` the champion if the pointer still stands at ``expected_revision``.

        Pointer and history are changed in one committed transaction, or neither.

        Args:
            new: the model that takes the place. Its folder must be there.
            expected_revision: revision of the champion it was compared with; 0 when there was none.
            reason: why, for people.
            name: which pointer.

        Raises:
            ChampionChanged: the pointer moved meanwhile; it names the champion now.
            FileNotFoundError: the model's folder is not there.
            ValueError: the revision is negative or the reason is empty.
        """
        if expected_revision < 0:
            raise ValueError(f"a revision is 0 (no champion yet) or more, not {expected_revision}")
        if not reason.strip():
            raise ValueError("a promotion needs a reason that people can read")
        if not new.path.is_dir():
            raise FileNotFoundError(f"model {new.version} has no folder {new.path}; train it again, then promote")
        promoted = Champion(
            name=name,
            model_version=new.version,
            model_path=new.path.absolute(),
            metrics=new.metrics,
            revision=expected_revision + 1,
            promoted_at=datetime.now(UTC),
            reason=reason,
        )
        row = vars(promoted) | {"model_path": str(promoted.model_path)}
        self._create_tables()
        with self._engine.begin() as connection:
            if not self._move(connection, expected_revision, row):
                raise ChampionChanged(name, expected_revision, self.current(name))
            connection.execute(_history.insert().values(**row))
        return promoted

    @staticmethod
    def _move(connection: sa.Connection, expected_revision: int, row: dict[str, Any]) -> bool:
        """Compare and swap in one statement, so that the database lets one of several through."""
        if expected_revision:
            at_revision = (_champion.c.name == row["name"]) & (_champion.c.revision == expected_revision)
            return connection.execute(_champion.update().where(at_revision).values(**row)).rowcount == 1
        try:
            connection.execute(_champion.insert().values(**row))
        except IntegrityError:  # the name is taken: someone else made the first champion
            return False
        return True


def _from_row(row: sa.Row[Any]) -> Champion:
    return Champion(
        name=row.name,
        model_version=row.model_version,
        model_path=Path(row.model_path),
        metrics=row.metrics,
        revision=row.revision,
        promoted_at=row.promoted_at,
        reason=row.reason,
    )
