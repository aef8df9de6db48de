"""How many steps a budget of minutes buys on this machine.

Belongs here: timing a step before a run begins, and what that makes of its budget. Whose budget it is, is the caller's.
"""

import statistics
import time
from typing import TYPE_CHECKING

from genai_assets.diffusion.devices import mixed_precision

if TYPE_CHECKING:
    import torch

    from genai_assets.diffusion.batches import Batch
    from genai_assets.diffusion.learner import Learner

_OVERHEAD = 0.1
"""Share of the wall-clock budget left for validation, checkpoints and saving."""
_OPTIMIZER = 1.05
"""What the optimizer makes of the time of a forward and backward pass."""
_TIMED = 3


def seconds_a_step(
    learner: "Learner", batch: "Batch", device: "torch.device", *, micro_batch_size: int | None, processes: int = 1
) -> float:
    """How long a step on such a batch takes here, in seconds. Weights stay as they are.

    Args:
        learner: what is trained; compiled code of its is made on the way.
        batch: a whole one; a part of it is worked on, and the rest is reckoned.
        device: where.
        micro_batch_size: pictures at a time; None: all of this process' share.
        processes: that share the batch.
    """
    mine = -(-len(batch) // processes)
    at_once = min(mine, micro_batch_size or mine)
    part = batch.part(0, at_once).to(device)
    times = []
    for _ in range(1 + _TIMED):
        began = time.monotonic()
        with learner.family.fast_attention(device):  # as in training: else other code is timed, and compiled twice
            with mixed_precision(device):
                loss = learner.module(part, len(batch))
            loss.backward()
        loss.item()  # waits for a GPU
        times.append((time.monotonic() - began) * mine / at_once)
        learner.module.zero_grad(set_to_none=True)
    return statistics.median(times[1:]) * _OPTIMIZER  # the first one may compile


def affordable_steps(seconds: float, *, minutes: float, started: float, at_most: int | None) -> int:
    """How many steps of so many seconds a budget buys, 1 at least.

    Args:
        seconds: of a step.
        minutes: the budget, a share of which is left for what is no step.
        started: when it began to run (``time.monotonic()``): compiling, above all, counts against it.
        at_most: a budget of steps; None: there is none.
    """
    left = minutes * 60 * (1 - _OVERHEAD) - (time.monotonic() - started)
    affordable = max(1, int(left / seconds))
    return min(affordable, at_most or affordable)
