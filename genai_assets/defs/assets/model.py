"""From splits to a model in the house style: base_model, training_cache, fine_tuned_model, distilled_model.

Beside that way: base_model_selection and hyperparameter_study, whose reports people decide by.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import page, picture, progress_log, result
from genai_assets.diffusion.autoencoder.training import AutoencoderStep
from genai_assets.diffusion.distillation.trajectories import TrajectoriesDrawn
from genai_assets.diffusion.selection import REPORT_FILE
from genai_assets.diffusion.training import StepReport
from genai_assets.diffusion.tuning.proposal import PAGE, describe_trial
from genai_assets.diffusion.tuning.tune import Progress
from genai_assets.settings import Settings

GROUP = "model"
_STEPS_BETWEEN_LINES = 20


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["base_model"], kinds={"huggingface"})
def base_model(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
    """The model to start from, as a folder that stock diffusers loads."""
    return result(stages.base_model(settings))


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["fine_tuned_autoencoder"],
    kinds={"pytorch"},
    pool="gpu",
)
def fine_tuned_autoencoder(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    splits: Artifact,
    base_model: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """The base with its autoencoder trained on the house style; off by default, and then the base itself."""

    def tell(report: AutoencoderStep) -> None:
        if report.step % _STEPS_BETWEEN_LINES == 0 or report.step == report.steps:
            figures = dataclasses.asdict(report)
            told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
            context.log.info(told)

    artifact = stages.fine_tuned_autoencoder(settings, validated_data, splits, base_model, on_step=tell)
    if artifact.kind == "base_model":
        context.log.info("the autoencoder is left as it is: no budget is set, or the model has none")
        return result(artifact)
    sheet = artifact.path / "reconstructions.png"  # of validation pictures, if there are any
    shown = {"reconstructions": picture(sheet, alt="original, before and after")} if sheet.exists() else {}
    return result(artifact, shown)


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["base_model_selection"], kinds={"diffusers"}, pool="gpu")
def base_model_selection(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    splits: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """Which base models fit data, device, licences and budget; those at hand are compared by short trainings."""
    artifact = stages.base_model_selection(settings, validated_data, splits, on_progress=progress_log(context))
    return result(artifact, {"report": page(artifact.file(REPORT_FILE))})


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["training_cache"], kinds={"numpy"}, pool="gpu")
def training_cache(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    validated_data: Artifact,
    splits: Artifact,
    fine_tuned_autoencoder: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """House-style pictures and their prompts as the denoiser takes them, encoded once."""
    return result(
        stages.training_cache(
            settings, validated_data, splits, fine_tuned_autoencoder, on_progress=progress_log(context)
        )
    )


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["hyperparameter_study"],
    kinds={"optuna"},
    pool="gpu",
    output_required=False,
)
def hyperparameter_study(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    training_cache: Artifact,
    fine_tuned_autoencoder: Artifact,
) -> Iterator[dg.MaterializeResult[Artifact]]:
    """Short trainings with other settings. What is better is proposed for review; nothing downstream reads it."""
    if not settings.study.trials:
        context.log.info("study.trials is 0: no study")
        return

    def tell(news: Progress) -> None:
        if news.trial is not None:
            context.log.info(describe_trial(news.trial, news.trials))

    artifact = stages.hyperparameter_study(settings, training_cache, fine_tuned_autoencoder, on_step=tell)
    yield result(artifact, {"trials_and_plots": page(artifact.file(PAGE))})


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
    fine_tuned_autoencoder: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """The base trained on the house style. Figures go to MLflow and, as they come, to this log."""
    from genai_assets.registry import tracking

    with tracking.training_run(settings, context.run.run_id, settings.fine_tune.model_dump(mode="json")) as run:

        def tell(report: StepReport) -> None:
            if report.note:
                context.log.warning(report.note)
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

        context.log.info("a process for training starts; for a long run on a CPU it compiles first, up to a minute")
        artifact = stages.fine_tuned_model(settings, training_cache, fine_tuned_autoencoder, on_step=tell)
        run.set_tags({"model_version": artifact.summary["model_version"], "reused": artifact.reused})
    samples = picture(artifact.file("samples.png"), alt="pictures of validation captions")
    return result(artifact, {"samples": samples, "mlflow_run": run.id})


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["distilled_model"],
    kinds={"pytorch"},
    pool="gpu",
)
def distilled_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    training_cache: Artifact,
    fine_tuned_model: Artifact,
) -> dg.MaterializeResult[Artifact]:
    """A student that draws in a few steps without guidance; off by default, and then the fine-tuned model itself."""
    drawn = progress_log(context)

    def tell(report: StepReport | TrajectoriesDrawn) -> None:
        if isinstance(report, TrajectoriesDrawn):
            drawn("trajectories drawn by the teacher", report.done, report.total)
            return
        if report.note:
            context.log.warning(report.note)
        if report.step % _STEPS_BETWEEN_LINES == 0 or report.step == report.steps:
            validated = "" if report.validation_loss is None else f", validation loss {report.validation_loss:.4g}"
            context.log.info(f"step {report.step} of {report.steps}: loss {report.loss:.4g}{validated}")

    artifact = stages.distilled_model(settings, training_cache, fine_tuned_model, on_step=tell)
    if not stages.is_student(artifact):
        context.log.info("no student is distilled: no budget is set")
        return result(artifact)
    return result(artifact, {"samples": picture(artifact.file("samples.png"), alt="teacher and student")})
