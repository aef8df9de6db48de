"""The stages in their order, told on a console: what several commands do before their own work.

Belongs here: which stage follows which, without Dagster. What a stage is made from is ``stages``.
"""

from typing import TYPE_CHECKING

from genai_assets import stages
from genai_assets.console import StageProgress

if TYPE_CHECKING:
    from genai_assets.artifacts import Artifact
    from genai_assets.diffusion.training import StepReport
    from genai_assets.settings import Settings


def prepare(
    settings: "Settings", progress: StageProgress, *, report: bool = False
) -> "tuple[Artifact, Artifact, Artifact]":
    """Validated data, features and splits; with ``report`` also the readiness report and the dataset's card.

    Raises:
        ValueError: a critical check fails; nothing must be trained on such data.
    """
    raw = progress.stage("raw_data", lambda: stages.raw_data(settings, on_progress=progress.on_progress))
    validated = progress.stage(
        "validated_data", lambda: stages.validated_data(settings, raw, on_progress=progress.on_progress)
    )
    summary = validated.summary
    if not summary["success"]:
        failed = [
            check["name"] for check in summary["checks"] if not check["passed"] and check["severity"] == "critical"
        ]
        raise ValueError(f"the data fails critical checks: {', '.join(failed)}; see {summary['data_docs']}")
    features = progress.stage(
        "image_features", lambda: stages.image_features(settings, validated, on_progress=progress.on_progress)
    )
    duplicates = progress.stage(
        "duplicate_clusters",
        lambda: stages.duplicate_clusters(settings, validated, features, on_progress=progress.on_progress),
    )
    split = progress.stage("splits", lambda: stages.splits(settings, validated, duplicates))
    if leaks := stages.split_leaks(split, duplicates):
        raise ValueError(f"the splits leak, which must never be: {leaks[0]} ({len(leaks)} in all); please report it")
    if report:
        progress.stage(
            "data_readiness_report", lambda: stages.data_readiness_report(settings, raw, validated, split, duplicates)
        )
        progress.stage("dataset_card", lambda: stages.dataset_card(settings, raw, validated, split, duplicates))
    return validated, features, split


def starting_point(
    settings: "Settings", progress: StageProgress, validated: "Artifact", split: "Artifact"
) -> "tuple[Artifact, Artifact, Artifact]":
    """The base model; the same to start from, perhaps with another autoencoder; and the training cache made for it."""
    base = progress.stage("base_model", lambda: stages.base_model(settings))
    start = base
    if settings.autoencoder.wanted:
        start = progress.stage(
            "fine_tuned_autoencoder",
            lambda: stages.fine_tuned_autoencoder(
                settings,
                validated,
                split,
                base,
                on_step=lambda report: progress.on_progress("autoencoder", report.step, report.steps),
            ),
        )
    cache = progress.stage(
        "training_cache",
        lambda: stages.training_cache(settings, validated, split, start, on_progress=progress.on_progress),
    )
    return base, start, cache


def train(
    settings: "Settings", progress: StageProgress, validated: "Artifact", split: "Artifact"
) -> "tuple[Artifact, Artifact]":
    """The fine-tuned model and the base it grew from."""
    model, _, base = _fine_tune(settings, progress, validated, split)
    return model, base


def train_with_student(
    settings: "Settings", progress: StageProgress, validated: "Artifact", split: "Artifact"
) -> "tuple[Artifact, Artifact, Artifact]":
    """The fine-tuned model, its few-step student (the model itself when none is asked for), and the base."""
    from genai_assets.diffusion.distillation.trajectories import TrajectoriesDrawn

    model, cache, base = _fine_tune(settings, progress, validated, split)
    if not settings.distillation.wanted:
        return model, model, base

    def tell(report: "StepReport | TrajectoriesDrawn") -> None:
        if isinstance(report, TrajectoriesDrawn):
            progress.on_progress("the teacher draws", report.done, report.total)
        else:
            progress.on_step(report)

    student = progress.stage("distilled_model", lambda: stages.distilled_model(settings, cache, model, on_step=tell))
    return model, student, base


def _fine_tune(
    settings: "Settings", progress: StageProgress, validated: "Artifact", split: "Artifact"
) -> "tuple[Artifact, Artifact, Artifact]":
    """The fine-tuned model, the training cache, and the base."""
    base, start, cache = starting_point(settings, progress, validated, split)
    model = progress.stage(
        "fine_tuned_model", lambda: stages.fine_tuned_model(settings, cache, start, on_step=progress.on_step)
    )
    return model, cache, base
