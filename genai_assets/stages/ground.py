"""What all stages share: where artifacts lie, versions of code, and how inputs are written down."""

from collections.abc import Callable, Mapping
from typing import Any

from genai_assets.artifacts import ArtifactStore
from genai_assets.settings import Settings

OnProgress = Callable[[str, int, int], None]
"""Told (what, done, in all)."""


# Raised by hand when a stage's code changes what it makes.
CODE_VERSIONS = {
    "raw_data": "2",
    "validated_data": "2",
    "data_readiness_report": "1",
    "image_features": "1",
    "duplicate_clusters": "1",
    "splits": "3",
    "dataset_card": "1",
    "synthetic_pictures": "1",
    "base_model": "2",
    "fine_tuned_autoencoder": "1",
    "base_model_selection": "1",
    "prior_pictures": "1",
    "training_cache": "3",
    "hyperparameter_study": "1",
    "fine_tuned_model": "2",
    "distilled_model": "1",
    "drawings": "2",
    "eval_report": "4",
    "champion_model": "2",
    "bento_service": "2",
    "inference_log": "1",
    "drift_report": "1",
    "feedback_dataset": "2",
}


def artifact_store(settings: Settings) -> ArtifactStore:
    """The artifacts of the home folder."""
    return ArtifactStore(settings.paths.artifacts)


def model_version(inputs: Mapping[str, Any]) -> str:
    """Name of the model that these inputs make."""
    from genai_assets import durable

    return f"m-{durable.digest_json(dict(inputs))[:12]}"


def told_as(what: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    """A callback that tells (done, in all) as progress of ``what``; None when nobody listens."""
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None


def made_from(kind: str, **values: Any) -> dict[str, Any]:
    """The inputs of a stage's artifact: its code version, and everything else that its result depends on."""
    return {"code": CODE_VERSIONS[kind], **values}
