"""The stage of synthetic data: synthetic_pictures."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact, data_version_of
from genai_assets.settings import Settings
from genai_assets.stages.dataset import read_splits
from genai_assets.stages.distillation import drawn_as
from genai_assets.stages.evaluation import current_champion
from genai_assets.stages.ground import OnProgress, artifact_store, made_from, told_as

if TYPE_CHECKING:
    from genai_assets.datasets.synthetic import Drawn, Wish
    from genai_assets.evaluation.feature_index import FeatureIndex, FeatureTable

_RECORDS = "records.parquet"
_ENOUGH_FOR_AGREEMENT = 200  # pictures of other styles, below which the proxy knows too little


def synthetic_pictures(
    settings: Settings,
    validated: Artifact,
    split: Artifact,
    features: Artifact,
    *,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """What the champion draws for thin classes; what passes is closed as a batch that ``raw_data`` reads next time.

    Without a share (``synthetic.max_share``) an artifact without pictures. The champion is the pointer's, as served.

    Raises:
        NoChampion: pictures are asked for, and nothing was promoted yet.
        ValueError: too few real pictures to tell a good drawing from a bad one.
    """
    from genai_assets.datasets.records import manifest_version, read_manifest, to_frame, write_manifest
    from genai_assets.datasets.splits import training_rows
    from genai_assets.datasets.synthetic import plan

    made_of: dict[str, Any] = {"synthetic": settings.synthetic.model_dump(mode="json")}
    if not settings.synthetic.wanted:

        def nothing(out: Path) -> dict[str, Any]:
            write_manifest(out / _RECORDS, to_frame([]))
            return {"pictures": 0, "wanted": 0, "reason": "off: synthetic.max_share is 0"}

        return artifact_store(settings).build("synthetic_pictures", made_from("synthetic_pictures", **made_of), nothing)

    champion = current_champion(settings)
    sampler = drawn_as(settings, champion.model_path)

    def make(out: Path) -> dict[str, Any]:
        manifest, parted = read_manifest(validated.file("manifest.parquet")), read_splits(split)
        rows = training_rows(manifest, parted, settings)
        trained_on = rows[rows["split"] == "train"]
        table = manifest.merge(parted[["id", "caption", "split"]], on=["id", "caption"])
        wishes = plan(table, trained_on, settings)
        found = _draw(
            settings, wishes, table, trained_on, features, champion.model_path, champion.model_version, on_progress
        )
        write_manifest(out / _RECORDS, found.records)
        return {
            "pictures": len(found.records),
            "wanted": len(wishes),
            "drawn": found.drawn,
            "dropped": found.dropped,
            "by_category": {str(name): int(count) for name, count in found.records["category"].value_counts().items()},
            "model_version": champion.model_version,
            "manifest_version": manifest_version(found.records),
            "reason": "" if wishes else "no class is thin, or the share is used up",
        }

    made = artifact_store(settings).build(
        "synthetic_pictures",
        made_from(
            "synthetic_pictures",
            **made_of,
            model=champion.model_version,
            content=data_version_of(champion.model_path),
            sampling=sampler.model_dump(mode="json"),
            prompt=settings.fine_tune.prompt_template,
            validated=validated.data_version,
            splits=split.data_version,
            features=features.data_version,
        ),
        make,
    )
    _close_batch(settings, read_manifest(made.file(_RECORDS)))
    return made


def _draw(
    settings: Settings,
    wishes: "Sequence[Wish]",
    table: pd.DataFrame,
    trained_on: pd.DataFrame,
    features: Artifact,
    model_folder: Path,
    model_version: str,
    on_progress: OnProgress | None,
) -> "Drawn":
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import FEEDBACK_SOURCE, to_frame
    from genai_assets.datasets.synthetic import Drawn, Yardstick, draw, is_own_drawing
    from genai_assets.diffusion import sampling
    from genai_assets.evaluation.feature_index import FeatureTable, open_feature_index

    if not wishes:
        return Drawn(to_frame([]), 0, {})
    known = FeatureTable.read(features.path)
    index = open_feature_index(settings)
    real = trained_on[~trained_on["synthetic"].astype(bool) & (trained_on["source"] != FEEDBACK_SOURCE)]
    real = real[~real["variant"].astype(bool)].drop_duplicates("id")
    real = real.loc[known.known(real["id"])]
    sampler = drawn_as(settings, model_folder)
    drawer = sampling.load(
        model_folder,
        device=settings.device,
        resolution=known.resolution,  # distances compare pictures of one size
        backend=settings.sampling.backend,
        cache=settings.paths.converted,
    )

    def draw_pictures(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        drawn = drawer.draw(prompts, seeds=seeds, steps=sampler.steps, guidance_scale=sampler.guidance_scale)
        return np.stack([np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in drawn])

    earlier = table[is_own_drawing(table)].drop_duplicates("id")
    earlier = earlier.loc[known.known(earlier["id"])]
    return draw(
        wishes,
        settings,
        PictureStore(settings.paths.drawn),
        model_version=model_version,
        draw_pictures=draw_pictures,
        yardstick=Yardstick(
            ids=real["id"].tolist(),
            vectors=known.vectors(real["id"].tolist()),
            describe=index.pictures.extract,
            agree=_agreement(table[table["style"] != settings.dataset.house_style], known, index),
        ),
        known_vectors=known.vectors(earlier["id"].tolist()) if len(earlier) else None,
        on_progress=told_as("wishes drawn", on_progress),
    )


def _agreement(
    others: pd.DataFrame, known: "FeatureTable", index: "FeatureIndex"
) -> Callable[[np.ndarray, Sequence[str]], np.ndarray] | None:
    """How well pictures show their captions, by the proxy learnt on other styles; None when these are too few."""
    from genai_assets.evaluation.agreement import AgreementProxy
    from genai_assets.evaluation.evaluate import KnownPictures

    others = others[others["split"] == "train"]
    if sum(known.known(others["id"])) < _ENOUGH_FOR_AGREEMENT:
        return None
    learnt = KnownPictures.from_rows(others, known)
    assert learnt.caption_vectors is not None
    proxy = AgreementProxy.fit(learnt.vectors, learnt.caption_vectors)

    def agree(vectors: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        return np.diag(proxy.similarity(vectors, index.captions.extract(list(captions))))

    return agree


def _close_batch(settings: Settings, drawn: pd.DataFrame) -> None:
    """Close what is in no batch yet as one batch. Done again with the same pictures it does nothing."""
    from genai_assets.datasets.records import read_manifest
    from genai_assets.monitoring.feedback import close_batches

    folder = settings.paths.synthetic_batches
    closed = {picture for path in folder.glob("*.parquet") for picture in read_manifest(path)["id"]}
    fresh = drawn[~drawn["id"].isin(closed)]
    if len(fresh):
        # When they arrived is told by the batch and not by the artifact, whose content does not depend on the clock.
        close_batches(fresh.assign(added_at=pd.Timestamp(datetime.now(UTC))), folder, size=len(fresh))
