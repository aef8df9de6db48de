"""Which assets run together. All run in one process; training starts its own."""

import dagster as dg

DATASET = ("raw_data", "validated_data", "image_features", "duplicate_clusters", "splits")
ABOUT_THE_DATA = ("data_readiness_report", "dataset_card")
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

# A job with raw_data in it may be given a partition key, the name of a batch, and needs none.
ingest = dg.define_asset_job("ingest", selection=["raw_data"], description="Take in what has arrived, and no more.")
prepare_data = dg.define_asset_job(
    "prepare_data",
    selection=[*DATASET, *ABOUT_THE_DATA],
    description="From sources to splits and what is to be known of the data, without training.",
)
retrain = dg.define_asset_job(
    "retrain",
    selection=[*DATASET, *ABOUT_THE_DATA, *MODEL],
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
draw_synthetic = dg.define_asset_job(
    "draw_synthetic",
    selection=["synthetic_pictures"],
    description="Let the champion draw for thin classes, within synthetic.max_share; the next raw_data reads it.",
)
JOBS = [ingest, prepare_data, retrain, select_base_model, study, monitor, curate_feedback, draw_synthetic]
