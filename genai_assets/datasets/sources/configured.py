"""Which sources the settings ask for.

Belongs here: the shorthands ``dataset.folder`` and ``dataset.icon_sets``, the tables of ``dataset.sources``, and the
entry points that kinds of sources are found by, other packages' among them. How a kind reads is its own module's.
"""

import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import FEEDBACK_SOURCE, SYNTHETIC_SOURCE
from genai_assets.datasets.sources.closed_batches import ClosedBatchesSource
from genai_assets.datasets.sources.icon_sets import IconSetSource
from genai_assets.datasets.sources.picture_folder import PictureFolderSource
from genai_assets.datasets.sources.source import DatasetSource, SourceKind, SourceOptions, Surroundings
from genai_assets.settings import Settings

ENTRY_POINTS = "genai_assets.sources"
"""The group of entry points; each names a class as of :class:`~genai_assets.datasets.sources.source.SourceKind`."""

EXAMPLE_SETS = ("noto", "twemoji", "fluent-emoji-3d")
"""Read when nothing else is asked for: two styles that the embedded base knows, and the house style of the example."""

_ICON_SET = "icon-set"


def source_kinds() -> dict[str, EntryPoint]:
    """Every installed kind of source by its name; nothing of them is imported."""
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINTS))}


def sources_from(settings: Settings) -> list[DatasetSource]:
    """The sources that the settings ask for, each with a name of its own; nothing is read yet.

    Without a folder, a table of ``dataset.sources`` and ``dataset.icon_sets`` they are the example's icon sets. What
    our own models drew comes last: feedback, and synthetic pictures.

    Raises:
        ValueError: an unknown kind, option or icon set, or two sources of one name.
    """
    dataset, paths = settings.dataset, settings.paths
    sources: list[DatasetSource] = []
    if dataset.folder is not None:
        sources.append(PictureFolderSource(dataset.folder, dataset.house_style, dataset.folder_licence))
    sources += [_open(number, table, settings) for number, table in enumerate(dataset.sources, start=1)]
    otherwise = () if sources else EXAMPLE_SETS
    names = dict.fromkeys(otherwise if dataset.icon_sets is None else dataset.icon_sets)
    sources += [IconSetSource(name, paths.packages, offline=dataset.offline) for name in names]
    drawn = PictureStore(paths.drawn)
    sources += [
        ClosedBatchesSource(FEEDBACK_SOURCE, paths.feedback_batches, drawn),
        ClosedBatchesSource(SYNTHETIC_SOURCE, paths.synthetic_batches, drawn),
    ]
    if twice := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise ValueError(
            f"two sources are called {twice[0]!r}; give one of them another name (the option 'name' of dataset.sources)"
        )
    return sources


def _open(number: int, table: Mapping[str, Any], settings: Settings) -> DatasetSource:
    where = f"dataset.sources, table {number}"
    kinds, kind = source_kinds(), table.get("kind")
    if kind not in kinds:
        said = f"has the unknown kind {kind!r}" if kind else "has no kind"
        raise ValueError(f"{where}, {said}; known are {', '.join(kinds)}")
    opened: type[SourceKind] = kinds[kind].load()
    given = {name: value for name, value in table.items() if name != "kind"}
    try:
        options = opened.Options(**given)
    except ValidationError as error:
        raise ValueError(f"{where} ({kind}): {_said(error, opened.Options)}") from None
    try:
        return opened.open(options, _surroundings(kind, number, options, settings))
    except ValueError as error:
        raise ValueError(f"{where} ({kind}): {error}") from error


def _surroundings(kind: str, number: int, options: SourceOptions, settings: Settings) -> Surroundings:
    dataset, paths = settings.dataset, settings.paths
    called = re.sub(r"[^\w.-]+", "-", options.name or f"{kind}-{number}").strip(".-")
    return Surroundings(
        style=options.style or dataset.house_style,
        licence=options.licence or dataset.folder_licence,
        cache=paths.packages if kind == _ICON_SET else paths.downloads / called,  # all icon sets share emojibase
        offline=dataset.offline,
    )


def _said(error: ValidationError, options: type[SourceOptions]) -> str:
    """A validation error in one line, with the options that there are."""
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return f"{'; '.join(faults)} (options are {', '.join(options.model_fields)})"
