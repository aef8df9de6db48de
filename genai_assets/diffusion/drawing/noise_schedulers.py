"""Stock noise schedulers of flow matching, by short names, and putting one into a pipeline or a saved folder.

Belongs here: which of diffusers' noise schedulers a flow model can be drawn with, each with the shift of sigmas that
the model was trained with. The choice is the pipeline's own noise-scheduler config, so stock diffusers draws the same
from the same folder. Which one is best at how many steps is measured by ``python -m benchmarks.quality.curve``.

``python -m genai_assets.diffusion.drawing.noise_schedulers FOLDER NAME`` changes a saved folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

from genai_assets import durable

# The class in diffusers, its word for the shift of sigmas, and what else makes it one of flow matching.
_OF_FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_STOCK: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Euler's method on the probability-flow equation (Esser et al. 2024, SD3).
    "euler": ("FlowMatchEulerDiscreteScheduler", "shift", {}),
    # Heun's method, second order: calls the denoiser twice a step but the last (Karras et al. 2022, EDM).
    "heun": ("FlowMatchHeunDiscreteScheduler", "shift", {}),
    # Multistep, second order (Lu et al. 2022, DPM-Solver++).
    "dpm++": ("DPMSolverMultistepScheduler", "flow_shift", _OF_FLOW),
    # Predictor and corrector, multistep (Zhao et al. 2023, UniPC).
    "unipc": ("UniPCMultistepScheduler", "flow_shift", _OF_FLOW),
}

NOISE_SCHEDULERS = tuple(_STOCK)
"""The names."""


def shift_of(noise_scheduler: Any) -> float:
    """Shift of sigmas that a noise scheduler's config names; 1 when it names none."""
    config = noise_scheduler.config
    return config.get("flow_shift") or config.get("shift") or 1.0


def new_noise_scheduler(name: str, *, shift: float) -> Any:
    """A stock noise scheduler of flow matching.

    Args:
        name: one of ``NOISE_SCHEDULERS``.
        shift: of sigmas towards noise.

    Raises:
        ValueError: the name is not known.
    """
    import diffusers

    if name not in _STOCK:
        raise ValueError(f"there is no noise scheduler {name!r}; there are: {', '.join(NOISE_SCHEDULERS)}")
    class_name, shift_argument, arguments = _STOCK[name]
    return getattr(diffusers, class_name)(**{shift_argument: shift}, **arguments)


def calls(name: str, steps: int) -> int:
    """How often a noise scheduler calls the denoiser in so many steps."""
    return 2 * steps - 1 if name == "heun" else steps


def use_noise_scheduler(pipeline: Any, name: str) -> None:
    """Let a loaded flow pipeline draw with another noise scheduler, led by the shift it has.

    Raises:
        ValueError: the name is not known, or the pipeline is not of flow matching.
    """
    before = pipeline.scheduler
    of_flow = "FlowMatch" in type(before).__name__ or before.config.get("use_flow_sigmas")
    if not of_flow:
        raise ValueError(f"{type(before).__name__} is no noise scheduler of flow matching; it cannot be exchanged here")
    pipeline.register_modules(scheduler=new_noise_scheduler(name, shift=shift_of(before)))


def save_noise_scheduler(folder: Path, name: str) -> None:
    """Change the noise scheduler of a saved pipeline folder, which may be one without weights.

    Raises:
        ValueError: as :func:`use_noise_scheduler`.
        FileNotFoundError: the folder is no pipeline's.
    """
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    library, class_name = index["scheduler"]
    if "FlowMatch" not in class_name and not _config(folder).get("use_flow_sigmas"):
        raise ValueError(f"{folder}: {class_name} is no noise scheduler of flow matching; it cannot be exchanged here")
    shift = shift_of(getattr(diffusers, class_name).from_pretrained(folder / "scheduler"))
    made = new_noise_scheduler(name, shift=shift)
    # Written anew, never into the file: it may be a hard link to another model's.
    durable.write_text(folder / "scheduler" / "scheduler_config.json", made.to_json_string())
    index["scheduler"] = [library, type(made).__name__]
    durable.write_json(folder / "model_index.json", index)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


if __name__ == "__main__":
    save_noise_scheduler(Path(sys.argv[1]), sys.argv[2])
