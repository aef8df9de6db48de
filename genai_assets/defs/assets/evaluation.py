"""From a challenger to the champion: eval_report, whose checks are the gate, and champion_model."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import page, picture, progress_log, result
from genai_assets.settings import Settings

GROUP = "evaluation"
MODEL_IS_SOUND = "model_is_sound"


@dg.asset(
    group_name=GROUP,
    code_version=stages.CODE_VERSIONS["eval_report"],
    kinds={"html"},
    check_specs=[
        dg.AssetCheckSpec(
            MODEL_IS_SOUND,
            asset="eval_report",
            blocking=True,
            description="Figures are finite; pictures are neither blank nor all alike; few copy a training picture.",
        )
    ],
)
def eval_report(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    fine_tuned_model: Artifact,
    distilled_model: Artifact,
    base_model: Artifact,
    splits: Artifact,
    validated_data: Artifact,
    image_features: Artifact,
) -> Iterator[dg.MaterializeResult[Artifact]]:
    """The challenger beside base, champion, its few-step student and real pictures, on concepts it was never shown."""
    from genai_assets.evaluation.promotion import Figures, faults

    artifact = stages.eval_report(
        settings,
        fine_tuned_model,
        base_model,
        splits,
        validated_data,
        image_features,
        distilled=distilled_model,
        on_progress=progress_log(context),
    )
    found = faults(Figures.from_metrics(stages.read_metrics(artifact)), settings.promotion)
    sound = dg.AssetCheckResult(
        check_name=MODEL_IS_SOUND, passed=not found, metadata={"faults": "; ".join(found) or "none"}
    )
    metadata: dict[str, Any] = {
        "report": page(artifact.file("report.html")),
        "grid": picture(artifact.file("grid.png"), alt="base, fine-tuned and real pictures of held-out concepts"),
        **{
            f"{model}/{name}": value
            for model, figures in artifact.summary["models"].items()
            for name, value in figures.items()
            if name in ("kid", "recall_at_1", "recall_at_5", "style_score", "copied_share") and value is not None
        },
    }
    yield result(artifact, metadata, [sound])


@dg.asset(
    group_name=GROUP, code_version=stages.CODE_VERSIONS["champion_model"], kinds={"mlflow"}, output_required=False
)
def champion_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    fine_tuned_model: Artifact,
    distilled_model: Artifact,
    eval_report: Artifact,
) -> Iterator[dg.MaterializeResult[Artifact]]:
    """The model that serves. A challenger that is not better yields nothing here, and the run stays green."""
    # A failed blocking check stops this run only: the gate is asked again here, whoever materializes.
    artifact, reason = stages.champion_model(settings, fine_tuned_model, eval_report, distilled_model)
    context.log.info(reason)
    if artifact is not None:
        yield result(artifact)
