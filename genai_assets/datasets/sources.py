"""Sources: what the pictures come from, behind one small interface, and which of them the settings ask for.

Belongs here: the interface, the choice, and the source that feeds people's feedback back in as data. The icon sets and
the folder of pictures have modules of their own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from genai_assets import durable
from genai_assets.datasets.icon_sets import IconSetSource
from genai_assets.datasets.limits import within_limit
from genai_assets.datasets.picture_folder import PictureFolderSource
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import FEEDBACK_LICENCE, FEEDBACK_SOURCE, Record, from_frame, read_manifest
from genai_assets.settings import Settings


class DatasetSource(Protocol):
    """Something that pictures with captions come from.

    Attributes:
        name: names the source in records, for example ``icons:noto``.
        licence: SPDX identifier of its pictures; single records may state another.
    """

    name: str
    licence: str

    def fingerprint(self) -> str:
        """Changes when anything changed that :meth:`read` would give; cheap: no network, nothing decoded."""
        ...

    def read(self, store: PictureStore) -> Iterator[Record]:
        """Put the pictures into ``store`` and give their records. Raw is raw: bad pictures come too."""
        ...


class FeedbackSource:
    """Closed feedback batches: pictures the service drew that people rated well, coming back as data.

    A batch is a manifest (Parquet); its pictures lie in the store of drawn pictures. A batch is never changed once it
    is there: new feedback is a new file.
    """

    name = FEEDBACK_SOURCE
    licence = FEEDBACK_LICENCE

    def __init__(self, batches: Path, drawn: PictureStore, *, limit: int | None = None):
        """``batches`` is the folder of closed batches, ``drawn`` the store their pictures lie in."""
        self._batches = batches
        self._drawn = drawn
        self._limit = limit

    def fingerprint(self) -> str:
        """Digest of every batch's name and content, and the limit."""
        files = {path.name: durable.digest_file(path) for path in self.files()}
        return durable.digest_json({"files": files, "limit": self._limit})[:16]

    def files(self) -> list[Path]:
        """The closed batches, sorted by name."""
        return sorted(self._batches.glob("*.parquet"))

    def read(self, store: PictureStore) -> Iterator[Record]:
        """Copy the batches' pictures into ``store`` and give their records.

        Raises:
            FileNotFoundError: a batch names a picture that the store of drawn pictures does not have.
        """
        records = [record for path in self.files() for record in from_frame(read_manifest(path))]
        records = within_limit(
            records, self._limit, concept=lambda record: record.concept, variant=lambda record: record.variant
        )
        missing = [record.id for record in records if record.id not in self._drawn]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} pictures of the feedback batches in {self._batches} are not in {self._drawn.root} "
                f"(first: {missing[0]}); bring them back, or remove the batch"
            )
        store.put_many(self._drawn.read(record.id, verify=True) for record in records)
        yield from records


def sources_from(settings: Settings) -> list[DatasetSource]:
    """The sources that the settings ask for: a folder, else the icon sets; and feedback when there is any.

    Raises:
        ValueError: an unknown icon set.
    """
    dataset, paths = settings.dataset, settings.paths
    sources: list[DatasetSource] = []
    if dataset.folder is not None:
        sources.append(
            PictureFolderSource(dataset.folder, dataset.house_style, dataset.folder_licence, limit=dataset.limit)
        )
    else:
        sources += [
            IconSetSource(name, paths.packages, offline=dataset.offline, limit=dataset.limit)
            for name in dict.fromkeys(dataset.icon_sets)
        ]
    feedback = FeedbackSource(paths.feedback_batches, PictureStore(paths.drawn), limit=dataset.limit)
    if feedback.files():
        sources.append(feedback)
    return sources
