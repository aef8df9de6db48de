"""The stages of the graph as plain Python: what each is made from, and the one call that makes it.

Belongs here: which library function a stage calls with which inputs, so that the Dagster assets and the command line
do the very same. A stage takes settings and the artifacts before it and returns its artifact; asked again with nothing
changed, it works on nothing. How things are done is in the rooms.
"""

from genai_assets.stages.dataset import image_features, picture_reader, raw_data, read_splits, splits, validated_data
from genai_assets.stages.distillation import distilled_model, drawn_as, is_student
from genai_assets.stages.evaluation import (
    FEW_STEPS,
    BrokenModel,
    NoChampion,
    champion_model,
    current_champion,
    drawings,
    eval_report,
    few_step_student,
    gate,
    read_metrics,
)
from genai_assets.stages.ground import CODE_VERSIONS, OnProgress, artifact_store, model_version
from genai_assets.stages.model import (
    PICTURE_PARTS,
    TEXT_PARTS,
    base_model,
    base_model_selection,
    fine_tuned_autoencoder,
    fine_tuned_model,
    hyperparameter_study,
    prior_pictures,
    training_cache,
)
from genai_assets.stages.monitoring import drift_report, feedback_dataset, inference_log
from genai_assets.stages.serving import SMOKE_TEST_PROMPT, bento_service

__all__ = [
    "CODE_VERSIONS",
    "FEW_STEPS",
    "PICTURE_PARTS",
    "SMOKE_TEST_PROMPT",
    "TEXT_PARTS",
    "BrokenModel",
    "NoChampion",
    "OnProgress",
    "artifact_store",
    "base_model",
    "base_model_selection",
    "bento_service",
    "champion_model",
    "current_champion",
    "distilled_model",
    "drawings",
    "drawn_as",
    "drift_report",
    "eval_report",
    "feedback_dataset",
    "few_step_student",
    "fine_tuned_autoencoder",
    "fine_tuned_model",
    "gate",
    "hyperparameter_study",
    "image_features",
    "inference_log",
    "is_student",
    "model_version",
    "picture_reader",
    "prior_pictures",
    "raw_data",
    "read_metrics",
    "read_splits",
    "splits",
    "training_cache",
    "validated_data",
]
