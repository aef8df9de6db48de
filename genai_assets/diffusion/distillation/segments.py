"""Segments: what a student learns of its teacher's trajectories, as batches for the training loop.

Belongs here: batches, and every random choice about the data of a step. Batch s is a pure function of (seed, s), so a
run that was stopped goes on as if it had not been. What the target at a state is, and why, ``trajectories`` tells.

A state ``x`` at sigma ``a`` and the clean picture that the student shall predict there lie on a straight line, which
leads on to noise:

    noise = (x - (1 - a) clean) / a

A flow family that is given this picture, this noise and the level ``a`` mixes them to just ``x``, and takes
``noise - clean`` (or ``clean``) for its target. So the student is trained by the loop and the losses that every model
here is trained by; only pictures and noise are the teacher's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from genai_assets.diffusion.batches import Batch
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.distillation.adversary import JudgedBatch
from genai_assets.diffusion.distillation.trajectories import Trajectories
from genai_assets.diffusion.training_cache import TrainingCache, to_model_range

if TYPE_CHECKING:
    from torch import Tensor

_MOST_IN_A_VALIDATION_BATCH = 64


class SegmentBatches:
    """Batches of segments; batch s is a pure function of (``config.seed``, s).

    Args:
        trajectories: of the teacher.
        cache: the training cache that has their prompts.
        config: the run. Nothing is augmented: a mirrored trajectory is not one of the teacher's.
        numbers: of the trajectories to learn from.
        real: rows of the cache whose pictures are laid beside the segments, for a discriminator; None for none.

    Raises:
        ValueError: no trajectories.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        cache: TrainingCache,
        config: TrainingConfig,
        numbers: np.ndarray,
        real: np.ndarray | None = None,
    ):
        if len(numbers) == 0:
            raise ValueError("there are no trajectories to learn from: raise distillation.trajectories or its budget")
        self.trajectories, self.cache, self.config = trajectories, cache, config
        self.numbers = np.asarray(numbers, dtype=np.int64)
        chosen = [trajectories.choose(cache, number)[1] for number in range(len(trajectories))]
        self._prompt = np.array(chosen, dtype=np.int64)
        self._segments = len(trajectories.recipe.levels) - 1
        if real is not None:
            square = cache.rows["bucket"].to_numpy(dtype=object)[real] == _square(cache)
            real = np.asarray(real, dtype=np.int64)[square]
        self._real = real

    def batch(self, step: int) -> Batch:
        """Segments of one step, on the CPU: any trajectory, and every level as often as any other."""
        config, count = self.config, self.config.batch_size
        dice = np.random.default_rng([config.seed, step])
        numbers = self.numbers[dice.integers(len(self.numbers), size=count)]
        segments = (np.arange(count) + dice.integers(self._segments)) % self._segments
        batch = self._batch(numbers, segments)
        if self._real is None:
            return batch
        return self._beside(batch, segments, self._real[dice.integers(len(self._real), size=count)])

    def validation_batches(self, rows: np.ndarray) -> list[Batch]:
        """Every segment of the trajectories numbered ``rows`` once."""
        numbers, segments = np.repeat(rows, self._segments), np.tile(np.arange(self._segments), len(rows))
        batches = []
        for start in range(0, len(numbers), _MOST_IN_A_VALIDATION_BATCH):
            part = slice(start, start + _MOST_IN_A_VALIDATION_BATCH)
            batches.append(self._batch(numbers[part], segments[part]))
        return batches

    def _batch(self, numbers: np.ndarray, segments: np.ndarray) -> Batch:
        import torch

        kept = (self.trajectories.states, self.trajectories.targets)
        state, clean = (torch.from_numpy(of[numbers, segments]).float() for of in kept)
        level = torch.tensor(self.trajectories.recipe.levels, dtype=torch.float32)[segments]
        noise = noise_at(state, clean, level)
        prompts = self._prompt[numbers]
        return Batch(
            clean, noise, level, self._conditions(prompts), torch.ones(len(numbers)), self._texts(prompts.tolist())
        )

    def _beside(self, batch: Batch, segments: np.ndarray, rows: np.ndarray) -> JudgedBatch:
        """The batch with real pictures, one a segment."""
        import torch

        pictures = np.asarray(self.cache.codes[_square(self.cache)][self.cache.rows["slot"].to_numpy()[rows]])
        is_last = torch.from_numpy(segments == self._segments - 1)
        return JudgedBatch(**vars(batch), real=to_model_range(pictures), is_last=is_last)

    def _conditions(self, prompts: np.ndarray) -> "dict[str, Tensor]":
        import torch

        values = {name: torch.from_numpy(np.asarray(of[prompts])) for name, of in self.cache.conditions.items()}
        return {name: value.float() if value.is_floating_point() else value for name, value in values.items()}

    def _texts(self, prompts: Sequence[int]) -> list[str]:
        return [self.cache.texts[number] for number in prompts]


def _square(cache: TrainingCache) -> str:
    """Name of the bucket of square pictures."""
    return next(name for name in cache.codes if len(set(name.split("x"))) == 1)


def noise_at(state: "Tensor", clean: "Tensor", level: "Tensor") -> "Tensor":
    """The noise that, mixed with a picture at a level, gives a state; see this module's text.

    Args:
        state, clean: float32 [B, ...].
        level: sigmas above 0, float32 [B].
    """
    sigma = level.view(-1, *[1] * (state.ndim - 1))
    return (state - (1 - sigma) * clean) / sigma
