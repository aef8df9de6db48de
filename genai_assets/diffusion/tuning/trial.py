"""One trial: a short training of the base from its beginning, measured as every other trial is.

Belongs here: plugging the training loop into a study.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training import StepReport, TrainingDiverged, train
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets.diffusion.tuning.study import TrialFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def train_trial(
    family: Family,
    cache: TrainingCache,
    config: TrainingConfig,
    report: Callable[[int, float], None],
    should_prune: Callable[[], bool],
    *,
    measured_by: TrainingConfig,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    device: "torch.device",
    on_step: Callable[[StepReport], None] | None = None,
) -> float:
    """Train a freshly loaded model as ``study.RunTrial`` asks for.

    Args:
        family: the base; it is trained in place and is of no further use.
        cache: pictures and prompts, encoded for the base.
        config: the run; validates at the ends of the budget's parts.
        report, should_prune: the study's.
        measured_by: the current settings: their weighting of the loss measures every trial. By its own, a trial could
            lower its loss without being better.
        training_rows, validation_rows: row numbers of the cache.
        device: where to train.
        on_step: told after every step.

    Returns:
        float: validation loss with the EMA weights, of the last part that was trained.

    Raises:
        TrialFailed: the training diverged, or memory did not suffice.
        ValueError: there are no validation pictures.
    """
    import torch

    if len(validation_rows) == 0:
        raise ValueError(
            "a study compares validation losses, but there are no validation pictures in the house style: "
            "raise splits.validation_share"
        )
    _measure_alike(family, measured_by)
    losses: list[float] = []
    pruned = False

    def tell(step: StepReport) -> None:
        nonlocal pruned
        if step.validation_loss is not None:
            losses.append(step.validation_loss)
            report(len(losses), step.validation_loss)
            pruned = should_prune()
        if on_step:
            on_step(step)

    try:
        train(
            family,
            cache,
            config,
            training_rows=training_rows,
            validation_rows=validation_rows,
            device=device,
            on_step=tell,
            stop=lambda: pruned,
        )
    except TrainingDiverged as error:
        # What stands behind the semicolon is advice for a run that was meant to be used.
        raise TrialFailed(f"diverged: {str(error).partition(';')[0]}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TrialFailed(f"out of memory with batches of {config.batch_size}") from error
    return losses[-1]


def _measure_alike(family: Family, measured_by: TrainingConfig) -> None:
    """Weigh validation losses, which are computed without gradients, as ``measured_by`` says."""
    import torch

    weigh = family.loss_weight

    def loss_weight(level: "Tensor", config: TrainingConfig) -> "Tensor":
        return weigh(level, config if torch.is_grad_enabled() else measured_by)

    family.loss_weight = loss_weight
