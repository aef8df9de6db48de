"""Stock noise schedulers of flow matching, by short names, and putting one into a pipeline or a saved folder.

Belongs here: which of diffusers' noise schedulers a flow model can be drawn with, each with the shift of sigmas that
the model was trained with. The choice is the pipeline's own noise-scheduler config, so stock diffusers draws the same
from the same folder. Which one is best at how many steps is measured by ``python -m benchmarks.quality.curve``.

``python -m genai_assets.diffusion.drawing.noise_schedulers FOLDER NAME`` changes a saved folder.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_assets import durable
from genai_assets.artifacts import RECEIPT

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

# Pipelines that tell their noise scheduler the number of steps alone. The others hand it sigmas of their own and a
# shift, which of the stock classes only Euler's takes.
_TELL_STEPS_ALONE = ("PRXPixelPipeline", "PRXPipeline", "StableDiffusion3Pipeline", "SanaPipeline")


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
        ValueError: the name is not known; the pipeline is not of flow matching, shifts sigmas by the picture's size, or
            tells its noise scheduler what this one does not take.
    """
    before = pipeline.scheduler
    _require_exchangeable(type(pipeline).__name__, type(before).__name__, before.config, name)
    pipeline.register_modules(scheduler=new_noise_scheduler(name, shift=shift_of(before)))


def can_draw_with(pipeline: Any, name: str) -> bool:
    """Whether :func:`use_noise_scheduler` would take a loaded pipeline and a known name."""
    before = pipeline.scheduler
    try:
        _require_exchangeable(type(pipeline).__name__, type(before).__name__, before.config, name)
    except ValueError:
        return False
    return True


def save_noise_scheduler(folder: Path, name: str) -> None:
    """Change the noise scheduler of a saved pipeline folder, which may be one without weights.

    Raises:
        ValueError: as :func:`use_noise_scheduler`; or the folder is a finished artifact. Nothing is changed then.
        FileNotFoundError: the folder is no pipeline's.
    """
    import diffusers

    if (folder / RECEIPT).exists():
        raise ValueError(
            f"{folder} is a finished artifact, whose files stay as its {RECEIPT} says: copy the folder, remove "
            f"{RECEIPT} from the copy, and change that"
        )
    index = json.loads((folder / "model_index.json").read_text())
    library, class_name = index["scheduler"]
    _require_exchangeable(index["_class_name"], class_name, _config(folder), name)
    shift = shift_of(getattr(diffusers, class_name).from_pretrained(folder / "scheduler"))
    made = new_noise_scheduler(name, shift=shift)
    # Written anew, never into the file: it may be a hard link to another model's.
    durable.write_text(folder / "scheduler" / "scheduler_config.json", made.to_json_string())
    index["scheduler"] = [library, type(made).__name__]
    durable.write_json(folder / "model_index.json", index)


def _require_exchangeable(pipeline: str, before: str, config: Mapping[str, Any], name: str) -> None:
    """Refuse what could be written and not be drawn with, or would be drawn with another shift."""
    if "FlowMatch" not in before and not config.get("use_flow_sigmas"):
        raise ValueError(f"{before} is no noise scheduler of flow matching; it cannot be exchanged here")
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            f"this {pipeline} shifts sigmas by the picture's size (use_dynamic_shifting), and those here have one "
            "fixed shift: keep the noise scheduler that it has"
        )
    if name in _STOCK and name != "euler" and pipeline not in _TELL_STEPS_ALONE:
        raise ValueError(
            f"{pipeline} tells its noise scheduler sigmas and a shift, which {_STOCK[name][0]} ({name}) does not take: "
            "keep the one that it has, or take euler"
        )


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def main(arguments: list[str] | None = None) -> None:
    """Change a saved folder, as the command line says; exit with a message where it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m genai_assets.diffusion.drawing.noise_schedulers",
        description="Let a saved pipeline folder draw with another noise scheduler.",
    )
    parser.add_argument("folder", type=Path, help="a folder saved by a diffusers pipeline of flow matching")
    parser.add_argument("name", choices=NOISE_SCHEDULERS)
    asked = parser.parse_args(arguments)
    try:
        save_noise_scheduler(asked.folder, asked.name)
    except FileNotFoundError as error:
        parser.error(f"{asked.folder} is no folder of a diffusers pipeline: there is no {error.filename}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
