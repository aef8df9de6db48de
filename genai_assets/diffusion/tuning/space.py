"""What a study varies, between which values, and what a trial's training run looks like.

Belongs here: ranges around the current settings, and equal budgets. How values are chosen is ``study``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Family

Value = float | int | str
Values = dict[str, Value]
"""Values of a trial, by the name of the setting in ``fine_tune``."""

_WEIGHTINGS = ("family", "none", "min_snr")
_DIGITS = 3


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; on a logarithmic scale when ``log``."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]


Space = dict[str, Range | Choice]
"""What may vary, by the name of the setting in ``fine_tune``; the current value is always within."""


@dataclass(frozen=True)
class Budget:
    """What every trial of a study may spend: the same number of pictures, whatever its batch size.

    Equal steps would give a trial of twice the batch twice the data and twice the time. Each trial is validated after
    the same numbers of pictures, too, so that pruning compares like with like.

    Attributes:
        pictures: pictures that a trial sees; a multiple of ``parts`` times every batch size.
        parts: parts of equal size; a trial is validated after each.
    """

    pictures: int
    parts: int

    @classmethod
    def near(cls, pictures: int, space: Space, config: TrainingConfig, *, parts: int = 8) -> "Budget":
        """The budget nearest to ``pictures`` that every batch size of ``space`` divides."""
        varied = space.get("batch_size")
        sizes = varied.values if isinstance(varied, Choice) else (config.batch_size,)
        unit = parts * math.lcm(*(int(size) for size in sizes))
        return cls(max(1, round(pictures / unit)) * unit, parts)


def current_values(config: TrainingConfig, family: Family) -> Values:
    """What the current settings are, with what they leave to the family made definite."""
    return {
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "weight_decay": config.weight_decay,
        "prompt_dropout": config.prompt_dropout,
        "level_mean": family.level_mean if config.level_mean is None else config.level_mean,
        "level_std": family.level_std if config.level_std is None else config.level_std,
        "loss_weighting": config.loss_weighting,
        "lora_rank": config.lora_rank,
    }


def search_space(config: TrainingConfig, family: Family) -> Space:
    """Ranges around the current settings, of what makes a difference to this method and family.

    The family is asked, not known: its noise levels are drawn with other parameters, its loss weighed in other ways,
    and what changes nothing is left out.
    """
    now = current_values(config, family)
    batch = config.batch_size
    space: Space = {
        "learning_rate": _around(config.learning_rate, 10.0, most=1.0),
        "batch_size": Choice((*([batch // 2] if batch % 2 == 0 else []), batch, 2 * batch)),
        "weight_decay": _around(config.weight_decay, 10.0) if config.weight_decay else Range(0.0, 0.1),
        "prompt_dropout": Range(0.0, max(0.3, config.prompt_dropout)),
    }
    if config.method == "lora":
        ranks = {max(1, round(config.lora_rank * factor)) for factor in (0.25, 0.5, 1, 2, 4)}
        space["lora_rank"] = Choice(tuple(sorted(ranks)))
    if _levels_matter(family, config):
        space["level_mean"] = Range(float(now["level_mean"]) - 1.0, float(now["level_mean"]) + 1.0)
        space["level_std"] = _around(float(now["level_std"]), 2.0)
    weightings = _weightings(family, config)
    if len(weightings) > 1:
        space["loss_weighting"] = Choice(weightings)
    return space


def trial_config(config: TrainingConfig, values: Mapping[str, Value], budget: Budget) -> TrainingConfig:
    """The run of a trial: the current settings with some values changed, as long as the budget.

    Args:
        config: the current settings; its warm-up keeps its share of the run.
        values: what differs.
        budget: pictures and validations.

    Raises:
        ValueError: a value is out of the setting's range, or the batch size does not divide the budget.
    """
    changed: dict[str, Any] = config.model_dump() | dict(values)
    steps, rest = divmod(budget.pictures, changed["batch_size"] * budget.parts)
    if rest:
        raise ValueError(f"a batch size of {changed['batch_size']} does not divide {budget}")
    changed |= {
        "steps": steps * budget.parts,
        "warmup_steps": round(steps * budget.parts * min(0.5, config.warmup_steps / config.steps)),
        "validate_every": steps,
        "checkpoint_every": steps * budget.parts,
        "keep": "last",
        "early_stop_after": 0,
    }
    return TrainingConfig.model_validate(changed)


def rounded(values: Mapping[str, Value]) -> Values:
    """Numbers with three significant digits: what is tried is what can be proposed and typed."""
    return {
        name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value for name, value in values.items()
    }


def _around(value: float, factor: float, *, most: float = math.inf) -> Range:
    return Range(value / factor, min(most, value * factor), log=True)


def _levels_matter(family: Family, config: TrainingConfig) -> bool:
    """Whether the family draws its noise levels by ``level_mean`` and ``level_std``."""
    import torch

    drawn = [
        family.random_levels(16, config.model_copy(update=levels), torch.Generator().manual_seed(0))
        for levels in ({"level_mean": 0.0, "level_std": 1.0}, {"level_mean": 2.0, "level_std": 0.5})
    ]
    return not torch.equal(*drawn)


def _weightings(family: Family, config: TrainingConfig) -> tuple[str, ...]:
    """Weightings of the loss that the family has and that differ, the current one among them."""
    import torch

    levels = family.even_levels(16)
    found: dict[str, torch.Tensor] = {}
    for name in (config.loss_weighting, *_WEIGHTINGS):
        try:
            weight = family.loss_weight(levels, config.model_copy(update={"loss_weighting": name}))
        except ValueError:  # the family has no such weighting
            continue
        if not any(torch.equal(weight, other) for other in found.values()):
            found[name] = weight
    return tuple(found)
