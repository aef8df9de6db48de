"""Fine-tuning: the base model learns the house style; out comes a folder that stock diffusers loads.

Belongs here: from settings to a training run to a model folder. The loop itself is ``training``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genai_assets.diffusion.base_model import load_pipeline, save_model_folder
from genai_assets.diffusion.batches import Batch, BatchSource
from genai_assets.diffusion.budget import affordable_steps, seconds_a_step
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.compilation import way_to_compile
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.sampling import Drawer
from genai_assets.diffusion.training import StepReport, begun_config, train
from genai_assets.diffusion.training_cache import PRIOR_SPLIT, TrainingCache
from genai_assets.settings import FineTuneSettings, SamplingSettings

CODE_VERSION = "2"
LORA_FOLDER = "lora"
_MAX_VALIDATION_PICTURES = 128
# A long run of few pictures turns from learning to remembering somewhere on its way: two minutes of a CPU's at most.
_MOST_STEPS_UNVALIDATED = 250
_SAMPLES = 12
_TOO_FEW_TO_MEASURE = 3


def training_config(settings: FineTuneSettings, steps: int) -> TrainingConfig:
    """The run that the settings ask for, with the number of steps made definite."""
    asked = {
        name: getattr(settings, name) for name in TrainingConfig.model_fields if name in FineTuneSettings.model_fields
    }
    asked["warmup_steps"] = min(settings.warmup_steps, steps // 10)
    return TrainingConfig(
        steps=steps,
        checkpoint_every=max(1, min(100, steps // 4)),
        validate_every=max(1, min(steps // 6, _MOST_STEPS_UNVALIDATED)),
        **asked,
    )


def fine_tune(
    base: Path,
    cache_folder: Path,
    settings: FineTuneSettings,
    sampling: SamplingSettings,
    out: Path,
    *,
    house_style: str,
    model_version: str,
    checkpoints: Path,
    device: str = "auto",
    compiled_code: Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> dict[str, Any]:
    """Train the base on the house style's training split and fill ``out`` with the model folder.

    Beside the pipeline's parts, ``out`` gets ``model.json``, ``samples.png`` (a sheet of validation prompts) and, when
    a LoRA was trained, ``lora/`` with the adapters by themselves; the pipeline's denoiser has them merged.

    Args:
        base: a complete pipeline folder.
        cache_folder: the training cache's, made for ``base``.
        settings: the run; whichever of ``max_minutes`` and ``max_steps`` ends first is the budget.
        sampling: how the sample sheet is drawn.
        out: an empty folder.
        house_style: the style to learn.
        model_version: minted by the caller from the inputs' versions; written into the folder.
        checkpoints: where the run keeps its state; gone on from when it holds a valid one.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        compiled_code: where compiled code is kept from run to run, when the run is long enough to compile for.
        on_step: told after every step.

    Returns:
        dict: figures of the run; empty in processes that only help the first one.

    Raises:
        TrainingDiverged: the loss is not finite; nothing is saved.
        ValueError: the cache has no training pictures.
    """
    import torch
    from accelerate import PartialState

    started = time.monotonic()
    where = choose_device(device)
    if where.type == "cuda" and settings.processes > torch.cuda.device_count():
        raise ValueError(
            f"fine_tune.processes is {settings.processes}, but there are {torch.cuda.device_count()} GPUs: one each"
        )
    # Several processes on GPUs have one each.
    where = PartialState(cpu=where.type == "cpu").device
    family = family_of(load_pipeline(base))
    cache = TrainingCache.open(cache_folder)
    rows, validation = cache.select("train", house_style), cache.select("validation", house_style)
    if len(rows) == 0:
        raise ValueError(
            f"there are no pictures to train on: the training split has none in style {house_style!r}; "
            "look at dataset.house_style and at what was quarantined"
        )
    shown = np.concatenate((rows, cache.select(PRIOR_SPLIT)))
    state = CheckpointFolder(checkpoints, keep=settings.checkpoints_kept)
    begun = begun_config(state)
    config = begun or training_config(settings, 1)
    # Buckets of several shapes would each be compiled for.
    one_shape = len(cache.codes) == 1
    compiled = way_to_compile(where, minutes=settings.max_minutes, steps=settings.max_steps) if one_shape else None
    learner = Learner(family, config, where, compiled=compiled, compiled_code=compiled_code)
    if begun is None:
        probe = BatchSource(cache, family, shown, config).batch(0)
        config = training_config(settings, _affordable_steps(learner, probe, settings, where, started))
    result = train(
        family,
        cache,
        config,
        training_rows=shown,
        validation_rows=validation[:_MAX_VALIDATION_PICTURES],
        device=where,
        checkpoints=state,
        on_step=on_step,
        learner=learner,
    )
    if not PartialState().is_main_process:
        return {}
    side = settings.resolution or family.resolution
    facts = {
        "model_version": model_version,
        "style": house_style,
        "prompt_template": settings.prompt_template,
        "resolution": side,
        "training": config.model_dump(mode="json"),
    }
    changed = [family.denoiser_part, *(family.text_encoder_parts if config.train_text_encoder else ())]
    save_model_folder(base, family, out, facts, changed=changed)
    if result.lora_layers is not None:
        family.save_lora(result.lora_layers, out / LORA_FOLDER)
    drawer = Drawer(load_pipeline(out), where, dtype=torch.bfloat16, resolution=side)
    _draw_samples(drawer, cache, validation if len(validation) else rows, sampling, house_style, settings, out)
    return {
        "family": family.name,
        "steps": result.steps,
        "pictures_seen": result.pictures_seen,
        "training_pictures": len(rows),
        "final_loss": round(result.final_loss, 5),
        "first_validation_loss": result.first_validation_loss,
        "validation_loss": result.validation_loss,
        "best_step": result.best_step,
        "times_gone_back": result.faults,
        "training_seconds": round(result.seconds, 1),
        "pictures_per_second": round(config.batch_size * result.steps / max(result.seconds, 1e-9), 1),
        "device": str(where),
        "method": config.method,
    }


def _affordable_steps(learner: Learner, batch: Batch, settings: FineTuneSettings, device: Any, started: float) -> int:
    """How many steps the budget allows, from the time that a forward and backward pass takes here.

    Weights stay as they are. What was spent since ``started``, compiling above all, counts against the budget. All
    processes get the first one's answer.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    limit = settings.max_steps
    if limit is not None and limit <= _TOO_FEW_TO_MEASURE:
        return limit
    processes = PartialState().num_processes
    seconds = seconds_a_step(learner, batch, device, micro_batch_size=settings.micro_batch_size, processes=processes)
    agreed = [affordable_steps(seconds, minutes=settings.max_minutes, started=started, at_most=limit)]
    broadcast_object_list(agreed)
    return agreed[0]


def _draw_samples(
    drawer: Drawer,
    cache: TrainingCache,
    rows: np.ndarray,
    sampling: SamplingSettings,
    style: str,
    settings: FineTuneSettings,
    out: Path,
) -> None:
    """A sheet of pictures for the first captions of ``rows``, four a line."""
    from PIL import Image

    captions = list(dict.fromkeys(cache.rows.iloc[rows]["caption"]))[:_SAMPLES]
    pictures = drawer.draw(
        [settings.prompt(caption, style) for caption in captions],
        seeds=range(len(captions)),
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
    )
    side, columns = max(128, min(2 * drawer.resolution, 512)), 4
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for number, picture in enumerate(pictures):
        place = (number % columns * side, number // columns * side)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    sheet.save(out / "samples.png")
