"""Distillation from a teacher's folder to a student's: what stock diffusers loads, and how it wants to be drawn.

Belongs here: from settings to trajectories to a training run to a model folder. The loop itself is
``diffusion.training``.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets.datasets.attribution import ATTRIBUTION
from genai_assets.diffusion.autoencoder.reconstruction import save_sheet
from genai_assets.diffusion.base_model import INDEX, load_pipeline, model_facts, save_model_folder
from genai_assets.diffusion.budget import affordable_steps, seconds_a_step
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.compilation import way_to_compile
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.distillation.adversary import AdversarialLearner
from genai_assets.diffusion.distillation.levels import (
    Way,
    choose_way,
    drawn_levels,
    few_step_noise_scheduler,
    require_flow,
)
from genai_assets.diffusion.distillation.segments import SegmentBatches
from genai_assets.diffusion.distillation.trajectories import (
    Recipe,
    Trajectories,
    TrajectoriesDrawn,
    clean_shape,
    draw_trajectories,
)
from genai_assets.diffusion.drawing.backends import choose_backend
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.flow import FlowFamily
from genai_assets.diffusion.fine_tuning import LORA_FOLDER
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.sampling import Drawer
from genai_assets.diffusion.training import StepReport, begun_config, train
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets.settings import DistillationSettings, SamplingSettings

if TYPE_CHECKING:
    import torch

CODE_VERSION = "2"
# Share of a wall-clock budget in which the teacher draws.
_DRAWING_SHARE = 0.4
_VALIDATION_SHARE = 0.05
_MOST_VALIDATED = 32
_SAMPLES = 8


def training_config(settings: DistillationSettings, steps: int) -> TrainingConfig:
    """The run that the settings ask for, with the number of steps made definite."""
    return TrainingConfig(
        steps=steps,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(20, steps // 10),
        decay_share=0.5,
        weight_decay=0.0,  # the teacher's weights are where it starts from, and nothing pulls them to zero
        ema_decay=settings.ema_decay,
        prompt_dropout=0.0,  # guidance is in the target: there is no unprompted student
        augmentation=Augmentation(flip=0),
        method=settings.method,
        lora_rank=settings.lora_rank,
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        checkpoint_every=max(1, min(100, steps // 4)),
        validate_every=max(1, steps // 4),
    )


def distil(
    teacher: Path,
    cache_folder: Path,
    settings: DistillationSettings,
    sampling: SamplingSettings,
    out: Path,
    *,
    house_style: str,
    model_version: str,
    checkpoints: Path,
    device: str = "auto",
    compiled_code: Path | None = None,
    on_step: Callable[[StepReport | TrajectoriesDrawn], None] | None = None,
) -> dict[str, Any]:
    """Have the teacher draw, train a student to do it in fewer steps, and fill ``out`` with the student's folder.

    The student has the teacher's parts but for the denoiser and the noise scheduler. Its ``model.json`` says what the
    teacher's says, and under ``sampling`` with how many steps and which guidance scale it wants to be drawn.
    ``samples.png`` shows both beside each other. The teacher's ``ATTRIBUTION.md``, if it has one, is the student's too.

    Args:
        teacher: a fine-tuned model's folder, of a flow family.
        cache_folder: the training cache that the teacher was trained with.
        settings: the run; whichever of ``max_minutes`` and ``max_steps`` ends first is the budget.
        sampling: how the teacher is drawn: its guidance scale is the one that is distilled.
        out: an empty folder.
        house_style: the style whose training prompts are drawn.
        model_version: minted by the caller from the inputs' versions.
        checkpoints: where trajectories and the run's state are kept; gone on from.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        compiled_code: where compiled code is kept from run to run.
        on_step: told of trajectories drawn, then of every step.

    Returns:
        dict: figures of the run.

    Raises:
        CannotBeDistilled: the teacher is of a family without straight paths, or knows its guidance already; or guidance
            alone is to be learnt of one that has none, or that cannot draw with DPM-Solver++.
        TrainingDiverged: the loss is not finite; nothing is saved.
        ValueError: the cache has no training pictures in this style, or no square ones.
    """
    started = time.monotonic()
    where = choose_device(device)
    cache = TrainingCache.open(cache_folder)
    facts = model_facts(teacher)
    family = require_flow(family_of(load_pipeline(teacher)))
    way = choose_way(family, settings.learns, settings.drawing_steps, sampling)
    noise_scheduler = few_step_noise_scheduler(family, settings.drawing_steps, clean_shape(cache), way=way)
    family.pipeline.scheduler = noise_scheduler
    trajectories = _trajectories(
        family, way, cache, settings, sampling, checkpoints, where, facts["resolution"], house_style, started, on_step
    )
    del family  # the teacher is let go of before the student is loaded
    drawing_seconds = time.monotonic() - started

    validated = min(_MOST_VALIDATED, int(len(trajectories) * _VALIDATION_SHARE))
    numbers = np.arange(len(trajectories))
    family = require_flow(family_of(load_pipeline(teacher)))
    family.pipeline.scheduler = noise_scheduler
    state = CheckpointFolder(checkpoints / "state")
    begun = begun_config(state)
    config = begun or training_config(settings, 1)
    minutes = (settings.max_minutes or np.inf) * (1 - _DRAWING_SHARE)
    compiled = way_to_compile(where, minutes=minutes, steps=settings.max_steps or None)
    learner = _learner(family, config, settings, where, compiled=compiled, compiled_code=compiled_code)
    pictures = cache.select("train", house_style) if settings.adversarial_weight else None
    learnt = numbers[: len(numbers) - validated]
    if begun is None:
        probe = SegmentBatches(trajectories, cache, config, learnt, pictures)
        config = training_config(settings, _affordable_steps(learner, probe, settings, where, started))
    result = train(
        family,
        cache,
        config,
        training_rows=learnt,
        validation_rows=numbers[len(learnt) :],
        device=where,
        checkpoints=state,
        on_step=on_step,
        learner=learner,
        source=SegmentBatches(trajectories, cache, config, learnt, pictures),
    )
    told = facts | {
        "model_version": model_version,
        "distilled_from": facts["model_version"],
        "sampling": {"steps": settings.drawing_steps, "guidance_scale": 1.0},
        "training": config.model_dump(mode="json"),
    }
    save_model_folder(teacher, family, out, told, changed=[family.denoiser_part])
    _replace_noise_scheduler(noise_scheduler, out)
    if result.lora_layers is not None:
        family.save_lora(result.lora_layers, out / LORA_FOLDER)
    if (teacher / ATTRIBUTION).is_file():
        shutil.copyfile(teacher / ATTRIBUTION, out / ATTRIBUTION)  # it learnt from the same pictures
    _draw_sheet(teacher, out, cache, house_style, settings, sampling, where)
    return {
        "family": family.name,
        "drawing_steps": settings.drawing_steps,
        "learns": way,
        "trajectories": len(trajectories),
        "steps": result.steps,
        "segments_seen": result.pictures_seen,
        "final_loss": round(result.final_loss, 5),
        "first_validation_loss": result.first_validation_loss,
        "validation_loss": result.validation_loss,
        "adversarial_weight": settings.adversarial_weight,
        "drawing_seconds": round(drawing_seconds, 1),
        "training_seconds": round(result.seconds, 1),
        "device": str(where),
        "method": config.method,
    }


def _trajectories(
    family: FlowFamily,
    way: Way,
    cache: TrainingCache,
    settings: DistillationSettings,
    sampling: SamplingSettings,
    checkpoints: Path,
    where: "torch.device",
    side: int,
    house_style: str,
    started: float,
    on_step: Callable[[StepReport | TrajectoriesDrawn], None] | None,
) -> Trajectories:
    """What the teacher draws by way of the student's levels."""
    import torch

    family.prepare_for_drawing(where, torch.bfloat16)
    recipe = Recipe(
        levels=tuple(drawn_levels(family, settings.drawing_steps, side)),
        way=way,
        teacher_steps=settings.teacher_steps,
        guidance_scale=sampling.guidance_scale,
        count=settings.trajectories,
        seed=settings.seed,
    )
    until = started + (settings.max_minutes or np.inf) * 60 * _DRAWING_SHARE
    return draw_trajectories(
        family,
        cache,
        cache.select("train", house_style),
        recipe,
        checkpoints / "trajectories",
        backend=choose_backend(sampling.backend, family.denoiser),
        out_of_time=lambda: time.monotonic() > until,
        on_drawn=on_step,
    )


def _learner(
    family: Any, config: TrainingConfig, settings: DistillationSettings, where: "torch.device", **compiling: Any
) -> Learner:
    if not settings.adversarial_weight:
        return Learner(family, config, where, **compiling)
    return AdversarialLearner(family, config, where, weight=settings.adversarial_weight, **compiling)


def _affordable_steps(
    learner: Learner, probe: SegmentBatches, settings: DistillationSettings, where: "torch.device", started: float
) -> int:
    """How many steps the budget allows, from the time that a forward and backward pass takes here."""
    limit = settings.max_steps or None
    if settings.max_minutes is None:
        assert limit
        return limit
    seconds = seconds_a_step(learner, probe.batch(0), where, micro_batch_size=settings.micro_batch_size)
    return affordable_steps(seconds, minutes=settings.max_minutes, started=started, at_most=limit)


def _replace_noise_scheduler(noise_scheduler: Any, out: Path) -> None:
    """Put the student's noise scheduler in the place of its teacher's, in the folder and in the index."""
    import json

    from genai_assets import durable

    shutil.rmtree(out / "scheduler")  # hard links to the teacher's: written over, they would change there
    noise_scheduler.save_pretrained(out / "scheduler")
    index = json.loads((out / INDEX).read_text())
    index["scheduler"] = ["diffusers", type(noise_scheduler).__name__]
    durable.write_json(out / INDEX, index)


def _draw_sheet(
    teacher: Path,
    student: Path,
    cache: TrainingCache,
    house_style: str,
    settings: DistillationSettings,
    sampling: SamplingSettings,
    where: "torch.device",
) -> None:
    """The same prompts and seeds drawn by both; of validation captions, where there are some."""
    import torch

    side = model_facts(student)["resolution"]
    rows = cache.select("validation", house_style)
    rows = rows if len(rows) else cache.select("train", house_style)
    prompts = list(dict.fromkeys(cache.rows["texts"].iloc[row][0] for row in rows))[:_SAMPLES]
    columns = []
    for folder, steps, guidance in (
        (teacher, sampling.steps, sampling.guidance_scale),
        (student, settings.drawing_steps, 1.0),
    ):
        drawn = Drawer(load_pipeline(folder), where, dtype=torch.bfloat16, resolution=side).draw(
            prompts, seeds=range(len(prompts)), steps=steps, guidance_scale=guidance
        )
        name = f"{steps} step{'s' * (steps > 1)}" + (f", guidance {guidance:g}" if guidance > 1 else "")
        columns.append((name, np.stack([np.asarray(picture) for picture in drawn])))
    save_sheet(student / "samples.png", columns)
