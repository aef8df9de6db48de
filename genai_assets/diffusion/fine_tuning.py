"""Fine-tuning: the base model learns the house style; out comes a folder that stock diffusers loads.

Belongs here: from settings to a training run to a model folder. The loop itself is ``training``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genai_assets.diffusion.attention import use_fastest_for_training
from genai_assets.diffusion.base_model import load_pipeline, save_model_folder
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.compilation import compile_denoiser, repays_itself
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import choose_device, mixed_precision
from genai_assets.diffusion.sampling import Drawer
from genai_assets.diffusion.training import BatchSource, StepReport, flow_matching_loss, train
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets.settings import FineTuneSettings, SamplingSettings

CODE_VERSION = "1"
_MAX_VALIDATION_PICTURES = 128
_SAMPLES = 12
# Share of the wall-clock budget left for validation, checkpoints and saving.
_OVERHEAD = 0.1
_TOO_FEW_TO_MEASURE = 3


def training_config(settings: FineTuneSettings, steps: int) -> TrainingConfig:
    """The run that the settings ask for, with the number of steps made definite."""
    return TrainingConfig(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(20, steps // 10),
        decay_share=0.5,
        ema_decay=0.98,
        method=settings.method,
        lora_rank=settings.lora_rank,
        seed=settings.seed,
        checkpoint_every=max(1, min(100, steps // 4)),
        validate_every=max(1, steps // 6),
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

    Beside the pipeline's parts, ``out`` gets ``model.json`` and ``samples.png``, a sheet of validation prompts.

    Args:
        base: a complete pipeline folder.
        cache_folder: the training cache's.
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
        dict: figures of the run.

    Raises:
        TrainingDiverged: the loss is not finite; nothing is saved.
        ValueError: the cache has no training pictures, or is of another resolution than the base.
    """
    import torch

    started = time.monotonic()
    where = choose_device(device)
    pipeline = load_pipeline(base)
    cache = TrainingCache.open(cache_folder)
    resolution = pipeline.config.default_sample_size
    if cache.pictures.shape[1] != resolution:
        raise ValueError(
            f"the base model draws {resolution} px, but fine_tune.resolution is {cache.pictures.shape[1]}: set it equal"
        )
    rows, validation = cache.select("train", house_style), cache.select("validation", house_style)
    if len(rows) == 0:
        raise ValueError(
            f"there are no pictures to train on: the training split has none in style {house_style!r}; "
            "look at dataset.house_style and at what was quarantined"
        )
    state = CheckpointFolder(checkpoints)
    denoiser, forward = pipeline.transformer, None
    # A LoRA is put into the denoiser when training starts, too late for code that is compiled before.
    if settings.method == "full" and repays_itself(where, minutes=settings.max_minutes, steps=settings.max_steps):
        forward = compile_denoiser(denoiser, compiled_code)
    if found := state.newest_valid():
        config = TrainingConfig.model_validate(found[2]["config"])
    else:
        probe = BatchSource(cache, rows, training_config(settings, 1)).batch(0)
        config = training_config(settings, _affordable_steps(denoiser, forward, probe, settings, where, started))
    result = train(
        pipeline.transformer,
        cache,
        config,
        training_rows=rows,
        validation_rows=validation[:_MAX_VALIDATION_PICTURES],
        device=where,
        checkpoints=state,
        on_step=on_step,
        forward=forward,
    )
    facts = {
        "model_version": model_version,
        "style": house_style,
        "prompt_template": settings.prompt_template,
        "resolution": resolution,
        "training": config.model_dump(mode="json"),
    }
    save_model_folder(base, result.denoiser, out, facts)
    drawer = Drawer(load_pipeline(out), where, dtype=torch.bfloat16)
    _draw_samples(drawer, cache, validation if len(validation) else rows, sampling, house_style, settings, out)
    return {
        "steps": result.steps,
        "pictures_seen": result.pictures_seen,
        "training_pictures": len(rows),
        "final_loss": round(result.final_loss, 5),
        "first_validation_loss": result.first_validation_loss,
        "validation_loss": result.validation_loss,
        "training_seconds": round(result.seconds, 1),
        "pictures_per_second": round(config.batch_size * result.steps / max(result.seconds, 1e-9), 1),
        "device": str(where),
        "method": config.method,
    }


def _affordable_steps(
    denoiser: Any, forward: Any, batch: Any, settings: FineTuneSettings, device: Any, started: float
) -> int:
    """How many steps the budget allows, from the time that a forward and backward pass takes here.

    Weights stay as they are. What was spent since ``started``, compiling above all, counts against the budget.
    """
    limit = settings.max_steps
    if limit is not None and limit <= _TOO_FEW_TO_MEASURE:
        return limit
    denoiser.to(device).train().requires_grad_(True)
    use_fastest_for_training(denoiser, device)
    batch = [part.to(device) for part in batch]
    called = denoiser if forward is None else forward
    times = []
    for _ in range(4):
        began = time.monotonic()
        with mixed_precision(device):
            loss = flow_matching_loss(called, *batch)
        loss.backward()
        loss.item()  # waits for a GPU
        times.append(time.monotonic() - began)
        denoiser.zero_grad(set_to_none=True)
    seconds = sorted(times[1:])[1] * 1.05  # the median after the first, and the optimizer's share
    left = settings.max_minutes * 60 * (1 - _OVERHEAD) - (time.monotonic() - started)
    affordable = max(1, int(left / seconds))
    return min(affordable, limit or affordable)


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
    side, columns = 2 * drawer.resolution, 4
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for number, picture in enumerate(pictures):
        place = (number % columns * side, number // columns * side)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    sheet.save(out / "samples.png")
