"""From splits to a model in the house style: base_model, training_cache, fine_tuned_model."""

from typing import Any

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import picture, progress_log, result
from genai_assets.diffusion.training import StepReport
from genai_assets.settings import Settings

GROUP = "model"
_STEPS_BETWEEN_LINES = 20


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["base_model"], kinds={"huggingface"})
def base_model(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """The model to start from, as a folder that stock diffusers loads."""
    return result(stages.base_model(settings))


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["training_cache"], kinds={"numpy"})
def training_cache(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    splits: Artifact,
    base_model: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """House-style pictures at the training resolution and prompts encoded by the base's text encoder."""
    return result(
        stages.training_cache(settings, validated_data, splits, base_model, on_progress=progress_log(context))
    )


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["fine_tuned_model"],
    kinds={"pytorch", "mlflow"},
    pool="gpu",
)
def fine_tuned_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    mlflow: dg.ResourceParam[Any],  # opens the run that is written to and ended below
    training_cache: Artifact,
    base_model: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """The base trained on the house style. Figures go to MLflow and, as they come, to this log."""
    from genai_assets.registry import tracking

    with tracking.training_run(settings, context.run.run_id, settings.fine_tune.model_dump(mode="json")) as run:

        def tell(report: StepReport) -> None:
            validated = report.validation_loss is not None
            if not (validated or report.step % _STEPS_BETWEEN_LINES == 0 or report.step == report.steps):
                return
            figures = {
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "pictures_per_second": report.pictures_per_second,
            }
            if report.validation_loss is not None:
                figures["validation_loss"] = report.validation_loss
            run.log_metrics(report.step, figures)
            told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            context.log.info(f"step {report.step} of {report.steps}: {told}")

        context.log.info("a process for training starts; for a long run on a CPU it compiles first, about a minute")
        artifact = stages.fine_tuned_model(settings, training_cache, base_model, on_step=tell)
        run.set_tags({"model_version": artifact.summary["model_version"], "reused": artifact.reused})
    samples = picture(artifact.file("samples.png"), alt="pictures of validation captions")
    return result(artifact, {"samples": samples, "mlflow_run": run.id})
