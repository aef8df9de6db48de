"""Local Hugging Face datasets as sources; the only module that knows the library ``datasets``, an optional extra.

Belongs here: finding a dataset in a folder (saved by ``save_to_disk``, shards of Parquet, or an imagefolder), its
column of pictures by the type of its feature, and class labels as words. The hub is never asked: the library's own
offline switches are set while it opens something, and nothing is opened by name.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from genai_assets import durable
from genai_assets.datasets.sources.picture_rows import BadRow, Chosen, KeyedRow, PictureRows, RowOptions
from genai_assets.datasets.sources.source import Fetched, Listed, SourceOptions, SourceUnreadable, Surroundings
from genai_assets.datasets.sources.table import (
    LIST_ROWS,
    ParquetTable,
    PictureTable,
    fetched_tables,
    filled,
    is_embedded,
    light_columns,
    listed_tables,
)

if TYPE_CHECKING:
    import datasets

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"


class HuggingFaceOptions(RowOptions):
    """Where the dataset is.

    Attributes:
        path: its folder on this machine.
        split: the one that is read; all when not given.
    """

    path: Path
    split: str | None = None


class HuggingFaceSource:
    """A dataset in a local folder, as ``save_to_disk`` writes it, as shards of Parquet, or as an imagefolder.

    The picture is the column whose feature is an image; it is never decoded here. Class labels become their names; the
    only one is the category, when no column has that name. A row's key is what the ``key`` column says, else the
    picture's path, else split and number. Embedded pictures have the state of the file they are in and their row's
    number, as in Parquet tables.
    """

    Options: ClassVar[type[SourceOptions]] = HuggingFaceOptions

    def __init__(self, options: HuggingFaceOptions, surroundings: Surroundings):
        """Nothing is read yet."""
        self._folder = options.path.expanduser().absolute()
        self.name = options.name or f"hugging-face:{self._folder.name}"
        self._split = options.split
        self._cache = surroundings.cache  # for the library's lock files; nothing is copied
        self._rows = PictureRows(options, surroundings, root=self._folder, provenance={"dataset": self._folder.name})
        self.licence = self._rows.licence

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> Self:
        """A source by its options.

        Raises:
            ValueError: ``columns`` names a field that there is not.
        """
        return cls(options, surroundings)

    def list(self) -> Iterator[Listed]:
        """Every row, without the bytes of pictures.

        Raises:
            SourceUnreadable: no dataset, no such split, or the library is not installed.
        """
        return listed_tables(self._tables(), self._rows)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The rows with these keys, in the dataset's order, a batch of them in memory.

        Raises:
            SourceUnreadable: as of :meth:`list`.
        """
        return fetched_tables(self._tables(), self._rows, keys)

    def _tables(self) -> Iterator[tuple[PictureTable, str]]:
        if not self._folder.is_dir():
            raise SourceUnreadable(f"there is no folder {self._folder}; set path to a dataset that is on this machine")
        if (self._folder / _SAVED).is_file() or (self._folder / _SAVED_SPLITS).is_file():
            yield from self._saved()
        elif shards := sorted(self._folder.rglob("*.parquet")):
            yield from self._shards(shards)
        else:
            yield from self._image_folder()

    def _saved(self) -> Iterator[tuple[PictureTable, str]]:
        with _library(self._folder) as library:
            opened: Any = library.load_from_disk(str(self._folder))
            splits = dict(opened) if isinstance(opened, library.DatasetDict) else {"": opened}
        for split, dataset in self._chosen(splits).items():
            yield _SavedTable(dataset, f"{self._folder}, split {split}" if split else str(self._folder)), _prefix(split)

    def _shards(self, shards: Sequence[Path]) -> Iterator[tuple[PictureTable, str]]:
        by_split: dict[str, Any] = {}
        for path in shards:
            # The hub's own naming: train-00000-of-00002.parquet, or a folder a split.
            split = path.stem.partition("-")[0] if "-of-" in path.stem else path.parent.name
            by_split.setdefault(split, []).append(path)
        for paths in self._chosen(by_split).values():
            for path in paths:
                yield _Shard(path), f"{path.relative_to(self._folder).as_posix()}/"

    def _image_folder(self) -> Iterator[tuple[PictureTable, str]]:
        with _library(self._folder) as library:
            opened: Any = library.load_dataset(
                "imagefolder", data_dir=str(self._folder), streaming=True, cache_dir=str(self._cache)
            )
        for split, dataset in self._chosen(dict(opened)).items():
            with _library(self._folder) as library:
                features = dataset.features or dataset._resolve_features().features
                for column in [name for name, kind in features.items() if isinstance(kind, library.Image)]:
                    dataset = dataset.cast_column(column, library.Image(decode=False))
            yield _ImageFolderTable(dataset, features, self._folder, split), _prefix(split)

    def _chosen(self, splits: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._split is None:
            return splits
        if self._split not in splits:
            raise SourceUnreadable(
                f"{self._folder} has no split {self._split!r}; its splits are {', '.join(sorted(splits)) or 'none'}"
            )
        return {self._split: splits[self._split]}


class _Labels:
    """Names of class labels, put in the place of their numbers."""

    def __init__(self, features: Mapping[str, Any]):
        import datasets

        self._names = {
            column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)
        }
        self._category = next(iter(self._names)) if len(self._names) == 1 and "category" not in features else None

    def in_words(self, row: Mapping[str, Any]) -> dict[str, Any]:
        said = dict(row)
        for column, names in self._names.items():
            number = said.get(column)
            if isinstance(number, int):
                said[column] = names[number] if 0 <= number < len(names) else None
        if self._category is not None:
            said["category"] = said.get(self._category)
        return said

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self._category is None else ("category",)


class _SavedTable:
    """What ``save_to_disk`` wrote: Arrow files, mapped into memory."""

    def __init__(self, dataset: "datasets.Dataset", where: str):
        self.where = where
        self._dataset = dataset.with_format("arrow")
        self._labels = _Labels(dataset.features)
        self._schema = dataset.data.schema
        self.columns: Sequence[str] = (*dataset.column_names, *self._labels.columns)
        self.picture = _picture_column(dataset.features)
        files = [os.stat(file["filename"]) for file in dataset.cache_files]
        self._state = durable.digest_json([[told.st_size, told.st_mtime_ns] for told in files])[:16]

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        light = light_columns(self._schema, chosen)
        path = f"{chosen.picture}.path"
        place = 0
        for table in self._tables():
            rows: list[dict[str, Any]] = table.select([name for name in light if name != path]).to_pylist()
            paths = pc.struct_field(table[chosen.picture], "path").to_pylist() if path in light else None
            for index in range(len(table)):
                row = self._labels.in_words(rows[index] if rows else {})
                place += 1
                yield place, row if paths is None else {**row, chosen.picture: {"path": paths[index]}}

    def embedded_state(self, keyed: KeyedRow, chosen: Chosen) -> str:
        return f"{self._state}-{keyed.place}" if is_embedded(self._schema, chosen) else ""

    def with_pictures(self, rows: Iterator[KeyedRow], chosen: Chosen) -> Iterator[KeyedRow]:
        if not is_embedded(self._schema, chosen):
            yield from rows
            return
        wanted: dict[int, KeyedRow] = {}
        for row in rows:
            if row.refusal:
                yield row
            else:
                wanted[row.place] = row
        first = 1
        for table in self._tables():  # mapped, so that only the wanted rows' bytes are read
            yield from filled(wanted, first, table[chosen.picture], chosen)
            first += len(table)

    def _tables(self) -> Iterator[pa.Table]:
        for start in range(0, len(self._dataset), LIST_ROWS):
            yield self._dataset[start : start + LIST_ROWS]


class _Shard(ParquetTable):
    """A shard of Parquet, whose schema has the features."""

    def __init__(self, path: Path):
        super().__init__(path)
        with _library(path) as library:
            features = library.Features.from_arrow_schema(self.schema)
            self._labels = _Labels(features)
            self.picture = _picture_column(features)
        self.columns: Sequence[str] = (*self.columns, *self._labels.columns)

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        for place, row in super().rows(chosen):
            yield place, row if isinstance(row, BadRow) else self._labels.in_words(row)


class _ImageFolderTable:
    """What the library makes of a folder of pictures: rows with paths, and labels from folders' names or metadata."""

    def __init__(self, dataset: Any, features: Mapping[str, Any], folder: Path, split: str):
        self.where = f"{folder}, split {split}"
        self._dataset = dataset
        self._folder = folder
        self._labels = _Labels(features)
        self.columns: Sequence[str] = (*features, *self._labels.columns)
        self.picture = _picture_column(features)

    def rows(self, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        rows, place = iter(self._dataset), 0
        while True:
            with _library(self._folder):
                row = next(rows, None)
            if row is None:
                return
            picture = row.get(chosen.picture)
            if isinstance(picture, Mapping) and isinstance(path := picture.get("path"), str):
                row = {**row, chosen.picture: os.path.relpath(path, self._folder)}
            place += 1
            yield place, self._labels.in_words(row)

    def embedded_state(self, keyed: KeyedRow, chosen: Chosen) -> str:
        return ""

    def with_pictures(self, rows: Iterator[KeyedRow], chosen: Chosen) -> Iterator[KeyedRow]:
        return rows


def _picture_column(features: Mapping[str, Any]) -> str | None:
    import datasets

    return next((name for name, feature in features.items() if isinstance(feature, datasets.Image)), None)


def _prefix(split: str) -> str:
    return f"{split}/" if split else ""


@contextlib.contextmanager
def _library(where: Path) -> Iterator[Any]:
    """The library ``datasets`` with the hub switched off; its errors in words.

    Raises:
        SourceUnreadable: it is not installed, or cannot read what is asked of it.
    """
    kept = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        try:
            import datasets
            import huggingface_hub.constants
        except ImportError as error:
            raise SourceUnreadable(
                f"{where} is read by the library datasets, which cannot be imported ({error}): "
                "pip install genai_assets[huggingface]"
            ) from None
        # The variables are read at import, which may have been long ago.
        with _set(datasets.config, "HF_HUB_OFFLINE"), _set(huggingface_hub.constants, "HF_HUB_OFFLINE"):
            yield datasets
    except SourceUnreadable:
        raise
    except Exception as error:  # the library raises errors of its own, Arrow's and plain ones
        raise SourceUnreadable(
            f"{where} cannot be read as a Hugging Face dataset: {error}; save it again with save_to_disk"
        ) from None
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")


@contextlib.contextmanager
def _set(module: Any, name: str) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, True)
    try:
        yield
    finally:
        setattr(module, name, before)
