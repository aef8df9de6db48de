"""The teacher's trajectories: where it comes by on its way from noise to picture, and what a student shall do there.

Belongs here: drawing them with the teacher, batch by batch, going on after a kill, and reading them. How they become
batches is ``segments``.

A trajectory is a prompt, a seed, the states that the teacher passes at the student's few noise levels, and for each of
them the *target*: the clean picture that the student shall predict there. There are two ways:

**guidance.** The teacher draws in as many steps as the student will, with DPM-Solver++ (Lu et al. 2022). The target is
its guided prediction (Ho and Salimans 2022): one pass learns what two passes say (the first stage of Meng et al. 2023,
"On Distillation of Guided Diffusion Models").

**trajectory.** The teacher draws in many guided Euler steps, and the student shall land where it comes by, in one step
from level to level (Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"; the second
stage of Meng et al.). From ``x`` at sigma ``a`` to ``y`` at ``b`` leads the velocity ``v* = (x - y) / (a - b)``, and
the target is where that straight line ends: ``x - a v*``.

Prompts are those of the training split; nothing held out is among them. Files of the folder:

    states.npy          fp16 [M, N, ...]: M trajectories by way of N levels; the first state is noise
    targets.npy         fp16 [M, N, ...]: the clean picture to be predicted at each
    trajectories.json   what they were drawn with; the folder is drawn anew when that is something else
    drawn.json          how many of the M are there
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets import durable
from genai_assets.diffusion.distillation.levels import Way, drawing_shift
from genai_assets.diffusion.drawing.backends import Backend, Eager
from genai_assets.diffusion.families.flow import FlowFamily
from genai_assets.diffusion.training_cache import TrainingCache

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STATES = "states.npy"
_TARGETS = "targets.npy"
_FACTS = "trajectories.json"
_DRAWN = "drawn.json"
_PIXELS_AT_ONCE = 1 << 21


class TeacherNotFinite(ValueError):
    """The teacher drew something that is no finite number: nothing can be learnt from it."""


@dataclass(frozen=True)
class TrajectoriesDrawn:
    """Progress: so many of so many trajectories are drawn."""

    done: int
    total: int


@dataclass(frozen=True)
class Recipe:
    """All that trajectories depend on, besides the teacher and the training cache.

    Attributes:
        levels: the student's sigmas, from about 1 down to 0: N + 1 of them.
        way: what is learnt.
        teacher_steps: of the teacher, from noise to picture, when its trajectory is learnt; at least one between two
            levels.
        guidance_scale: of the teacher; 1 is none.
        count: trajectories, at most.
        seed: trajectory i derives from (seed, i).
    """

    levels: tuple[float, ...]
    way: Way
    teacher_steps: int
    guidance_scale: float
    count: int
    seed: int

    @property
    def rows(self) -> int:
        """Pictures that the denoiser computes for one trajectory: two a step with guidance."""
        steps = self.teacher_steps if self.way == "trajectory" else len(self.levels) - 1
        return steps * (2 if self.guidance_scale > 1 else 1)

    def choose(self, cache: TrainingCache, rows: np.ndarray, number: int) -> tuple[int, int]:
        """Row and prompt of a trajectory: any row; its plain prompt half of the time, else any of its prompts."""
        dice = np.random.default_rng([self.seed, number])
        row = int(rows[dice.integers(len(rows))])
        own = cache.rows["prompts"].iloc[row]
        return row, int(own[0] if dice.random() < 0.5 else own[dice.integers(len(own))])

    def noise(self, shape: Sequence[int], number: int) -> "Tensor":
        """Where a trajectory starts, float32 of ``shape``."""
        import torch

        seed = int(np.random.default_rng([self.seed, number, 1]).integers(2**62))
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Trajectories:
    """Trajectories opened for reading.

    Attributes:
        recipe: what they were drawn with.
        states, targets: fp16 [M, N, ...], memory maps.
        rows: rows of the training cache whose prompts were drawn from.
    """

    recipe: Recipe
    states: np.ndarray
    targets: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.states)

    def choose(self, cache: TrainingCache, number: int) -> tuple[int, int]:
        """Row and prompt of trajectory ``number``."""
        return self.recipe.choose(cache, self.rows, number)


def draw_trajectories(
    family: FlowFamily,
    cache: TrainingCache,
    rows: np.ndarray,
    recipe: Recipe,
    folder: Path,
    *,
    backend: Backend | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
    on_drawn: Callable[[TrajectoriesDrawn], None] | None = None,
) -> Trajectories:
    """Let the teacher draw, and keep its states; what ``folder`` has already is not drawn again.

    Args:
        family: the teacher, prepared for drawing, with the student's noise scheduler.
        cache: its training cache.
        rows: row numbers of the cache whose prompts are drawn from.
        recipe: how.
        folder: made when it is not there; one process writes.
        backend: how the teacher's denoiser computes; by default as torch has it.
        out_of_time: asked after every batch; when true it is left at those that are there.
        on_drawn: told after every batch.

    Raises:
        ValueError: no rows.
        TeacherNotFinite: a state is not finite, also in half precision.
    """
    if len(rows) == 0:
        raise ValueError("there are no prompts to draw trajectories of: the training split is empty")
    shape = clean_shape(cache)
    facts = {
        "levels": list(recipe.levels),
        "way": recipe.way,
        "teacher_steps": recipe.teacher_steps,
        "guidance_scale": recipe.guidance_scale,
        "count": recipe.count,
        "seed": recipe.seed,
        "shape": shape,
        "rows": durable.digest_bytes(np.ascontiguousarray(rows, dtype=np.int64).tobytes()),
    }
    drawn, finished = _begun(folder, facts)
    size = (recipe.count, len(recipe.levels) - 1, *shape)
    if not drawn:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_json(folder / _DRAWN, {"drawn": 0, "finished": False})
        for name in (_STATES, _TARGETS):
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float16, shape=size).flush()
        durable.write_json(folder / _FACTS, facts)
    states, targets = (np.lib.format.open_memmap(folder / name, mode="r+") for name in (_STATES, _TARGETS))
    teacher = Teacher(family, cache, recipe)
    backend = backend or Eager(family.denoiser)
    at_once = max(1, min(max(backend.batch_sizes, default=32), _PIXELS_AT_ONCE // (cache.resolution**2)))
    while not finished:
        numbers = range(drawn, min(drawn + at_once, recipe.count))
        picked = [recipe.choose(cache, rows, number)[1] for number in numbers]
        noise = [recipe.noise(shape, number) for number in numbers]
        alike = recipe.count - drawn if len(numbers) == at_once else len(numbers)
        with backend.standing_in(rows=alike * recipe.rows):
            drawn_now = slice(numbers.start, numbers.stop)
            states[drawn_now], targets[drawn_now] = teacher.draw(noise, picked)
        states.flush()
        targets.flush()
        drawn = numbers.stop
        finished = drawn >= recipe.count or out_of_time()
        # After the states: what is counted is there, whenever the process ends.
        durable.write_json(folder / _DRAWN, {"drawn": drawn, "finished": finished})
        if on_drawn:
            on_drawn(TrajectoriesDrawn(drawn, recipe.count))
    kept = (np.load(folder / name, mmap_mode="r")[:drawn] for name in (_STATES, _TARGETS))
    return Trajectories(recipe, *kept, rows=np.asarray(rows))


class Teacher:
    """Draws by way of given noise levels, with guidance, in the prompts of a training cache.

    Args:
        family: prepared for drawing, with the student's noise scheduler.
        cache: has the encoded prompts, the empty one as number 0.
        recipe: levels, what is learnt, steps and guidance.
    """

    def __init__(self, family: FlowFamily, cache: TrainingCache, recipe: Recipe):
        self.family, self.cache, self.recipe = family, cache, recipe

    def draw(self, noise: "Sequence[Tensor]", prompts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """States at every level, and what a student shall predict there.

        Args:
            noise: float32, of the shape of a clean picture; one a prompt.
            prompts: numbers of the cache's prompts.

        Returns:
            tuple: states and targets, fp16 [B, N, ...].

        Raises:
            TeacherNotFinite: a state or target is not finite in half precision.
        """
        import torch

        device, dtype = self.family.denoiser.device, self.family.denoiser.dtype
        guided = self.recipe.guidance_scale > 1
        told = self._conditions([*([0] * len(prompts) if guided else []), *prompts], device, dtype)
        state = torch.stack(list(noise)).to(device) * self.family.pipeline.config.get("noise_scale", 1.0)
        walk = self._with_guidance if self.recipe.way == "guidance" else self._along
        with torch.inference_mode():
            kept = zip(*walk(state, told), strict=True)
            states, targets = (torch.stack(each, dim=1).to("cpu", torch.float16).numpy() for each in kept)
        if not (np.isfinite(states).all() and np.isfinite(targets).all()):
            raise TeacherNotFinite(
                "the teacher drew values that are not finite in half precision; look at the fine-tuned model's samples"
            )
        return states, targets

    def _with_guidance(self, state: "Tensor", told: dict[str, Any]) -> "Iterator[tuple[Tensor, Tensor]]":
        """Each state of drawing in the student's steps, and the guided prediction of the picture there."""
        noise_scheduler = self.family.pipeline.scheduler
        noise_scheduler.set_timesteps(len(self.recipe.levels) - 1, device=state.device)
        for sigma, timestep in zip(self.recipe.levels[:-1], noise_scheduler.timesteps, strict=True):
            velocity = self._velocity(state, sigma, told)
            yield state, state - sigma * velocity
            state = noise_scheduler.step(velocity, timestep, state, return_dict=False)[0]

    def _along(self, state: "Tensor", told: dict[str, Any]) -> "Iterator[tuple[Tensor, Tensor]]":
        """Each state at a level of the student, and where the straight line to the next of them ends."""
        for sigmas in self._sigmas_between:
            here = state
            for sigma, following in itertools.pairwise(sigmas):
                state = state + (following - sigma) * self._velocity(state, sigma, told)
            yield here, end_of_line(here, state, sigmas[0], sigmas[-1])

    def _velocity(self, state: "Tensor", sigma: float, told: dict[str, Any]) -> "Tensor":
        """From the clean picture to noise, with guidance, float32."""
        import torch

        family = self.family
        guided = self.recipe.guidance_scale > 1
        noisy = torch.cat((state, state)) if guided else state
        level = torch.full((len(noisy),), sigma, device=state.device)
        predicted = family.predict(family.denoiser, noisy.to(family.denoiser.dtype), level, told).float()
        if guided:  # classifier-free guidance (Ho and Salimans 2022)
            unprompted, prompted = predicted.chunk(2)
            predicted = unprompted + self.recipe.guidance_scale * (prompted - unprompted)
        return (state - predicted) / sigma if self._predicts_pictures else predicted

    def _conditions(self, prompts: Sequence[int], device: "torch.device", dtype: "torch.dtype") -> dict[str, Any]:
        import torch

        values = {name: torch.from_numpy(np.asarray(of[prompts])) for name, of in self.cache.conditions.items()}
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in values.items()
        }

    @cached_property
    def _predicts_pictures(self) -> bool:
        """Whether the denoiser gives the clean picture; else it gives the velocity. The family's target tells."""
        import torch

        nothing, one = torch.zeros(1), torch.ones(1)
        return bool(self.family.target(one, nothing, one) == 1)

    @cached_property
    def _sigmas_between(self) -> list[list[float]]:
        """The teacher's sigmas from each of the levels to the next, both included."""
        levels = self.recipe.levels
        shift = drawing_shift(self.family, clean_shape(self.cache))
        steps = -(-self.recipe.teacher_steps // (len(levels) - 1))
        found = []
        for above, below in itertools.pairwise(levels):
            # Evenly in the time before the shift, as the noise scheduler spreads its own.
            start, end = (sigma / (shift - (shift - 1) * sigma) for sigma in (above, below))
            times = np.linspace(start, end, steps + 1)
            inner = shift * times / (1 + (shift - 1) * times)
            found.append([above, *inner[1:-1].tolist(), below])
        return found


def end_of_line(here: "Tensor", there: "Tensor", above: float, below: float) -> "Tensor":
    """The clean picture that the straight line through two states leads to; see this module's text.

    Args:
        here, there: states, float32 [B, ...].
        above, below: their sigmas; ``above`` is larger.
    """
    return here - above * (here - there) / (above - below)


def clean_shape(cache: TrainingCache) -> tuple[int, ...]:
    """Shape of one clean picture as models draw it: of the cache's square bucket.

    Raises:
        ValueError: no picture of the cache is square.
    """
    squares = [name for name in cache.codes if len(set(name.split("x"))) == 1]
    if not squares:
        raise ValueError(
            f"the training cache has pictures of {', '.join(cache.codes)} and no square ones, as models draw them: "
            "set fine_tune.aspect_buckets to false to distil"
        )
    codes = cache.codes[squares[0]]
    height, width = codes.shape[1:3]
    return (3, height, width) if cache.augmentation is None else codes.shape[2:]


def _begun(folder: Path, facts: dict[str, Any]) -> tuple[int, bool]:
    """How many trajectories of this kind a folder has, and whether that is all."""
    try:
        if json.loads((folder / _FACTS).read_text()) != json.loads(json.dumps(facts)):
            return 0, False
        told = json.loads((folder / _DRAWN).read_text())
        return told["drawn"], told["finished"]
    except (OSError, ValueError, KeyError):
        return 0, False
