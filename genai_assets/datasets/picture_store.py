"""Pictures by content: bytes go in, their SHA-256 comes out, and names them for ever.

Belongs here: where a picture's bytes lie and how they get there safely. What the bytes show, and whether they can be
decoded at all, is not known here.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from genai_assets import durable

_ID = re.compile(r"[0-9a-f]{64}")


class PictureStore:
    """Content-addressed pictures below one folder: ``ROOT/ab/cdef…``, the two parts of the id.

    Several processes may put and read at the same time: a file appears whole, and the same content is the same file.
    """

    def __init__(self, root: Path):
        self.root = root

    def put(self, data: bytes) -> str:
        """Keep one picture durably; return its id (SHA-256, 64 hexadecimal digits).

        Raises:
            OSError: the disk is full or cannot be written; nothing half-written is left.
        """
        picture = durable.digest_bytes(data)
        if not self._holds(picture, data):
            durable.write_bytes(self.path(picture), data)
        return picture

    def put_many(self, pictures: Iterable[bytes]) -> list[str]:
        """Keep many pictures; return their ids in order. All are durable when it returns.

        The pictures are taken one at a time, so a generator never has to hold them all.

        Raises:
            OSError: as of :meth:`putting`.
        """
        with self.putting() as put:
            return [put(data) for data in pictures]

    @contextlib.contextmanager
    def putting(self) -> Iterator[Callable[[bytes], str]]:
        """Give a function that keeps one picture and returns its id; all it kept is durable when the block ends.

        One flush of the disk at the end takes the place of two a picture, so that 11,000 pictures take seconds.

        Raises:
            OSError: the disk is full or cannot be written. Pictures put before stay, whole, and are met again by the
                next try.
        """
        written = False

        def put(data: bytes) -> str:
            nonlocal written
            picture = durable.digest_bytes(data)
            if not self._holds(picture, data):
                write_unsynced(self.path(picture), data)
                written = True
            return picture

        try:
            yield put
        finally:
            if written:
                os.sync()

    def read(self, picture: str, *, verify: bool = False) -> bytes:
        """The bytes of a picture.

        Args:
            picture: its id.
            verify: recompute the digest and compare.

        Raises:
            FileNotFoundError: the store has no such picture.
            ValueError: not an id, or with ``verify``, the bytes are not the ones that were put.
        """
        try:
            data = self.path(picture).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no picture {picture} in {self.root}; materialize raw_data again to bring the source pictures back"
            ) from None
        if verify and durable.digest_bytes(data) != picture:
            raise ValueError(f"{self.path(picture)} was changed or damaged; remove it and materialize raw_data again")
        return data

    def path(self, picture: str) -> Path:
        """Where a picture lies, or would lie.

        Raises:
            ValueError: not an id, so that no text from outside can name another file.
        """
        if not _ID.fullmatch(picture):
            raise ValueError(f"{picture!r} is not a picture's id (64 hexadecimal digits)")
        return self.root / picture[:2] / picture[2:]

    def state(self, picture: str) -> str:
        """Size and time of change of a picture's file; another value means that it was written or tampered with.

        Raises:
            FileNotFoundError: the store has no such picture.
            ValueError: not an id.
        """
        found = self.path(picture).stat()
        return f"{found.st_size}-{found.st_mtime_ns}"

    def __contains__(self, picture: str) -> bool:
        return self.path(picture).is_file()

    def _holds(self, picture: str, data: bytes) -> bool:
        # Compared, not only looked for: a power cut during put_many may leave a name without its bytes.
        try:
            return self.path(picture).read_bytes() == data
        except FileNotFoundError:
            return False


def write_unsynced(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is durable only once the disk has been flushed (``os.sync``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
