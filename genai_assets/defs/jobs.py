"""Which assets run together. All run in one process; training starts its own."""

import dagster as dg

DATASET = ("raw_data", "validated_data", "image_features", "splits")
MODEL = ("base_model", "training_cache", "fine_tuned_model", "eval_report", "champion_model", "bento_service")
MONITORING = ("inference_log", "drift_report", "feedback_dataset")

prepare_data = dg.define_asset_job(
    "prepare_data", selection=list(DATASET), description="From sources to splits, without training."
)
retrain = dg.define_asset_job(
    "retrain",
    selection=[*DATASET, *MODEL],
    description="From sources to a served champion. What did not change is not worked on again.",
)
monitor = dg.define_asset_job(
    "monitor", selection=list(MONITORING), description="Drift report and feedback dataset from what the service logged."
)
curate_feedback = dg.define_asset_job(
    "curate_feedback", selection=["feedback_dataset"], description="Make new ratings into the feedback dataset."
)
JOBS = [prepare_data, retrain, monitor, curate_feedback]
