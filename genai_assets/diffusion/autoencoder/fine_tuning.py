"""Fine-tuning of a latent model's autoencoder: a pipeline folder in, a pipeline folder out.

Belongs here: which base has an autoencoder that can be trained, the measurement before and after, and the folder. The
loop itself is ``training``.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets import durable
from genai_assets.diffusion.autoencoder.config import AutoencoderConfig
from genai_assets.diffusion.autoencoder.losses import FeatureMaps
from genai_assets.diffusion.autoencoder.pictures import Pictures, to_model_range
from genai_assets.diffusion.autoencoder.reconstruction import (
    PictureDistance,
    distance_of_halves,
    psnr,
    reconstruct,
    save_sheet,
)
from genai_assets.diffusion.autoencoder.training import AutoencoderDiverged, AutoencoderStep, train_autoencoder
from genai_assets.diffusion.base_model import BaseModelError, quiet_loading
from genai_assets.diffusion.budget import affordable_steps
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.families import UnknownFamily, family_class

if TYPE_CHECKING:
    import torch

CODE_VERSION = "1"
PART = "vae"
_TRAINABLE = "AutoencoderKL"
_MAX_VALIDATION_PICTURES = 256
_SHEET_LINES = 8
_TRIAL_STEPS = 4


def trainable_autoencoder(base: Path) -> bool:
    """Whether a pipeline folder has an autoencoder that can be trained here; see :func:`require_autoencoder`."""
    return _autoencoder_class(base)[1] == _TRAINABLE


def require_autoencoder(base: Path) -> None:
    """Refuse a pipeline folder whose autoencoder cannot be trained here.

    Raises:
        BaseModelError: it has none, or one of another class; the message names the family and says why.
    """
    pipeline, found = _autoencoder_class(base)
    try:
        family = f"{family_class(pipeline).name} ({pipeline})"
    except UnknownFamily:
        family = pipeline
    if found is None:
        raise BaseModelError(
            f"{family} has no autoencoder: its denoiser works on the picture's own pixels, so there is nothing between "
            "latents and picture to fine-tune; leave autoencoder.max_steps and autoencoder.max_minutes unset"
        )
    if found != _TRAINABLE:
        raise BaseModelError(
            f"the autoencoder of {family} is an {found}, which has another latent space and another decoder than "
            f"{_TRAINABLE}, the one that is fine-tuned here (Stable Diffusion 1 to 3, SDXL, Flux, Z-Image); "
            "leave autoencoder.max_steps and autoencoder.max_minutes unset"
        )


def fine_tune_autoencoder(
    base: Path,
    training: Pictures,
    validation: Pictures,
    config: AutoencoderConfig,
    out: Path,
    *,
    checkpoints: Path,
    device: str = "auto",
    perceptual: FeatureMaps | None,
    distance: PictureDistance | None = None,
    max_minutes: float | None = None,
    on_step: Callable[[AutoencoderStep], None] | None = None,
) -> dict[str, Any]:
    """Train the base's autoencoder and fill ``out`` with a pipeline folder that has it in the old one's place.

    The other parts are hard links to the base's. Beside them lies ``reconstructions.png``: validation pictures as they
    are, as the base renders them, and as the trained one does. The autoencoder keeps the base's number format and, with
    the encoder frozen, its encoder to the last bit.

    Args:
        base: a complete pipeline folder.
        training, validation: square pictures of the model's resolution; no picture in both.
        config: the run.
        out: an empty folder.
        checkpoints: where the run keeps its state; gone on from when it holds a valid one.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        perceptual: see :func:`train_autoencoder`.
        distance: KID of two sets of pictures; None leaves it out.
        max_minutes: wall-clock budget of training; lowers ``config.steps`` to what can be done in it here. A run that
            goes on from a checkpoint keeps the number of steps it was begun with.
        on_step: told after every step.

    Returns:
        dict: figures of the run, plain JSON values. ``psnr_before`` and ``psnr_after`` are means over the validation
            pictures in decibels; ``kid_before`` and ``kid_after`` compare one half's reconstructions with the other
            half's originals, and ``kid_floor`` the originals of both. None where there are too few pictures.
            ``scaled_latent_std`` should be near 1; with a trained encoder it may not be, and the pipeline's
            ``scaling_factor`` is left as it was.

    Raises:
        BaseModelError: the base has no autoencoder that can be trained here.
        AutoencoderDiverged: a loss, gradient or rendered picture is not finite; nothing is saved.
        ValueError: see :func:`train_autoencoder`.
    """
    import torch
    from diffusers import AutoencoderKL

    require_autoencoder(base)
    quiet_loading()
    where = choose_device(device)
    stored = _stored_dtype(base / PART)
    autoencoder: Any = AutoencoderKL.from_pretrained(base / PART, local_files_only=True, use_safetensors=True)
    autoencoder.to(where, torch.float32).eval()
    fixed = _spread(validation)
    before = _rendered(autoencoder, fixed, where)

    state = CheckpointFolder(checkpoints)
    if max_minutes is not None:
        if found := state.newest_valid():
            steps = found[2]["config"]["steps"]
        else:
            steps = _affordable_steps(autoencoder, training, config, where, perceptual, max_minutes)
        config = config.model_copy(update={"steps": steps})
    result = train_autoencoder(
        autoencoder,
        training,
        config,
        device=where,
        perceptual=perceptual,
        validation=fixed if len(fixed) else None,
        checkpoints=state,
        on_step=on_step,
    )
    # What is measured is what is saved, number format included.
    autoencoder.to(stored).to(torch.float32)
    after = _rendered(autoencoder, fixed, where)
    latent_std = _scaled_latent_std(autoencoder, fixed, where)

    _save_folder(base, autoencoder.to(stored), out)
    if len(fixed):
        shown = slice(0, _SHEET_LINES)
        columns = [("original", fixed[shown]), ("before", before[shown]), ("after", after[shown])]
        save_sheet(out / "reconstructions.png", columns)
    return {
        "steps": result.steps,
        "pictures_seen": result.pictures_seen,
        "training_pictures": len(training),
        "validation_pictures": len(fixed),
        **_compare(fixed, before, after, distance),
        "losses": {name: round(value, 6) for name, value in result.losses.items()},
        "scaled_latent_std": latent_std,
        "latents_changed": config.train_encoder,
        "training_seconds": round(result.seconds, 1),
        "device": str(where),
        "config": config.model_dump(mode="json"),
    }


def _autoencoder_class(base: Path) -> tuple[str, str | None]:
    """The pipeline's class and its autoencoder's, None when it has none."""
    try:
        index = json.loads((base / "model_index.json").read_text())
        return index["_class_name"], (index.get(PART) or [None, None])[1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BaseModelError(f"{base} has no readable model_index.json of a diffusers pipeline: {error!r}") from error


def _stored_dtype(folder: Path) -> "torch.dtype":
    from safetensors import safe_open

    file = next(iter(sorted(folder.glob("*.safetensors"))), None)
    if file is None:
        raise BaseModelError(f"{folder} has no weights in safetensors files; get the base model anew")
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype


def _spread(pictures: Pictures) -> np.ndarray:
    """At most so many as are validated on, spread evenly."""
    count = min(len(pictures), _MAX_VALIDATION_PICTURES)
    if not count:
        return np.empty((0, 1, 1, 3), np.uint8)
    return pictures.take(np.linspace(0, len(pictures) - 1, count).round().astype(np.int64))


def _rendered(autoencoder: Any, pictures: np.ndarray, device: "torch.device") -> np.ndarray:
    try:
        return reconstruct(autoencoder, pictures, device)
    except FloatingPointError as error:
        raise AutoencoderDiverged(
            f"{error}; nothing was saved. "
            "Look for broken weights in the base model, or lower autoencoder.learning_rate."
        ) from error


def _compare(
    originals: np.ndarray, before: np.ndarray, after: np.ndarray, distance: PictureDistance | None
) -> dict[str, float | None]:
    """PSNR and KID of what was rendered before and after; None where there are too few pictures."""
    figures: dict[str, float | None] = dict.fromkeys(
        ("psnr_before", "psnr_after", "kid_before", "kid_after", "kid_floor")
    )
    if len(originals):
        figures["psnr_before"] = round(float(psnr(originals, before).mean()), 3)
        figures["psnr_after"] = round(float(psnr(originals, after).mean()), 3)
    if distance and len(originals) >= 4:
        for name, pictures in (("before", before), ("after", after), ("floor", originals)):
            figures[f"kid_{name}"] = round(distance_of_halves(originals, pictures, distance), 6)
    return figures


def _affordable_steps(
    autoencoder: Any,
    training: Pictures,
    config: AutoencoderConfig,
    device: "torch.device",
    perceptual: FeatureMaps | None,
    minutes: float,
) -> int:
    """How many steps the budget allows, by a short trial on a copy with every loss in it."""
    started = time.monotonic()
    ends: list[float] = []
    trial = config.model_copy(update={"steps": _TRIAL_STEPS, "adversarial_start": 0, "validate_every": 0})
    train_autoencoder(
        copy.deepcopy(autoencoder),
        training,
        trial,
        device=device,
        perceptual=perceptual,
        on_step=lambda report: ends.append(time.monotonic()),
    )
    seconds = float(np.median(np.diff(ends)))
    return affordable_steps(seconds, minutes=minutes, started=started, at_most=config.steps)


def _scaled_latent_std(autoencoder: Any, pictures: np.ndarray, device: "torch.device") -> float | None:
    """Standard deviation of the latents as the denoiser gets them."""
    import torch

    if not len(pictures):
        return None
    with torch.inference_mode():
        latents = autoencoder.encode(to_model_range(pictures[:32]).to(device)).latent_dist.mode()
        scaled = (latents - (autoencoder.config.shift_factor or 0.0)) * autoencoder.config.scaling_factor
        return round(scaled.std().item(), 4)


def _save_folder(base: Path, autoencoder: Any, out: Path) -> None:
    for part in sorted(base.iterdir()):
        if part.is_dir() and part.name != PART:
            shutil.copytree(part, out / part.name, copy_function=durable.link_or_copy)
    shutil.copy2(base / "model_index.json", out / "model_index.json")
    autoencoder.save_pretrained(out / PART, safe_serialization=True)
