"""Raw data: every source read into one manifest, what the licence policy refuses written beside it.

Belongs here: putting sources, policy and manifest together. Nothing is judged but licences: corrupt pictures and empty
captions go on to validation.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from genai_assets import durable
from genai_assets.datasets import records
from genai_assets.datasets.licences import LicencePolicy
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record
from genai_assets.datasets.sources import DatasetSource, sources_from
from genai_assets.settings import Settings

MANIFEST = "manifest.parquet"
REFUSED = "refused.parquet"
_PROGRESS_EVERY = 100

OnProgress = Callable[[str, int], None]
"""Told a source's name and how many of its pictures are in the store."""


@dataclass(frozen=True)
class Refusal:
    """Pictures that were left out for their licence.

    Attributes:
        source: name of the source.
        licence: SPDX identifier.
        reason: why, in a sentence.
        count: how many pictures; None when the whole source was refused and therefore never read.
    """

    source: str
    licence: str
    reason: str
    count: int | None


def source_fingerprints(settings: Settings) -> dict[str, str]:
    """Each source's fingerprint by name, and that of the licence policy: another value means new raw data.

    Cheap: no network, no picture is decoded.

    Raises:
        ValueError: an unknown icon set, or a folder that cannot be read (FileNotFoundError, NotADirectoryError).
    """
    fingerprints = {source.name: source.fingerprint() for source in sources_from(settings)}
    return fingerprints | {"licence policy": durable.digest_json(sorted(settings.dataset.allowed_licences))[:16]}


def ingest(
    settings: Settings, out: Path, *, previous: pd.DataFrame | None = None, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Read all sources into ``out/manifest.parquet``, and what was refused into ``out/refused.parquet``.

    Pictures go to the content-addressed store of the settings' home. A source whose licence is not allowed is not even
    fetched; single records under a licence that is not allowed are left out. Of several records with the same picture,
    style and caption the first is kept.

    Args:
        settings: which sources, which licences, where the store is.
        out: an existing folder.
        previous: the last manifest; pictures it knows keep their ``added_at``.
        on_progress: told about progress every hundred pictures and at the end of each source.

    Returns:
        Figures: ``records``, ``concepts``, ``by_source``, ``by_style``, ``by_licence`` (counts), ``duplicates``
        (records left out), ``refused`` (a list of :class:`Refusal` fields) and ``manifest_version``.

    Raises:
        ValueError: nothing is left, an unknown icon set, or a source that cannot be understood.
        FileNotFoundError, NotADirectoryError: a folder or file that a source needs is not there.
        PackageUnavailable: an icon set cannot be fetched.
    """
    policy = LicencePolicy(settings.dataset.allowed_licences)
    kept: list[Record] = []
    refusals: list[Refusal] = []
    for source in sources_from(settings):
        if reason := policy.refusal(source.licence):
            refusals.append(Refusal(source.name, source.licence, reason, count=None))
            continue
        store = _ReportingStore(settings.paths.pictures, source.name, on_progress)
        allowed, refused = _part_by_licence(source, source.read(store), policy)
        kept += allowed
        refusals += refused
    unique = _without_doubles(kept)
    if not unique:
        reasons = "; ".join(f"{refusal.source}: {refusal.reason}" for refusal in refusals)
        raise ValueError(f"no picture to work with: {reasons or 'set dataset.icon_sets or dataset.folder'}")
    frame = records.to_frame(_with_first_arrival(unique, previous))
    records.write_manifest(out / MANIFEST, frame)
    _write_refused(out / REFUSED, refusals)
    return {
        "records": len(frame),
        "concepts": len({record.concept for record in unique}),
        "by_source": _counts(record.source for record in unique),
        "by_style": _counts(record.style for record in unique),
        "by_licence": _counts(record.licence for record in unique),
        "duplicates": len(kept) - len(unique),
        "refused": [asdict(refusal) for refusal in refusals],
        "manifest_version": records.manifest_version(frame),
    }


class _ReportingStore(PictureStore):
    """The store of pictures, telling how many have come in while a source fills it."""

    def __init__(self, root: Path, source: str, on_progress: OnProgress | None):
        super().__init__(root)
        self._source = source
        self._on_progress = on_progress or (lambda source, count: None)

    def put_many(self, pictures: Iterable[bytes]) -> list[str]:
        def counted() -> Iterator[bytes]:
            for count, picture in enumerate(pictures):
                if count % _PROGRESS_EVERY == 0:
                    self._on_progress(self._source, count)
                yield picture

        ids = super().put_many(counted())
        self._on_progress(self._source, len(ids))
        return ids


def _part_by_licence(
    source: DatasetSource, found: Iterable[Record], policy: LicencePolicy
) -> tuple[list[Record], list[Refusal]]:
    allowed: list[Record] = []
    refused: dict[str, int] = {}
    reasons: dict[str, str | None] = {}
    for record in found:
        if record.licence not in reasons:
            reasons[record.licence] = policy.refusal(record.licence)
        if reasons[record.licence] is None:
            allowed.append(record)
        else:
            refused[record.licence] = refused.get(record.licence, 0) + 1
    return allowed, [
        Refusal(source.name, licence, reasons[licence] or "", count) for licence, count in sorted(refused.items())
    ]


def _without_doubles(found: Iterable[Record]) -> list[Record]:
    first: dict[tuple[str, str, str], Record] = {}
    for record in found:
        first.setdefault((record.id, record.style, record.caption), record)
    return list(first.values())


def _with_first_arrival(found: list[Record], previous: pd.DataFrame | None) -> list[Record]:
    if previous is None:
        return found
    arrivals: dict[str, datetime] = {}
    for picture, added_at in zip(previous["id"], previous["added_at"], strict=True):
        arrivals[picture] = min(added_at.to_pydatetime(), arrivals.get(picture, datetime.max.replace(tzinfo=UTC)))
    return [
        record.model_copy(update={"added_at": arrivals[record.id]}) if record.id in arrivals else record
        for record in found
    ]


def _write_refused(path: Path, refusals: list[Refusal]) -> None:
    dtypes = {"source": "string", "licence": "string", "reason": "string", "count": "Int64"}
    rows = {name: [getattr(refusal, name) for refusal in refusals] for name in dtypes}
    table = pd.DataFrame(rows).astype(dtypes)
    with durable.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
