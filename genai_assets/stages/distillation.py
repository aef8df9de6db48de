"""The stage of distillation: distilled_model, and how a model's folder says that it wants to be drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genai_assets.artifacts import Artifact
from genai_assets.settings import SamplingSettings, Settings
from genai_assets.stages.ground import artifact_store, made_from, model_version


def distilled_model(
    settings: Settings, cache: Artifact, model: Artifact, *, on_step: Callable[[Any], None] | None = None
) -> Artifact:
    """A student that draws in a few steps, without guidance, what ``model`` draws; ``model`` itself when that is off.

    Trains in a process of its own.

    Args:
        settings: their section ``distillation``, and steps and guidance scale of ``sampling``.
        cache: the training cache of ``model``.
        model: the fine-tuned model: the teacher.
        on_step: told of ``TrajectoriesDrawn``, then of every ``StepReport``.

    Raises:
        CannotBeDistilled: the model's family is not distilled here.
        TrainingDiverged: the loss is not finite.
        TrainingProcessDied: the process was killed; the next try goes on from what was drawn and checkpointed.
    """
    from genai_assets.diffusion.distillation import distil
    from genai_assets.diffusion.distillation.levels import is_left_with_guidance
    from genai_assets.diffusion.own_process import run_in_own_process

    wanted = settings.distillation
    if not wanted.wanted:
        return model
    inputs = made_from(
        "distilled_model",
        teacher=model.data_version,
        cache=cache.data_version,
        config=wanted.model_dump(mode="json", exclude={"max_kid_loss"}),
        guidance_scale=settings.sampling.guidance_scale,
        left_with_guidance=(
            is_left_with_guidance(wanted.drawing_steps, settings.sampling) if wanted.learns == "auto" else None
        ),
        house_style=settings.dataset.house_style,
        training_code=distil.CODE_VERSION,
    )
    version = model_version(inputs)
    checkpoints = settings.paths.checkpoints / f"distillation-{version}"

    def make(out: Path) -> dict[str, Any]:
        figures = run_in_own_process(
            distil.distil,
            on_step=on_step,
            teacher=model.path,
            cache_folder=cache.path,
            settings=wanted,
            sampling=settings.sampling,
            out=out,
            house_style=settings.dataset.house_style,
            model_version=version,
            checkpoints=checkpoints,
            device=settings.device,
            compiled_code=settings.paths.compiled,
        )
        _write_card(settings, out, version, cache, model, figures)
        return figures | {"model_version": version, "distilled_from": model.summary["model_version"]}

    made = artifact_store(settings).build("distilled_model", inputs, make)
    _remove(checkpoints)
    return made


def is_student(artifact: Artifact) -> bool:
    """Whether this is a distilled model, rather than the fine-tuned one that stands in its place when that is off."""
    return artifact.kind == "distilled_model"


def drawn_as(settings: Settings, folder: Path) -> SamplingSettings:
    """How a model is drawn: as its facts say, if they say so (a student's do), else as the settings say."""
    from genai_assets.diffusion.base_model import MODEL_FACTS, model_facts

    told = model_facts(folder).get("sampling") if (folder / MODEL_FACTS).is_file() else None
    return settings.sampling.model_copy(update=told or {})


def _write_card(
    settings: Settings, folder: Path, version: str, cache: Artifact, teacher: Artifact, figures: dict[str, Any]
) -> None:
    from genai_assets.registry.model_card import write_model_card

    steps = settings.distillation.drawing_steps
    write_model_card(
        folder,
        {
            "name": f"{settings.dataset.house_style} image model {version}, {steps} steps",
            "licence": "other",
            "summary": (
                f"Draws in the style “{settings.dataset.house_style}” in {steps} step{'s' * (steps > 1)}, with the "
                f"guidance scale 1. Distilled by genai_assets from {teacher.summary['model_version']}."
            ),
            "base_model": settings.base_model,
            "tags": ["text-to-image", "diffusers", "distillation"],
            "model_version": version,
            "data_version": cache.data_version,
            "recipe": settings.distillation.model_dump(mode="json"),
            "figures": {name: value for name, value in figures.items() if isinstance(value, int | float)},
            "figures_note": "Of the distillation; the evaluation report has the figures on held-out concepts.",
            "limits": (
                "It knows the teacher's guidance scale only, and this number of steps. Licences of the training "
                "pictures, and whom to credit, are in the manifest's records."
            ),
        },
    )


def _remove(folder: Path) -> None:
    """A finished student needs neither its checkpoints nor its teacher's trajectories."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
