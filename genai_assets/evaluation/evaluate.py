"""The evaluation: every figure for every model, on the same held-out concepts, beside what real pictures score.

Belongs here: which pictures are compared with which, and the files of the ``eval_report`` artifact. Arithmetic is
``metrics`` and ``agreement``; layout is ``report``; the decision is ``promotion``. Pictures come in as arrays; nothing
here draws one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.evaluation import metrics, report
from genai_assets.evaluation.agreement import AgreementProxy, StyleTest
from genai_assets.evaluation.features import (
    PictureFeatures,
    PictureProjection,
    TextFeatures,
    check_pictures,
    describe_pictures,
)

if TYPE_CHECKING:
    from genai_assets.evaluation.feature_index import FeatureTable
    from genai_assets.settings import Settings

REAL = "real"
"""Name under which the real held-out pictures are measured: the ceiling of every figure."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out concepts a model is asked for, and the real pictures of them.

    Attributes:
        concepts: one name each.
        captions: what each shows; agreement is measured against these, and the grid shows them.
        prompts: the captions as the house style is asked for by the settings.
        pictures: uint8 [N, H, W, 3], the real house-style pictures, of the same size as the drawn ones.
    """

    concepts: Sequence[str]
    captions: Sequence[str]
    prompts: Sequence[str]
    pictures: np.ndarray

    def __post_init__(self) -> None:
        check_pictures(self.pictures, "the real held-out pictures")
        counts = {len(self.concepts), len(self.captions), len(self.prompts), len(self.pictures)}
        if len(counts) != 1:
            raise ValueError(
                f"held-out concepts, captions, prompts and pictures must be as many, got {len(self.concepts)}, "
                f"{len(self.captions)}, {len(self.prompts)}, {len(self.pictures)}"
            )
        if len(self.concepts) < 4:
            raise ValueError(
                f"{len(self.concepts)} held-out concepts are too few to measure a model; 4 are the least, 100 are "
                "good: add pictures, or raise splits.held_out_share"
            )


@dataclass(frozen=True)
class KnownPictures:
    """Vectors of real pictures that models or measures may learn from.

    Attributes:
        vectors: float [M, 1280], of pictures brought to the size of the drawn ones.
        captions: what each shows.
        names: how a report names each, for example its caption or file.
        caption_vectors: float [M, 384], when they are known already.
        resolution: pixels a side the pictures were brought to, when it is known; it must be the drawn pictures'.
    """

    vectors: np.ndarray
    captions: Sequence[str]
    names: Sequence[str]
    caption_vectors: np.ndarray | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        if not len(self.vectors) == len(self.captions) == len(self.names):
            raise ValueError(
                f"vectors, captions and names must be as many, got {len(self.vectors)}, {len(self.captions)}, "
                f"{len(self.names)}"
            )

    @classmethod
    def from_rows(cls, rows: pd.DataFrame, features: "FeatureTable") -> "KnownPictures":
        """The rows of a manifest whose pictures have vectors in the ``image_features`` artifact."""
        rows = rows.loc[features.known(rows["id"])]
        captions = rows["caption"].tolist()
        vectors, caption_vectors = features.vectors(rows["id"].tolist()), features.vectors_of_captions(captions)
        return cls(vectors, captions, captions, caption_vectors, features.resolution)


@dataclass(frozen=True)
class Measured:
    """What was measured of one set of pictures: figures of the set, and columns with one value a concept."""

    figures: dict[str, Any]
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    drawn: Mapping[str, np.ndarray],
    held_out: HeldOut,
    training: KnownPictures,
    other_styles: KnownPictures | None,
    *,
    settings: "Settings",
    out: Path,
    latency_ms: Mapping[str, Sequence[float]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    reference: str = "fine_tuned",
    floor_vectors: np.ndarray | None = None,
    picture_features: PictureFeatures | None = None,
    text_features: TextFeatures | None = None,
) -> dict[str, Any]:
    """Measure models on held-out concepts and write the report.

    Args:
        drawn: model name to uint8 [N, H, W, 3]; row i shows what ``held_out.captions[i]`` says, with the same seed for
            every model. ``"base"`` and ``"fine_tuned"`` are expected; a ``"champion"`` or others are measured as well.
        held_out: what was asked for, and the truth.
        training: house-style training pictures; near-copies are looked for among these.
        other_styles: real pictures in other styles, for the agreement proxy and the style test. Other styles' pictures
            of held-out concepts may be among them. None when there is one style only: then the proxy learns from
            ``training`` and there is no style test.
        settings: seed and feature resolution.
        out: an empty folder; gets ``metrics.json``, ``grid.png``, ``report.html``, ``pictures.parquet`` (one row a
            model and concept), and for drift ``reference.parquet`` with ``pca.npz``.
        latency_ms: model name to milliseconds it took to draw each picture, N numbers.
        provenance: anything plain the report should name: model and data versions, seeds, steps, guidance.
        reference: the model whose pictures drift is later measured against.
        floor_vectors: float [K, 1280], real training pictures chosen like the held-out ones (no variants, say); the
            floor of KID is measured against these. All of ``training`` by default.
        picture_features, text_features: extractors, when they are loaded already.

    Returns:
        dict: what ``metrics.json`` says. ``models`` has the figures of each model and of ``"real"``; see
        ``report.FIGURES`` for what each means.

    Raises:
        ValueError: sizes or counts that do not fit together; the message names them.
    """
    latency = latency_ms or {}
    _check(drawn, held_out, latency, reference)
    for known in (training, other_styles):
        if known and known.resolution not in (None, held_out.pictures.shape[1]):
            raise ValueError(
                f"features were computed of pictures at {known.resolution} px, but pictures are drawn at "
                f"{held_out.pictures.shape[1]} px; run image_features at the drawn resolution"
            )
    seed = settings.evaluation.seed
    picture_features = picture_features or PictureFeatures(resolution=settings.evaluation.feature_resolution)
    captions = text_features or TextFeatures()

    vectors = {name: picture_features.extract(pictures) for name, pictures in drawn.items()}
    real_vectors = picture_features.extract(held_out.pictures)
    caption_vectors = captions.extract(held_out.captions)

    taught = other_styles or training
    taught_captions = captions.extract(taught.captions) if taught.caption_vectors is None else taught.caption_vectors
    proxy = AgreementProxy.fit(taught.vectors, taught_captions)
    style = StyleTest.fit(training.vectors, other_styles.vectors, seed=seed) if other_styles else None
    real_distances, _ = metrics.nearest_distance(real_vectors, training.vectors)
    threshold = metrics.copy_threshold(real_distances)

    def measure(pictures: np.ndarray, features: np.ndarray, compared_with: np.ndarray) -> Measured:
        distance = metrics.kid(compared_with, features, seed=seed)
        ranks = metrics.retrieval_ranks(proxy.similarity(features, caption_vectors))
        nearest, index = metrics.nearest_distance(features, training.vectors)
        to_real = metrics.paired_distance(features, real_vectors)
        sound = metrics.soundness(pictures)
        figures = {
            "kid": distance.mean,
            "kid_standard_error": distance.standard_error,
            "recall_at_1": float((ranks <= 1).mean()),
            "recall_at_5": float((ranks <= 5).mean()),
            "style_score": style.house_share(features) if style else None,
            "distance_to_real": float(np.median(to_real)),
            "nearest_distance": float(np.median(nearest)),
            "copied_share": metrics.copied_share(nearest, threshold),
            "variety": metrics.variety(features),
            "blank_share": sound.blank_share,
            "distinct_share": sound.distinct_share,
            "pictures_are_not_blank": sound.pictures_are_not_blank,
            "pictures_vary": sound.pictures_vary,
        }
        names = np.array([training.names[row] for row in index], dtype=object)
        columns = {"rank": ranks, "distance_to_real": to_real, "nearest_distance": nearest, "nearest_training": names}
        return Measured(figures, columns)

    measured = {name: measure(drawn[name], vectors[name], real_vectors) for name in drawn}
    # Real pictures against the real pictures of other concepts: the KID no model can be expected to beat.
    measured[REAL] = measure(
        held_out.pictures, real_vectors, training.vectors if floor_vectors is None else floor_vectors
    )
    for name, milliseconds in latency.items():
        measured[name].figures["latency_ms"] = float(np.median(milliseconds))

    result = {
        "pictures": len(held_out.concepts),
        "seed": seed,
        "measured_on": _fingerprint(held_out, picture_features, captions, seed),
        "chance": {"recall_at_1": 1 / len(held_out.concepts), "recall_at_5": min(1.0, 5 / len(held_out.concepts))},
        "copy_threshold": threshold,
        "training_pictures": len(training.vectors),
        "proxy_pictures": len(taught.vectors),
        "proxy_taught_on": "other styles" if other_styles else "training split",
        "features": {"pictures": picture_features.version, "captions": captions.version},
        "models": {name: of.figures for name, of in measured.items()},
        "kid_difference": _differences(vectors, real_vectors, reference, seed),
        "reference": reference,
        "provenance": dict(provenance or {}),
    }
    _write_reference(out, held_out, drawn[reference], vectors[reference], latency.get(reference))
    concepts = _per_concept(held_out, measured)
    with durable.replacing(out / "pictures.parquet") as temporary:
        concepts.to_parquet(temporary, index=False)
    shown = report.choose_shown(len(held_out.concepts))
    pictures = {**drawn, REAL: held_out.pictures}
    report.write_grid(out / "grid.png", pictures, held_out.captions, shown)
    report.write_report(out / "report.html", result, pictures, held_out.captions, concepts, shown)
    durable.write_json(out / "metrics.json", result)
    return result


def _check(
    drawn: Mapping[str, np.ndarray], held_out: HeldOut, latency: Mapping[str, Sequence[float]], reference: str
) -> None:
    if reference not in drawn:
        raise ValueError(f"no pictures of the reference model {reference!r}; drawn are: {', '.join(drawn) or 'none'}")
    if REAL in drawn:
        raise ValueError(f"{REAL!r} is the name of the real pictures; give the model another")
    for name, pictures in drawn.items():
        check_pictures(pictures, f"the pictures of {name}")
        if pictures.shape != held_out.pictures.shape:
            raise ValueError(
                f"the pictures of {name} are {list(pictures.shape)}, the real ones {list(held_out.pictures.shape)}; "
                "bring both to one size, or the distance would measure sharpness"
            )
    for name, milliseconds in latency.items():
        if name not in drawn or len(milliseconds) != len(held_out.prompts):
            raise ValueError(
                f"latency_ms of {name!r} needs one number for each of its {len(held_out.prompts)} pictures"
            )


def _differences(vectors: Mapping[str, np.ndarray], real: np.ndarray, model: str, seed: int) -> dict[str, Any]:
    """KID of ``model`` minus KID of each other model; below 0, ``model`` is nearer to the real pictures."""
    found = {}
    for name in vectors:
        if name != model:
            difference = metrics.kid_difference(real, vectors[name], vectors[model], seed=seed)
            found[name] = {"mean": difference.mean, "standard_error": difference.standard_error}
    return found


def _fingerprint(held_out: HeldOut, pictures: PictureFeatures, captions: TextFeatures, seed: int) -> str:
    """What figures must share to be compared: the concepts, their real pictures and the extractors."""
    return durable.digest_json(
        {
            "concepts": list(held_out.concepts),
            "captions": list(held_out.captions),
            "pictures": durable.digest_bytes(np.ascontiguousarray(held_out.pictures).tobytes()),
            "shape": list(held_out.pictures.shape),
            "features": [pictures.version, captions.version],
            "seed": seed,
        }
    )[:16]


def _per_concept(held_out: HeldOut, measured: Mapping[str, Measured]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {"concept": held_out.concepts, "caption": held_out.captions, "prompt": held_out.prompts, "model": name}
            | of.columns
        )
        for name, of in measured.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _write_reference(
    out: Path, held_out: HeldOut, pictures: np.ndarray, vectors: np.ndarray, latency: Sequence[float] | None
) -> None:
    projection = PictureProjection.fit(vectors)
    projection.save(out / "pca.npz")
    # As a person would type it: the service logs prompts before it adds the style.
    columns: dict[str, Any] = {"prompt": list(held_out.captions)}
    if latency is not None:
        columns["latency_ms"] = np.asarray(latency, np.float64)
    columns |= describe_pictures(pictures) | projection.project(vectors)
    with durable.replacing(out / "reference.parquet") as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)
