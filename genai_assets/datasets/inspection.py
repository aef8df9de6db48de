"""Inspections of pictures: made once, in guarded workers, and kept by content.

Belongs here: which pictures have to be looked at, and where verdicts and thumbnails are kept. What is looked for is
``examination``; what decodes safely is ``guarded_worker``; what a verdict means for a record is ``validation``'s to
decide.
"""

import contextlib
import sqlite3
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Self

from genai_assets import durable
from genai_assets.datasets import examination
from genai_assets.datasets.decoding import UndecodablePicture
from genai_assets.datasets.examination import Inspection, Rules
from genai_assets.datasets.guarded_worker import GuardedWorkers, Limits, Lost
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.thumbnails import Thumbnails
from genai_assets.settings import Settings

__all__ = ["Inspection", "Inspections"]

_PROGRESS_EVERY = 100  # pictures
_AHEAD = 1024  # pictures; how many verdicts may wait for one before them,
_AHEAD_BYTES = 128 * 1024**2  # and of how many bytes: whoever hands pictures in may hold them until their turn comes
_ROWS_A_COMMIT = 500

_FAULTS_OF_THE_MACHINE = frozenset({"too slow", "too much memory", "crashed"})

_TABLE = """
CREATE TABLE IF NOT EXISTS inspections (
    id TEXT, rules TEXT, state TEXT NOT NULL, found TEXT NOT NULL, PRIMARY KEY (id, rules)
) WITHOUT ROWID
"""


class Inspections:
    """What is known of every picture that was ever met. A context manager; its workers live as long as it.

    Verdicts are kept in SQLite by the picture's id and everything else they depend on: another pixel cap inspects anew,
    and an unchanged picture is never decoded twice. Verdicts that hang on the machine ("too slow", "too much memory",
    "crashed") are not kept, so the next machine, or a less busy hour, may judge otherwise.
    """

    def __init__(self, settings: Settings):
        """Open what was found before; workers start with the first picture that is new.

        Raises:
            OSError: the file of inspections is damaged; the message says how to mend it.
        """
        self._store = PictureStore(settings.paths.pictures)
        self._thumbnails = Thumbnails(settings.paths.thumbnails)
        dataset = settings.dataset
        rules = Rules(max_pixels=dataset.max_pixels, background=dataset.paper)
        self._rules = durable.digest_json(
            {"version": examination.VERSION, "heif": _version_of_heif(), **asdict(rules)}
        )[:16]
        self._workers = GuardedWorkers(
            partial(examination.prepare, rules),
            limits=Limits(seconds=dataset.decode_seconds, memory_bytes=dataset.decode_memory_mib * 1024**2),
            workers=dataset.decode_workers,
        )
        self._database = _open_database(settings.paths.inspections)
        self._rows: list[tuple[str, str, str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what was found is kept."""
        self._workers.close()
        self._commit()
        self._database.close()

    def keep_and_inspect(self, pictures: Iterable[bytes], store: PictureStore) -> Iterator[Inspection]:
        """Put pictures into the store and inspect those that are new, in one pass; in order, few of them in memory.

        Every picture is durable in the store when the iterator ends, and only then.

        Raises:
            OSError: the store cannot be written.
            WorkerUnavailable: no guarded worker can be started.
        """
        pending = _Queue()
        with self._committing(), store.putting() as put:
            for data in pictures:
                picture = put(data)
                pending.append(self._begin(picture, store.state(picture), data))
                while pending.is_first_due():
                    yield self._finish(pending.popleft())
            while pending:
                yield self._finish(pending.popleft())

    def of(
        self, ids: Iterable[str], store: PictureStore, on_progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Inspection]:
        """The inspections of pictures in the store; only those that were never inspected are read and decoded.

        A picture that is not in the store has the fault "picture missing", one whose bytes are others than were put
        there "picture changed".

        Args:
            ids: of pictures; doubles are asked for once.
            store: where they lie.
            on_progress: called with the pictures done so far, and their number.

        Raises:
            OSError: the store cannot be read.
            WorkerUnavailable: no guarded worker can be started.
        """
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Inspection] = {}
        pending = _Queue()

        def finish_one() -> None:
            inspection = self._finish(pending.popleft())
            found[inspection.id] = inspection
            if on_progress and (len(found) % _PROGRESS_EVERY == 0 or len(found) == len(wanted)):
                on_progress(len(found), len(wanted))

        with self._committing():
            for picture in wanted:
                pending.append(self._begin_kept(picture, store))
                while pending.is_first_due():
                    finish_one()
            while pending:
                finish_one()
        return found

    def thumbnail(self, picture: str) -> bytes:
        """A JPEG of a picture in the home's store, its longer side at most 256 pixels, transparency on the background.

        Raises:
            FileNotFoundError: the store has no such picture.
            UndecodablePicture: it cannot be decoded.
            ValueError: not an id, or the picture's file was changed.
            WorkerUnavailable: no guarded worker can be started.
        """
        if kept := self._thumbnails.read(picture):
            return kept
        data = self._store.read(picture, verify=True)
        found, thumbnail = _told(self._workers.submit(data).result())
        if not thumbnail:
            raise UndecodablePicture(found.reason)
        self._thumbnails.put(picture, thumbnail)
        return thumbnail

    def _begin_kept(self, picture: str, store: PictureStore) -> "_Pending":
        """A picture of the store: known, or read and handed to a worker."""
        try:
            state = store.state(picture)
            # A file that was written since it was inspected is looked at again: disks and people change bytes.
            if known := self._known(picture, state):
                return _Pending(picture, state, known)
            return self._begin(picture, state, store.read(picture, verify=True))
        except FileNotFoundError:
            missing = Inspection(picture, fault="picture missing", reason="picture missing: it is not in the store")
            return _Pending(picture, "", missing)
        except ValueError as error:
            return _Pending(
                picture, "", Inspection(picture, fault="picture changed", reason=f"picture changed: {error}")
            )

    def _begin(self, picture: str, state: str, data: bytes) -> "_Pending":
        """A picture whose bytes are at hand and are known to be its own."""
        answer = self._known(picture, state) or self._workers.submit(data)
        return _Pending(picture, state, answer, len(data))

    def _finish(self, pending: "_Pending") -> Inspection:
        if isinstance(pending.answer, Inspection):
            return pending.answer
        found, thumbnail = _told(pending.answer.result())
        found = replace(found, id=pending.picture)
        if thumbnail:
            self._thumbnails.put(pending.picture, thumbnail)
        if found.fault not in _FAULTS_OF_THE_MACHINE:
            self._rows.append((pending.picture, self._rules, pending.state, examination.to_json(found)))
            if len(self._rows) >= _ROWS_A_COMMIT:
                self._commit()
        return found

    def _known(self, picture: str, state: str) -> Inspection | None:
        row = self._database.execute(
            "SELECT found FROM inspections WHERE id = ? AND rules = ? AND state = ?", (picture, self._rules, state)
        ).fetchone()
        return examination.from_json(row[0]) if row else None

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._commit()

    def _commit(self) -> None:
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO inspections VALUES (?, ?, ?, ?)", self._rows)
        self._rows.clear()


@dataclass(frozen=True)
class _Pending:
    """A picture on its way: already known, or with a worker."""

    picture: str
    state: str
    answer: "Inspection | Future[bytes | Lost]"
    size: int = 0


class _Queue:
    """Pictures on their way, in the order they were handed in."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def append(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._bytes += pending.size

    def popleft(self) -> _Pending:
        pending = self._pending.popleft()
        self._bytes -= pending.size
        return pending

    def is_first_due(self) -> bool:
        """Whether the first is done, or has to be waited for before more may be handed in."""
        if not self._pending:
            return False
        first = self._pending[0].answer
        is_done = isinstance(first, Inspection) or first.done()
        return is_done or len(self._pending) > _AHEAD or self._bytes > _AHEAD_BYTES


def _told(answer: bytes | Lost) -> tuple[Inspection, bytes]:
    """What a worker found, its id left empty, and the thumbnail."""
    if isinstance(answer, bytes):
        try:
            return examination.from_bytes(answer)
        except (ValueError, TypeError, KeyError, struct.error):  # only a worker that was taken over says such things
            answer = Lost("crashed", "the decoder answered nonsense")
    if answer.kind == "failed":
        answer = Lost("crashed", f"the decoder failed: {answer.reason}")
    return Inspection("", fault=answer.kind, reason=f"{answer.kind}: {answer.reason}"), b""


def _open_database(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=60)
    try:
        database.execute(_TABLE)
    except sqlite3.OperationalError:
        database.close()
        raise
    except sqlite3.DatabaseError as error:
        database.close()
        raise OSError(f"{path} is damaged ({error}); remove it: pictures are then inspected anew") from error
    return database


def _version_of_heif() -> str | None:
    """HEIC that was refused for want of the extra is looked at again once it is there."""
    try:
        return metadata.version("pillow-heif")
    except metadata.PackageNotFoundError:
        return None
