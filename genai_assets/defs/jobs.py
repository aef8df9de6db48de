"""Which assets run together. All run in one process; training starts its own."""

import dagster as dg

DATASET = ("raw_data", "validated_data", "image_features", "splits")
MODEL = (
    "base_model",
    "fine_tuned_autoencoder",
    "training_cache",
    "fine_tuned_model",
    "distilled_model",
    "eval_report",
    "champion_model",
    "bento_service",
)
MONITORING = ("inference_log", "drift_report", "feedback_dataset")

prepare_data = dg.define_asset_job(
    "prepare_data", selection=list(DATASET), description="From sources to splits, without training."
)
retrain = dg.define_asset_job(
    "retrain",
    selection=[*DATASET, *MODEL],
    description="From sources to a served champion. What did not change is not worked on again.",
)
select_base_model = dg.define_asset_job(
    "select_base_model",
    selection=[*DATASET, "base_model_selection"],
    description="Which base models fit; those of selection.folders and the embedded one are compared.",
)
study = dg.define_asset_job(
    "study",
    selection=[*DATASET, "base_model", "fine_tuned_autoencoder", "training_cache", "hyperparameter_study"],
    description="Short trainings with other settings, as many as study.trials says; proposes, changes nothing.",
)
monitor = dg.define_asset_job(
    "monitor", selection=list(MONITORING), description="Drift report and feedback dataset from what the service logged."
)
curate_feedback = dg.define_asset_job(
    "curate_feedback", selection=["feedback_dataset"], description="Make new ratings into the feedback dataset."
)
JOBS = [prepare_data, retrain, select_base_model, study, monitor, curate_feedback]
