"""The few noise levels that a student draws at.

Belongs here: the student's noise scheduler, and which sigmas drawing with it meets. What happens between two of them is
``segments``.
"""

import copy
import itertools
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.families.flow import FlowFamily

if TYPE_CHECKING:
    from collections.abc import Sequence

_PURE_NOISE = 0.98


class CannotBeDistilled(ValueError):
    """A model of a kind that is not distilled here; the message says why and what to do."""


def require_flow(family: Family) -> FlowFamily:
    """The same family, known to be one of flow matching.

    Raises:
        CannotBeDistilled: it has a noise schedule of timesteps; or its guidance is distilled into it already.
    """
    if not isinstance(family, FlowFamily):
        raise CannotBeDistilled(
            f"{family.name} draws by a noise schedule of timesteps, not by flow matching, and only that is distilled "
            "here: leave distillation.max_steps and distillation.max_minutes unset, or take a base model of another "
            "family (PRX, Stable Diffusion 3, Flux, Sana, Z-Image, Qwen-Image)"
        )
    if family.denoiser.config.get("guidance_embeds"):
        raise CannotBeDistilled(
            f"this {family.name} takes the guidance scale as an input, so guidance costs it nothing and is distilled "
            "into it already; leave distillation.max_steps and distillation.max_minutes unset"
        )
    return family


def few_step_noise_scheduler(family: FlowFamily, steps: int, shape: "Sequence[int] | None" = None) -> Any:
    """A stock noise scheduler that makes each of a few steps count.

    Some stock pipelines place the last of their sigmas at about 0.002, whatever the number of steps: with 30 that does
    no harm, of four it wastes one. ``shift_terminal`` stretches the sigmas so that the last is that of ``steps`` even
    parts, as the other pipelines have it anyway.

    Args:
        family: has the noise scheduler whose shift is kept.
        steps: that will be drawn with.
        shape: of one clean picture; some families shift by its size.

    Returns:
        FlowMatchEulerDiscreteScheduler: with a fixed shift.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    shift = drawing_shift(family, shape)
    last = shift / (steps + shift - 1)  # the shifted 1 / steps
    terminal: Any = last if steps > 1 else None  # diffusers' own annotation forgets its default, None
    return FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=terminal)


def drawing_shift(family: FlowFamily, shape: "Sequence[int] | None" = None) -> float:
    """Shift of sigmas towards noise in drawing, as ``family.level_shift`` is in training."""
    config = family.pipeline.scheduler.config
    if config.get("use_dynamic_shifting"):
        return family.level_shift(shape)
    return config.get("flow_shift") or config.get("shift") or 1.0


def drawn_levels(family: FlowFamily, steps: int, side: int) -> list[float]:
    """The sigmas that drawing meets with the pipeline's noise scheduler: looked at while a picture is drawn.

    Pipelines differ in what they tell their noise scheduler, so nothing is assumed.

    Args:
        family: prepared for drawing, with a ``FlowMatchEulerDiscreteScheduler``.
        steps: of drawing.
        side: of the picture, pixels.

    Returns:
        list: ``steps`` sigmas from about 1 downwards, then 0.

    Raises:
        CannotBeDistilled: the sigmas are of another kind.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    seen: list[Any] = []

    class Recording(FlowMatchEulerDiscreteScheduler):
        # Named one by one: pipelines look at the signature to see what they may say.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
            seen.append(self.sigmas)

    watched = copy.copy(family.pipeline)
    watched.scheduler = Recording.from_config(family.pipeline.scheduler.config)
    type(family)(watched).draw([""], seeds=[0], steps=steps, guidance_scale=1.0, side=side, on_step=lambda done: None)
    levels: list[float] = seen[-1].tolist()
    falling = all(above > below for above, below in itertools.pairwise(levels))
    if len(levels) != steps + 1 or not falling or levels[0] < _PURE_NOISE or levels[-1] != 0:
        raise CannotBeDistilled(
            f"{family.name} draws {steps} steps at the sigmas {levels}; {steps} falling from 1 and then 0 were expected"
        )
    return levels
