"""The feature index: vectors of pictures and captions in LanceDB, each computed once.

Belongs here: keeping vectors by picture id and caption, computing only the missing ones, nearest neighbours, and the
``image_features`` artifact, which is a copy of the vectors one manifest needs. How a vector is computed is
``features``.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets.decoding import WHITE, UndecodablePicture, decode, to_square
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.diffusion.base_model import training_resolution
from genai_assets.evaluation.features import PictureFeatures, TextFeatures

if TYPE_CHECKING:
    import pyarrow as pa

    from genai_assets.settings import Settings

_PICTURES_A_COMMIT = 512
_FILES = ("pictures", "captions")

INDEX_FROM = 100_000
"""Vectors from which on neighbours are found approximately; fewer are compared one by one, which is fast and exact."""

_PROBES = 32
_REFINED = 4  # times as many are fetched and compared exactly
_UNINDEXED_SHARE = 0.1


@dataclass(frozen=True)
class Neighbour:
    """A picture near a vector: its id and the cosine distance, 0 (same direction) to 2."""

    id: str
    distance: float


class FeatureIndex:
    """All vectors ever computed, in a LanceDB folder.

    Vectors of different extractor versions lie in different tables (``pictures.VERSION``), so that they never mix.
    Each commit adds whole rows: after a crash the index holds what was added before, and the next call adds the rest.

    Args:
        path: the LanceDB folder; made by the first addition.
        pictures: extractor of picture vectors.
        captions: extractor of caption vectors.
        picture_kind: what was done to pictures before extraction, for example ``"64px"``; part of the table's name,
            since vectors of differently prepared pictures must not be compared.
    """

    def __init__(
        self,
        path: Path,
        pictures: PictureFeatures | None = None,
        captions: TextFeatures | None = None,
        *,
        picture_kind: str = "plain",
    ):
        self.path = path
        self.pictures = pictures or PictureFeatures()
        self.captions = captions or TextFeatures()
        self.picture_kind = picture_kind

    @property
    def version(self) -> str:
        """Both extractors' versions and the pictures' preparation."""
        return f"{self.pictures.version}.{self.picture_kind}+{self.captions.version}"

    def add_missing_pictures(
        self,
        ids: Sequence[str],
        load: Callable[[Sequence[str]], np.ndarray],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Compute and keep vectors of the pictures that have none yet.

        Args:
            ids: picture ids; repeated ones count once.
            load: gives the pixels of some ids, uint8 [len(ids), H, W, 3], in their order.
            on_progress: told (done, missing) after each commit of 512 pictures.

        Returns:
            int: how many were computed.
        """
        missing = self._missing(self._picture_table, ids)
        for start in range(0, len(missing), _PICTURES_A_COMMIT):
            part = missing[start : start + _PICTURES_A_COMMIT]
            vectors = self.pictures.extract(load(part))
            if len(vectors) != len(part):
                raise ValueError(f"load gave {len(vectors)} pictures for {len(part)} ids")
            self._add(self._picture_table, {"id": part}, vectors)
            if on_progress:
                on_progress(start + len(part), len(missing))
        return len(missing)

    def add_missing_captions(self, captions: Sequence[str]) -> int:
        """Compute and keep vectors of the captions that have none yet; returns how many were computed."""
        texts = {durable.digest_bytes(caption.encode()): caption for caption in captions}
        missing = self._missing(self._caption_table, list(texts))
        if missing:
            new = [texts[digest] for digest in missing]
            self._add(self._caption_table, {"id": missing, "caption": new}, self.captions.extract(new))
        return len(missing)

    def picture_vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Kept vectors, float32 [len(ids), 1280], in the order of ``ids``.

        Raises:
            KeyError: a picture has no vector yet.
        """
        return self._vectors(self._picture_table, ids, self.pictures.width)

    def caption_vectors(self, captions: Sequence[str]) -> np.ndarray:
        """Kept vectors, float32 [len(captions), 384], in the order of ``captions``.

        Raises:
            KeyError: a caption has no vector yet.
        """
        digests = [durable.digest_bytes(caption.encode()) for caption in captions]
        return self._vectors(self._caption_table, digests, self.captions.width)

    def nearest_pictures(
        self, vector: np.ndarray, k: int = 5, *, among: Container[str] | None = None
    ) -> list[Neighbour]:
        """The ``k`` pictures of the index nearest to a [1280] vector by cosine distance, the nearest first.

        Args:
            vector: as of the extractor.
            k: how many; fewer when there are not as many.
            among: only these ids. The index never forgets a vector; whoever shows pictures says which are alive.
        """
        return [Neighbour(name, distance) for name, distance in self._nearest("id", vector, k, among)]

    def nearest_captions(
        self, vector: np.ndarray, k: int = 5, *, among: Container[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` captions of the index nearest to a [384] vector with their cosine distances, the nearest first."""
        return self._nearest("caption", vector, k, among)

    def _nearest(
        self, column: str, vector: np.ndarray, k: int, among: Container[str] | None
    ) -> list[tuple[str, float]]:
        table = self._open(self._caption_table if column == "caption" else self._picture_table)
        if table is None or k < 1:
            return []
        rows_in_all, limit, exact = table.count_rows(), k, not _has_index(table)
        while True:
            query = table.search(vector, vector_column_name="vector").distance_type("cosine").limit(limit)
            query = query.bypass_vector_index() if exact else query.nprobes(_PROBES).refine_factor(_REFINED)
            rows = query.select([column, "_distance"]).to_list()
            found = [(row[column], float(row["_distance"])) for row in rows if among is None or row[column] in among]
            if len(found) >= k or limit >= rows_in_all:
                return found[:k]
            # The nearest are not alive: look further. An approximate index sees a part of the rows only.
            exact = exact or len(rows) < limit
            limit = min(rows_in_all, limit * 8)

    @property
    def _picture_table(self) -> str:
        return f"pictures.{self.pictures.version}.{self.picture_kind}"

    @property
    def _caption_table(self) -> str:
        return f"captions.{self.captions.version}"

    def _open(self, name: str) -> Any | None:
        import lancedb

        if not self.path.is_dir():
            return None
        try:
            return lancedb.connect(self.path).open_table(name)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise

    def _missing(self, name: str, ids: Sequence[str]) -> list[str]:
        table = self._open(name)
        known = set(_ids(table)) if table is not None else set()
        return [identifier for identifier in dict.fromkeys(ids) if identifier not in known]

    def _add(self, name: str, columns: dict[str, list[str]], vectors: np.ndarray) -> None:
        import lancedb
        import pyarrow as pa

        rows = pa.table({**columns, "vector": _as_arrow(vectors)})
        self.path.mkdir(parents=True, exist_ok=True)
        table = lancedb.connect(self.path).create_table(name, schema=rows.schema, exist_ok=True)
        # Not a plain append: another process may have added the same pictures meanwhile.
        table.merge_insert("id").when_not_matched_insert_all().execute(rows)
        _index_if_large(table)

    def _vectors(self, name: str, ids: Sequence[str], width: int) -> np.ndarray:
        table = self._open(name)
        place = {identifier: offset for offset, identifier in enumerate(_ids(table))} if table is not None else {}
        absent = [identifier for identifier in ids if identifier not in place]
        if absent:
            raise KeyError(
                f"{len(absent)} of {len(ids)} have no vector in {self.path} (first: {absent[0][:16]}…); "
                "materialize image_features first"
            )
        if table is None or not ids:
            return np.empty((0, width), np.float32)
        wanted = sorted({place[identifier] for identifier in ids})
        rows = table.take_offsets(wanted).select(["id", "vector"]).to_arrow()
        found = dict(zip(rows["id"].to_pylist(), range(rows.num_rows), strict=True))
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        return vectors[[found[identifier] for identifier in ids]]


@dataclass(frozen=True)
class FeatureTable:
    """The vectors of one manifest, as read from the ``image_features`` artifact.

    Attributes:
        version: what they were computed with.
        resolution: pixels a side that pictures were brought to before.
        picture_ids: ids in the order of ``pictures``.
        pictures: float16 [N, 1280].
        captions: captions in the order of ``caption_vectors``.
        caption_vectors: float16 [M, 384].
    """

    version: str
    resolution: int
    picture_ids: list[str]
    pictures: np.ndarray
    captions: list[str]
    caption_vectors: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "FeatureTable":
        """Read what :func:`compute_features` wrote."""
        import json

        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _FILES}
        names = {name: pd.read_parquet(folder / f"{name}.parquet").iloc[:, 0].tolist() for name in _FILES}
        facts = json.loads((folder / "index.json").read_text())
        return cls(
            facts["version"],
            facts["resolution"],
            names["pictures"],
            arrays["pictures"],
            names["captions"],
            arrays["captions"],
        )

    def known(self, ids: Iterable[str]) -> list[bool]:
        """For each id, whether its picture has a vector here."""
        here = set(self.picture_ids)
        return [identifier in here for identifier in ids]

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Picture vectors, float32 [len(ids), 1280], in the order of ``ids``.

        Raises:
            KeyError: a picture has no vector here (:func:`compute_features` leaves some out).
        """
        place = {identifier: index for index, identifier in enumerate(self.picture_ids)}
        absent = [identifier for identifier in ids if identifier not in place]
        if absent:
            raise KeyError(f"{len(absent)} of {len(ids)} pictures have no features (first: {absent[0][:16]}…)")
        return self.pictures[[place[identifier] for identifier in ids]].astype(np.float32)

    def vectors_of_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Caption vectors, float32 [len(captions), 384], in the order of ``captions``.

        Raises:
            KeyError: a caption has no vector here.
        """
        place = {caption: index for index, caption in enumerate(self.captions)}
        return self.caption_vectors[[place[caption] for caption in captions]].astype(np.float32)


def select_pictures(manifest: pd.DataFrame, settings: "Settings", styles: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a manifest whose pictures get features: the house style whole, other styles without variants.

    A skin-tone variant in another style tells neither the style nor the concept anew, and half of all pictures are
    such; the house style's variants count, since a drawn picture may be the copy of one.

    Args:
        manifest: records, one a row.
        settings: names the house style.
        styles: only these styles, when given.
    """
    house = manifest["style"] == settings.dataset.house_style
    chosen = house | ~manifest["variant"].astype(bool)
    if styles is not None:
        chosen &= manifest["style"].isin(list(styles))
    return manifest.loc[chosen]


def compute_features(
    manifest: pd.DataFrame,
    store: PictureStore,
    settings: "Settings",
    out: Path,
    *,
    styles: Sequence[str] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Make the ``image_features`` artifact: bring the index up to date, and copy out this manifest's vectors.

    Pictures are brought to the training resolution first, as drawn pictures have it, so that the two compare.
    Which pictures: :func:`select_pictures`. On 2 idle cores about 230 pictures a second are computed.

    Args:
        manifest: validated records, one a row.
        store: where the pictures lie.
        settings: places, resolutions, house style.
        out: an empty folder; gets ``pictures.npy`` (float16 [N, 1280]) with ``pictures.parquet`` (``id``),
            ``captions.npy`` (float16 [M, 384]) with ``captions.parquet`` (``caption``), and ``index.json``.
        styles: only these styles, when given.
        on_progress: told ("pictures", done, missing).

    Returns:
        dict: ``pictures``, ``captions`` (counts), ``computed_pictures``, ``computed_captions``, ``version``,
        ``resolution``.

    Raises:
        ValueError: no picture is left to describe.
    """
    chosen = select_pictures(manifest, settings, styles)
    ids, captions = sorted(set(chosen["id"])), sorted(set(chosen["caption"]))
    if not ids:
        raise ValueError("no pictures to compute features of: the manifest has no row of the wanted styles")
    index = open_feature_index(settings)
    side = training_resolution(settings)

    def load(part: Sequence[str]) -> np.ndarray:
        return np.stack([_prepared(store.read(identifier), settings) for identifier in part])

    told = partial(on_progress, "pictures") if on_progress else None
    computed_pictures = index.add_missing_pictures(ids, load, on_progress=told)
    computed_captions = index.add_missing_captions(captions)
    np.save(out / "pictures.npy", index.picture_vectors(ids).astype(np.float16))
    np.save(out / "captions.npy", index.caption_vectors(captions).astype(np.float16))
    pd.DataFrame({"id": ids}).to_parquet(out / "pictures.parquet", index=False)
    pd.DataFrame({"caption": captions}).to_parquet(out / "captions.parquet", index=False)
    facts = {"version": index.version, "resolution": side, "pictures": len(ids), "captions": len(captions)}
    durable.write_json(out / "index.json", facts)
    # How many were computed depends on what was known before, so it is told but is not content.
    return {**facts, "computed_pictures": computed_pictures, "computed_captions": computed_captions}


def open_feature_index(settings: "Settings") -> FeatureIndex:
    """The index of a home folder, for pictures at the training resolution."""
    features = PictureFeatures(resolution=settings.evaluation.feature_resolution)
    paper = "" if settings.dataset.paper == WHITE else f"-on-{settings.dataset.background.lower()[1:]}"
    kind = f"from-{training_resolution(settings)}px{paper}"
    return FeatureIndex(settings.paths.features, features, picture_kind=kind)


def vector_of_file(path: Path, index: FeatureIndex, settings: "Settings") -> np.ndarray:
    """The vector of a picture file, float32 [1280], prepared as the index's pictures are.

    Raises:
        FileNotFoundError: there is no such file.
        UndecodablePicture: it is no picture; the message names the file.
    """
    try:
        picture = _prepared(path.read_bytes(), settings)
    except UndecodablePicture as error:
        raise UndecodablePicture(f"{path}: {error}") from error
    return index.pictures.extract(picture[None])[0]


def _prepared(data: bytes, settings: "Settings") -> np.ndarray:
    """A picture's bytes as the extractor is given them: uint8 [side, side, 3] at the training resolution."""
    dataset = settings.dataset
    picture = decode(data, max_pixels=dataset.max_pixels, background=dataset.paper)
    return to_square(picture, training_resolution(settings), background=dataset.paper)


def _has_index(table: Any) -> bool:
    return any("vector" in index.columns for index in table.list_indices())


def _index_if_large(table: Any) -> None:
    """Make an approximate index when there are many rows, and take rows into it that came since.

    Inverted lists of HNSW graphs over vectors quantised to a byte a value.
    """
    from lancedb.index import HnswSq

    rows = table.count_rows()
    if rows < INDEX_FROM:
        return
    if not _has_index(table):
        table.create_index("vector", config=HnswSq(distance_type="cosine"))
        return
    name = next(index.name for index in table.list_indices() if "vector" in index.columns)
    statistics = table.index_stats(name)
    if statistics is not None and statistics.num_unindexed_rows > _UNINDEXED_SHARE * rows:
        table.optimize()


def _ids(table: Any) -> list[str]:
    return table.search().select(["id"]).limit(table.count_rows()).to_arrow()["id"].to_pylist()


def _as_arrow(vectors: np.ndarray) -> "pa.FixedSizeListArray":
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
