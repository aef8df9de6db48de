"""Turns: what only one process at a time may do, in whichever order they come.

Belongs here: waiting for another process, and what is left when one is killed. Writes that are all or nothing are
``durable``'s.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_turn(place: Path, what: str) -> Iterator[bool]:
    """Entered by one process at a time; the others wait, and are told whether they had to.

    The turn is a lock on the file ``place``, which goes when its process dies. The file itself goes with each turn, so
    who gets the lock of a file that is gone asks again for that of the one that is there.

    Args:
        place: a file of its own, in a folder that is there.
        what: what is being made, as a process that waits logs it.
    """
    waited = False
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    _log.warning("another process is making %s: waiting for it", what)
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, place):
                try:
                    yield waited
                finally:
                    place.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False
