"""Thumbnails of pictures, named by the picture they show.

Belongs here: where they lie, and noticing one that a power cut left half-written. They are drawn by ``examination``.
"""

from pathlib import Path

from genai_assets.datasets.picture_store import PictureStore, write_unsynced

_BEGINNING, _END = b"\xff\xd8", b"\xff\xd9"


class Thumbnails:
    """JPEG files below one folder, laid out as pictures are: ``ROOT/ab/cdef…``. All of it can be drawn again."""

    def __init__(self, root: Path):
        self._names = PictureStore(root)

    def put(self, picture: str, thumbnail: bytes) -> None:
        """Keep the thumbnail of a picture; durable with the next flush of the disk.

        Raises:
            OSError: the disk is full or cannot be written; nothing half-written is left.
        """
        write_unsynced(self._names.path(picture), thumbnail)

    def read(self, picture: str) -> bytes | None:
        """The thumbnail of a picture; None when there is none, or only part of one.

        Raises:
            ValueError: not an id.
        """
        try:
            thumbnail = self._names.path(picture).read_bytes()
        except FileNotFoundError:
            return None
        return thumbnail if thumbnail.startswith(_BEGINNING) and thumbnail.endswith(_END) else None
