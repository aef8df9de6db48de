"""A kind of source for tests: a JSON file says what is on the shelf, and every picture that is fetched is noted.

Registered as others' packages register theirs: by an entry point in the metadata of a distribution on the path.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets.sources.source import Description, Fetched, Listed, SourceOptions, SourceUnreadable

DROPPED = "dropped"
OUT_OF_REACH = "out of reach"
NOT_A_PICTURE = b"no picture at all"


def picture(seed: int) -> bytes:
    """A small PNG; seed 0 is no picture."""
    if seed == 0:
        return NOT_A_PICTURE
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


class ShelfSource:
    """What ``path`` says: key to seed, caption, licence, or a refusal."""

    class Options(SourceOptions):
        """Options: the JSON file; a mapping of keys to [seed, caption, licence]."""

        path: Path

    fetched: list[str] = []  # noqa: RUF012 -- shared on purpose: tests look at it

    def __init__(self, options, surroundings):
        self.name = options.name or "shelf"
        self.licence = options.licence or surroundings.licence
        self._path = options.path
        self._style = surroundings.style

    @classmethod
    def open(cls, options, surroundings):
        return cls(options, surroundings)

    def list(self):
        for key, item in self._items().items():
            yield Listed(key, state=json.dumps(item))

    def fetch(self, keys):
        items = self._items()
        for key in sorted(keys, reverse=True):  # any order is allowed
            self.fetched.append(key)
            seed, caption, licence = items[key]
            if caption == DROPPED:
                yield Fetched(key, refusal="it was dropped")
            elif caption == OUT_OF_REACH:
                yield Fetched(key, refusal="it is out of reach", passing=True)
            else:
                said = Description(caption, f"c-{caption}", self._style, licence or self.licence)
                yield Fetched(key, picture(seed), said)

    def _items(self):
        if not self._path.exists():
            raise SourceUnreadable(f"there is no shelf {self._path}")
        return json.loads(self._path.read_text())


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the kind ``shelf`` for one test."""
    metadata = folder / "site" / "shelf_source-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-source\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[genai_assets.sources]\nshelf = {__name__}:ShelfSource\n")
    monkeypatch.syspath_prepend(str(metadata.parent))
    monkeypatch.setattr(ShelfSource, "fetched", [])
