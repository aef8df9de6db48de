"""Search among the living pictures: by what is said of them, by how they look, and by another picture.

Belongs here: which records are near a text or a picture. The vectors and their neighbours are ``feature_index``'s; how
hits are shown is ``datasets.contact_sheet`` and the command.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from genai_assets.evaluation.agreement import AgreementProxy
from genai_assets.evaluation.feature_index import FeatureIndex, FeatureTable

_FITTED_ON = 8000  # pictures that the agreement proxy learns from, at most


@dataclass(frozen=True)
class Hit:
    """A record that was found.

    Attributes:
        id, caption, style, concept, split: of the record; the split is empty when there are no splits yet.
        distance: cosine distance of the captions (search by text) or of the pictures (search by picture); NaN when a
            text was compared with the pictures themselves.
        looks: how well the picture fits the text by the agreement proxy, −1 to 1; NaN when that is not known.
    """

    id: str
    caption: str
    style: str
    concept: str
    split: str
    distance: float
    looks: float


def living_records(validated: pd.DataFrame, raw: pd.DataFrame, splits: pd.DataFrame | None) -> pd.DataFrame:
    """The records that may be shown: validated ones whose pictures the newest raw data still has.

    Args:
        validated: the newest validated manifest.
        raw: the newest raw manifest; it may be newer, and lack pictures that were removed since.
        splits: the newest table of splits, for what is told of a record; it may be older.

    Returns:
        pd.DataFrame: ``id``, ``caption``, ``style``, ``concept``, ``split``.
    """
    rows = validated.loc[validated["id"].isin(set(raw["id"])), ["id", "caption", "style", "concept"]]
    if splits is None:
        return rows.assign(split="")
    rows = rows.merge(splits[["id", "caption", "split"]], on=["id", "caption"], how="left")
    return rows.assign(split=rows["split"].fillna(""))


def by_text(
    text: str,
    living: pd.DataFrame,
    index: FeatureIndex,
    known: FeatureTable | None = None,
    *,
    count: int = 24,
    by: Literal["caption", "picture"] = "caption",
) -> list[Hit]:
    """The records that fit a text best.

    Args:
        text: what is sought, in the language of the captions.
        living: as of :func:`living_records`.
        index: where caption vectors lie. A caption that ``image_features`` has no vector of is not found.
        known: picture vectors, for the agreement proxy; without them ``looks`` is not known.
        count: how many records.
        by: "caption": nearest captions first, among one caption's pictures those that look most like it. "picture": by
            the looks alone, whatever the caption says; finds pictures whose captions say too little. The proxy has
            learnt from these very pictures and captions: it ranks, it does not measure.

    Raises:
        ValueError: an empty text, or pictures are to be compared and none has a vector.
    """
    if not text.strip():
        raise ValueError("an empty text finds nothing: say what to look for")
    vector = index.captions.extract([text])[0]
    looks = _looks(vector, living, known)
    if by == "picture":
        if not looks:
            raise ValueError("no picture has a vector yet, so looks cannot be compared: run `genai prepare`")
        rows = living.assign(distance=np.nan, looks=living["id"].map(looks)).dropna(subset="looks")
        return _hits(rows.sort_values(["looks", "id"], ascending=[False, True]).head(count))
    near = dict(index.nearest_captions(vector, count, among=set(living["caption"])))
    rows = living[living["caption"].isin(near)]
    rows = rows.assign(distance=rows["caption"].map(near), looks=rows["id"].map(looks))
    return _hits(
        rows.sort_values(["distance", "caption", "looks", "id"], ascending=[True, True, False, True]).head(count)
    )


def by_picture(
    vector: np.ndarray,
    living: pd.DataFrame,
    index: FeatureIndex,
    *,
    count: int = 24,
) -> list[Hit]:
    """The records whose pictures are nearest to a picture's vector, float [1280].

    Variants of other styles than the house's have no vectors and are not found.
    """
    near = {found.id: found.distance for found in index.nearest_pictures(vector, count, among=set(living["id"]))}
    rows = living[living["id"].isin(near)]
    rows = rows.assign(distance=rows["id"].map(near), looks=np.nan)
    return _hits(rows.sort_values(["distance", "id", "caption"]).head(count))


def _looks(vector: np.ndarray, living: pd.DataFrame, known: FeatureTable | None) -> dict[str, float]:
    """Picture id to how well it fits a caption vector; empty when there are no vectors to learn from."""
    if known is None:
        return {}
    pictures = {picture: place for place, picture in enumerate(known.picture_ids)}
    captions = {caption: place for place, caption in enumerate(known.captions)}
    seen = living[living["id"].isin(pictures)].drop_duplicates("id")
    said = seen[seen["caption"].isin(captions)]
    if len(said) < 2:
        return {}
    said = said.iloc[np.linspace(0, len(said) - 1, min(len(said), _FITTED_ON)).astype(int)]
    vectors = known.pictures[_places(said["id"], pictures)].astype(np.float32)
    told = known.caption_vectors[_places(said["caption"], captions)].astype(np.float32)
    proxy = AgreementProxy.fit(vectors, told)
    everything = known.pictures[_places(seen["id"], pictures)].astype(np.float32)
    return dict(zip(seen["id"], proxy.similarity(everything, vector[None])[:, 0].tolist(), strict=True))


def _places(names: pd.Series, place: dict[str, int]) -> Sequence[int]:
    return [place[name] for name in names]


def _hits(rows: pd.DataFrame) -> list[Hit]:
    return [Hit(*row) for row in rows[list(Hit.__dataclass_fields__)].itertuples(index=False)]
