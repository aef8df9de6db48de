"""The few noise levels that a student draws at, and what it learns there.

Belongs here: which of two ways of distillation suits a model, the student's noise scheduler, and which sigmas drawing
with it meets. What exactly is learnt is told in ``trajectories``.
"""

import copy
import itertools
from typing import TYPE_CHECKING, Any, Literal

from genai_assets.diffusion.drawing.noise_schedulers import can_draw_with, new_noise_scheduler
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.families.flow import TIMESTEPS_PER_SIGMA, FlowFamily
from genai_assets.settings import SamplingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

Way = Literal["guidance", "trajectory"]
"""What a student learns: to do in one pass what guidance does in two; or to go in few steps where many lead."""

_PURE_NOISE = 0.98
_FEW = 2
"""A teacher that is drawn in at most so many times its student's steps is taken to draw well in the student's, too."""


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


def is_left_with_guidance(steps: int, sampling: SamplingSettings) -> bool:
    """Whether guidance is most of what a student in so many steps can save its teacher, drawn as the settings say.

    Measured for the embedded base in docs/experiments.md, "A student of guidance alone".
    """
    return sampling.guidance_scale > 1 and sampling.steps <= _FEW * steps


def choose_way(family: FlowFamily, asked: Literal["auto"] | Way, steps: int, sampling: SamplingSettings) -> Way:
    """The way that was asked for, or that suits the teacher.

    Args:
        family: the teacher, with its own noise scheduler.
        asked: the setting.
        steps: of the student.
        sampling: how the teacher is drawn for people.

    Raises:
        CannotBeDistilled: guidance was asked for, of a pipeline that cannot draw with DPM-Solver++, or there is none.
    """
    multistep = can_draw_with(family.pipeline, "dpm++")
    if asked == "auto":
        return "guidance" if multistep and is_left_with_guidance(steps, sampling) else "trajectory"
    if asked == "guidance" and sampling.guidance_scale <= 1:
        raise CannotBeDistilled(
            f"sampling.guidance_scale is {sampling.guidance_scale:g}, which is no guidance, so there is none to learn: "
            'set distillation.learns to "trajectory" or "auto"'
        )
    if asked == "guidance" and not multistep:
        raise CannotBeDistilled(
            f"this {family.name} cannot draw with DPM-Solver++, which a student of guidance alone needs: set "
            'distillation.learns to "trajectory" or "auto"'
        )
    return asked


def few_step_noise_scheduler(
    family: FlowFamily, steps: int, shape: "Sequence[int] | None" = None, *, way: Way = "trajectory"
) -> Any:
    """A stock noise scheduler that makes each of a few steps count.

    A student of guidance has DPM-Solver++, which looks one step back. One of trajectories has Euler's, for it learns
    straight lines. Some stock pipelines place the last of Euler's sigmas at about 0.002, whatever the number of steps:
    with 30 that does no harm, of four it wastes one. ``shift_terminal`` stretches them so that the last is that of
    ``steps`` even parts, as the other pipelines have it anyway.

    Args:
        family: has the noise scheduler whose shift is kept.
        steps: that will be drawn with.
        shape: of one clean picture; some families shift by its size.
        way: what the student learns.

    Returns:
        a stock noise scheduler with a fixed shift.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    shift = drawing_shift(family, shape)
    if way == "guidance":
        return new_noise_scheduler("dpm++", shift=shift)
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
    """The sigmas that the denoiser is told in drawing with the pipeline's noise scheduler: looked at meanwhile.

    Pipelines differ in what they tell their noise scheduler, so nothing is assumed. DPM-Solver++ rounds what it tells
    down to a thousandth.

    Args:
        family: prepared for drawing.
        steps: of drawing.
        side: of the picture, pixels.

    Returns:
        list: ``steps`` sigmas from about 1 downwards, then 0.

    Raises:
        CannotBeDistilled: the sigmas are of another kind.
    """
    seen: list[Any] = []
    stock: Any = type(family.pipeline.scheduler)

    class Recording(stock):
        def step(self, *given: Any, **named: Any) -> Any:
            seen.append(self.timesteps / TIMESTEPS_PER_SIGMA)
            return super().step(*given, **named)

    watched = copy.copy(family.pipeline)
    watched.scheduler = Recording.from_config(family.pipeline.scheduler.config)
    type(family)(watched).draw([""], seeds=[0], steps=steps, guidance_scale=1.0, side=side, on_step=lambda done: None)
    levels: list[float] = [*seen[-1].tolist(), 0.0]
    falling = all(above > below for above, below in itertools.pairwise(levels))
    if len(levels) != steps + 1 or not falling or levels[0] < _PURE_NOISE:
        raise CannotBeDistilled(
            f"{family.name} draws {steps} steps at the sigmas {levels}; {steps} falling from 1 and then 0 were expected"
        )
    return levels
