"""Sprite sheets as a source of pictures: one image with many equal cells, and a text file with their captions.

An example of a kind of source for genai_assets. It shows all there is to one: options, a cheap listing, and fetching
what is asked for, with a reason for each picture that cannot be had.
"""

import hashlib
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from pydantic import Field

from genai_assets.datasets.sources.described import BadDescription, describe, described_state
from genai_assets.datasets.sources.source import Fetched, Listed, SourceOptions, SourceUnreadable, Surroundings


class SpriteSheetOptions(SourceOptions):
    """What a table ``[[dataset.sources]]`` with ``kind = "sprite-sheet"`` may say.

    Attributes:
        sheet: the image.
        captions: a text file: a caption a line for each cell, left to right and top to bottom; an empty line skips one.
        cell: a cell's side in pixels.
    """

    sheet: Path
    captions: Path
    cell: int = Field(ge=1)


class SpriteSheetSource:
    """The cells of a sprite sheet that have a caption; a cell's key is its place, such as ``"3,0"`` (column, row)."""

    Options: ClassVar[type[SourceOptions]] = SpriteSheetOptions

    def __init__(self, options: SpriteSheetOptions, surroundings: Surroundings):
        """Nothing is read yet: a source is opened often and listed seldom."""
        self.name = options.name or f"sprite-sheet:{options.sheet.name}"
        self.licence = options.licence or surroundings.licence
        self._style = options.style or surroundings.style
        self._options = options

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> Self:
        """A source by its options."""
        return cls(options, surroundings)

    def list(self) -> Iterator[Listed]:
        """Every cell with a caption. The state changes when the cell or what is said of it does.

        Raises:
            SourceUnreadable: the sheet or the captions are not there. (Never give an empty list instead: what was
                known of the source would be taken for removed.)
        """
        with self._sheet() as sheet:
            for key, caption, box in self._cells(sheet):
                try:
                    description = self._described(key, caption)
                except BadDescription as bad:
                    yield Listed(key, f"{bad}")
                    continue
                content = hashlib.sha256(sheet.crop(box).tobytes()).hexdigest()[:16]
                yield Listed(key, f"{content} {described_state(description)}", description.concept)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The cells with these keys as PNG files, one in memory at a time."""
        with self._sheet() as sheet:
            for key, caption, box in self._cells(sheet):
                if key not in keys:
                    continue
                try:
                    description = self._described(key, caption)
                except BadDescription as bad:
                    yield Fetched(key, refusal=str(bad))
                    continue
                file = io.BytesIO()
                sheet.crop(box).save(file, "PNG")
                yield Fetched(key, file.getvalue(), description)

    def _described(self, key: str, caption: str):
        return describe(
            {"caption": caption},
            style=self._style,
            licence=self.licence,
            fallback=f"{self._options.sheet.stem} {key}",
            provenance={"sheet": self._options.sheet.name, "cell": key},
        )

    def _cells(self, sheet: Image.Image) -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
        side = self._options.cell
        across = sheet.width // side
        try:
            captions = self._options.captions.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnreadable(f"the captions {self._options.captions} cannot be read: {error}") from None
        if across == 0 or len(captions) > across * (sheet.height // side):
            raise SourceUnreadable(
                f"{self._options.captions} has {len(captions)} lines, but {self._options.sheet} has "
                f"{across * (sheet.height // side)} cells of {side} pixels; set cell, or remove lines"
            )
        for number, caption in enumerate(captions):
            if caption.strip():
                column, row = number % across, number // across
                yield f"{column},{row}", caption, (column * side, row * side, (column + 1) * side, (row + 1) * side)

    def _sheet(self) -> Image.Image:
        try:
            return Image.open(self._options.sheet)
        except OSError as error:  # Pillow's "cannot identify" is one, too
            raise SourceUnreadable(f"the sheet {self._options.sheet} cannot be read: {error}") from None
