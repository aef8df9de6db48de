"""A team's own folder of pictures with captions as a source.

Belongs here: the two layouts that are understood (an imagefolder's ``metadata.jsonl``, and a ``.txt`` file beside each
picture), and the errors a person can make with them. Whether a picture or caption is any good is decided by validation:
what is corrupt or without caption still becomes a record.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genai_assets import durable
from genai_assets.datasets import decoding
from genai_assets.datasets.limits import within_limit
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record

METADATA = "metadata.jsonl"
CAPTION_COLUMNS = ("text", "caption")
"""The column of ``metadata.jsonl`` that holds the caption; the first that is there counts."""
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SIDECAR_SUFFIX = ".txt"

_READING = 1  # raise it when the same folder would give other records


@dataclass(frozen=True)
class _Entry:
    """One picture file and what the folder says of it."""

    path: Path
    file: str
    caption: str
    concept: str
    category: str
    keywords: tuple[str, ...]
    style: str
    licence: str


class PictureFolderSource:
    """Pictures below a folder, with captions from ``metadata.jsonl`` or from ``.txt`` files beside them.

    Each line of ``metadata.jsonl`` is a JSON object with ``file_name`` (relative to the folder) and ``text`` or
    ``caption``; ``concept``, ``category``, ``keywords`` (a list, or text with commas), ``licence`` and ``style`` are
    optional. A picture it does not name takes the text of its sidecar (``cup.png``, ``cup.txt``), else an empty
    caption. Without a ``concept``, pictures with the same caption are of one concept. Hidden files are passed over.
    """

    def __init__(self, folder: Path, style: str, licence: str, *, limit: int | None = None):
        """Nothing is read yet.

        Args:
            folder: where the pictures are; folders below it count too.
            style: style of the pictures that state none.
            licence: SPDX identifier of the pictures that state none.
            limit: at most so many pictures, see ``limits``.
        """
        self.folder = folder.expanduser().absolute()
        self.name = f"folder:{self.folder.name}"
        self.licence = licence
        self._style = style
        self._limit = limit

    def fingerprint(self) -> str:
        """Digest of every relevant file's relative path, size and time of change; no picture is opened.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: as in :meth:`read`.
        """
        files = {}
        for path in self._files():
            if path.suffix.lower() in {*PICTURE_SUFFIXES, SIDECAR_SUFFIX} or path == self.folder / METADATA:
                status = path.stat()
                files[path.relative_to(self.folder).as_posix()] = [status.st_size, status.st_mtime_ns]
        said = {
            "reading": _READING,
            "files": files,
            "style": self._style,
            "licence": self.licence,
            "limit": self._limit,
        }
        return durable.digest_json(said)[:16]

    def read(self, store: PictureStore) -> Iterator[Record]:
        """Put every picture into ``store``, then give the records. A corrupt picture has width and height 0.

        Raises:
            FileNotFoundError: the folder is not there, or ``metadata.jsonl`` names files that are not there.
            NotADirectoryError: it is not a folder.
            ValueError: no pictures, a file that leads out of the folder, or ``metadata.jsonl`` cannot be understood.
        """
        entries = within_limit(
            self._entries(), self._limit, concept=lambda entry: entry.concept, variant=lambda entry: False
        )
        sizes: list[tuple[int, int]] = []

        def pictures() -> Iterator[bytes]:
            for entry in entries:
                data = entry.path.read_bytes()
                try:
                    sizes.append(decoding.probe(data))
                except decoding.UndecodablePicture:
                    sizes.append((0, 0))
                yield data

        ids = store.put_many(pictures())
        now = datetime.now(UTC)
        for entry, picture, (width, height) in zip(entries, ids, sizes, strict=True):
            yield Record(
                id=picture,
                caption=entry.caption,
                concept=entry.concept,
                style=entry.style,
                source=self.name,
                licence=entry.licence,
                width=width,
                height=height,
                added_at=now,
                category=entry.category,
                keywords=entry.keywords,
                provenance={"folder": self.folder.name, "file": entry.file},
            )

    def _files(self) -> list[Path]:
        """Every file below the folder that is not hidden, sorted.

        Links are followed only while they stay inside: a folder of pictures must not pull in the rest of the disk.
        """
        if not self.folder.exists():
            raise FileNotFoundError(f"there is no folder {self.folder}; set dataset.folder to your folder of pictures")
        if not self.folder.is_dir():
            raise NotADirectoryError(
                f"{self.folder} is a file; set dataset.folder to the folder that holds the pictures"
            )
        root = self.folder.resolve()
        files: list[Path] = []
        for home, folders, names in os.walk(self.folder, onerror=_refuse_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in [*folders, *names]:
                path = Path(home, name)
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    raise ValueError(f"{path} is a link that leads out of {self.folder}; copy the file in or remove it")
                if not path.exists():
                    raise ValueError(f"{path} is a link to a file that is not there; remove it")
            files += [Path(home, name) for name in names if not name.startswith(".")]
        return sorted(files)

    def _entries(self) -> list[_Entry]:
        pictures = [path for path in self._files() if path.suffix.lower() in PICTURE_SUFFIXES]
        if not pictures:
            raise ValueError(f"no pictures in {self.folder} (looked for {', '.join(sorted(PICTURE_SUFFIXES))})")
        described = self._described_entries()
        named = {entry.path for entry in described}
        return described + [self._sidecar_entry(path) for path in pictures if path not in named]

    def _sidecar_entry(self, picture: Path) -> _Entry:
        sidecar = picture.with_suffix(SIDECAR_SUFFIX)
        caption = ""
        if sidecar.is_file():
            try:
                caption = sidecar.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{sidecar} is not UTF-8 text: {error}; save it as UTF-8") from None
        return self._entry(picture, {"caption": " ".join(caption.split())})

    def _described_entries(self) -> list[_Entry]:
        path = self.folder / METADATA
        if not path.is_file():
            return []
        rows = list(_read_rows(path))
        columns = {column for _, row in rows for column in row}
        for needed in (("file_name",), CAPTION_COLUMNS):
            if rows and not columns & set(needed):
                raise ValueError(
                    f"{path} has no column {' or '.join(map(repr, needed))}; "
                    f"its columns are {', '.join(sorted(columns)) or 'none'}"
                )
        entries, missing = [], []
        for number, row in rows:
            where = f"{path}, line {number}"
            name = _text(row, "file_name", where)
            picture = Path(os.path.normpath(self.folder / name))
            if not name or picture == self.folder or not picture.is_relative_to(self.folder):
                raise ValueError(f"{where}: file_name {name!r} is not a file below {self.folder}")
            if not picture.is_file():
                missing.append(name)
            elif not picture.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError(f"{where}: file_name {name!r} leads out of {self.folder} by a link")
            else:
                entries.append(self._entry(picture, _description(row, where)))
        if missing:
            raise FileNotFoundError(
                f"{path} names {len(missing)} files that are not there: {', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}; add the files or remove the lines"
            )
        return entries

    def _entry(self, picture: Path, said: dict[str, Any]) -> _Entry:
        file = picture.relative_to(self.folder).as_posix()
        caption = said.get("caption", "")
        return _Entry(
            path=picture,
            file=file,
            caption=caption,
            concept=said.get("concept") or slug(caption) or slug(file),
            category=said.get("category", ""),
            keywords=said.get("keywords", ()),
            style=said.get("style") or self._style,
            licence=said.get("licence") or self.licence,
        )


def slug(text: str) -> str:
    """Letters and digits of ``text`` in lower case, the rest dashes: ``"A red cup!"`` gives ``"a-red-cup"``."""
    return re.sub(r"[\W_]+", "-", text.casefold()).strip("-")


def _refuse_unreadable(error: OSError) -> None:
    raise error  # os.walk would pass over a folder it may not read


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object with columns, but {line.strip()[:40]!r}")
        yield number, row


def _description(row: dict[str, Any], where: str) -> dict[str, Any]:
    caption = next((name for name in CAPTION_COLUMNS if row.get(name) is not None), CAPTION_COLUMNS[0])
    said: dict[str, Any] = {
        name: _text(row, name, where) for name in ("concept", "category", "style", "licence") if name in row
    }
    return {**said, "caption": _text(row, caption, where), "keywords": _keywords(row, where)}


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column} must be text, not {value!r}")
    return " ".join(value.split()) if column != "file_name" else value


def _keywords(row: dict[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("keywords") or []
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where}: keywords must be a list of texts, or one text with commas, not {value!r}")
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
