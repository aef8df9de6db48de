"""The stages of the graph as plain Python: what each is made from, and the one call that makes it.

Belongs here: which library function a stage calls with which inputs, so that the Dagster assets and the command line
do the very same. A stage takes settings and the artifacts before it and returns its artifact; asked again with nothing
changed, it works on nothing. How things are done is in the rooms.
"""

from genai_assets.stages.curation import duplicate_clusters, split_leaks
from genai_assets.stages.dataset import (
    batches,
    image_features,
    newest_raw_data,
    next_batch_number,
    picture_reader,
    raw_data,
    read_splits,
    splits,
)
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
from genai_assets.stages.governance import dataset_card
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
from genai_assets.stages.readiness import data_readiness_report, validated_data
from genai_assets.stages.serving import SMOKE_TEST_PROMPT, bento_service
from genai_assets.stages.synthetic import synthetic_pictures

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
    "batches",
    "bento_service",
    "champion_model",
    "current_champion",
    "data_readiness_report",
    "dataset_card",
    "distilled_model",
    "drawings",
    "drawn_as",
    "drift_report",
    "duplicate_clusters",
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
    "newest_raw_data",
    "next_batch_number",
    "picture_reader",
    "prior_pictures",
    "raw_data",
    "read_metrics",
    "read_splits",
    "split_leaks",
    "splits",
    "synthetic_pictures",
    "training_cache",
    "validated_data",
]
