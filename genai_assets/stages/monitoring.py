"""The stages of watching: inference_log, drift_report, feedback_dataset."""

from pathlib import Path
from typing import Any

import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.evaluation import current_champion
from genai_assets.stages.ground import artifact_store, made_from


def inference_log(settings: Settings) -> Artifact:
    """The champion's newest requests, described for drift detection.

    Raises:
        NoChampion: nothing was promoted yet.
        LogUnavailable: the request log exists but cannot be read.
    """
    from genai_assets import durable
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.evaluation.features import PictureFeatures, PictureProjection
    from genai_assets.monitoring.inference_log import write_inference_log
    from genai_assets.serving.request_log import RequestLog

    champion = current_champion(settings)
    window = settings.monitoring.window
    with RequestLog(settings.database_url) as log:
        ids = log.requests(model_version=champion.model_version, newest=window)["id"].tolist()
        return artifact_store(settings).build(
            "inference_log",
            made_from(
                "inference_log",
                model=champion.model_version,
                report=champion.metrics["eval_report"],
                requests=durable.digest_json(ids)[:16],
                count=len(ids),
            ),
            lambda out: write_inference_log(
                log,
                PictureStore(settings.paths.drawn),
                PictureProjection.load(Path(champion.metrics["eval_report"]) / "pca.npz"),
                out,
                window=window,
                resolution=training_resolution(settings),
                model_version=champion.model_version,
                features=PictureFeatures(resolution=settings.evaluation.feature_resolution),
            ),
        )


def drift_report(settings: Settings, log: Artifact) -> Artifact:
    """Whether requests or drawn pictures moved away from what the champion was evaluated with: yes, no or unknown."""
    from genai_assets.monitoring.drift import detect_drift

    champion = current_champion(settings)

    def make(out: Path) -> dict[str, Any]:
        reference = pd.read_parquet(Path(champion.metrics["eval_report"]) / "reference.parquet")
        current = pd.read_parquet(log.file("inference_log.parquet"))
        result = detect_drift(reference, current, settings.monitoring, out)
        return {
            "verdict": result.verdict,
            "reason": result.reason,
            "share": result.share,
            "latency_drifted": result.latency_drifted,
            "requests": result.current_requests,
            "model_version": champion.model_version,
        }

    return artifact_store(settings).build(
        "drift_report",
        made_from(
            "drift_report",
            log=log.data_version,
            model=champion.model_version,
            settings=settings.monitoring.model_dump(mode="json"),
        ),
        make,
    )


def feedback_dataset(settings: Settings) -> Artifact:
    """What people think of the pictures, curated; full batches are closed and thereby become raw data.

    Raises:
        LogUnavailable: the request log exists but cannot be read.
    """
    from genai_assets import durable
    from genai_assets.monitoring.feedback import build_feedback_dataset
    from genai_assets.serving.request_log import RequestLog

    with RequestLog(settings.database_url) as log:
        events = log.feedback()["id"].tolist()
    return artifact_store(settings).build(
        "feedback_dataset",
        made_from(
            "feedback_dataset",
            events=durable.digest_json(sorted(events))[:16],
            count=len(events),
            batch_size=settings.monitoring.feedback_batch_size,
            style=settings.dataset.house_style,
            template=settings.fine_tune.prompt_template,
        ),
        lambda out: build_feedback_dataset(settings, out),
    )
