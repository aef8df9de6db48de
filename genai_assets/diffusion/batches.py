"""Batches: which pictures a step learns from, with which prompts, noise and noise levels.

Belongs here: every random choice about the data of a step. Batch s is a pure function of (seed, s), so a run that was
stopped goes on as if it had not been; and it is drawn whole, so that it is the same however many processes or
micro-batches it is cut into. The step itself is ``training``; what pictures and prompts were encoded to is
``training_cache``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from genai_assets.diffusion import augmentation as augmenting
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.families.family import Conditions, Family
from genai_assets.diffusion.training_cache import PRIOR_SPLIT, DataNotFinite, TrainingCache, to_model_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Batch", "BatchSource", "DataNotFinite", "picture_chances"]

_MOST_IN_A_VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """Pictures of one step, all of one size.

    Attributes:
        clean: pictures in [-1, 1], or their latents, float32 [B, ...].
        noise: standard normal, as ``clean``.
        level: noise levels as the family draws them, [B].
        conditions: what the denoiser is told of the prompts, by name: float32, bool or int64 [B, ...].
        weight: of each picture's loss, float32 [B]: 1, or ``prior_weight`` for prior pictures.
        prompts: the prompts themselves.
    """

    clean: "Tensor"
    noise: "Tensor"
    level: "Tensor"
    conditions: Conditions
    weight: "Tensor"
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> "Batch":
        """Pictures ``start`` to ``stop`` (exclusive), sharing memory."""
        cut = slice(start, stop)
        return self._each(lambda value: value[cut], self.prompts[cut])

    def to(self, device: "torch.device") -> "Batch":
        """The same on a device."""
        return self._each(lambda value: value.to(device), self.prompts)

    def _each(self, change: "Callable[[Tensor], Tensor]", prompts: list[str]) -> "Batch":
        conditions = {name: change(value) for name, value in self.conditions.items()}
        return Batch(
            change(self.clean), change(self.noise), change(self.level), conditions, change(self.weight), prompts
        )


def picture_chances(table: pd.DataFrame, class_balance: float) -> np.ndarray:
    """How likely each row is drawn: by its ``weight``, over the class's total weight to the power ``class_balance``.

    0 draws pictures as they weigh; 1 draws every class (``category``) as often as any other; between them, the rarer
    classes gain (0.5 is the square-root sampling of Mahajan et al. 2018).

    Returns:
        np.ndarray: float64, sums to 1; empty for no rows.

    Raises:
        ValueError: no row weighs anything; or classes are to be balanced and the rows have none.
    """
    weights = table["weight"].to_numpy(dtype=np.float64)
    if len(weights) and not weights.sum() > 0:
        raise ValueError("every picture to be drawn has the weight 0")
    if class_balance and len(weights):
        if "category" not in table:
            raise ValueError(
                f"class_balance is {class_balance}, but the pictures have no category: give them one, or set it to 0"
            )
        total = table.groupby("category")["weight"].transform("sum").to_numpy(dtype=np.float64)
        weights = weights / np.where(total > 0, total, 1.0) ** class_balance
    return weights / weights.sum()


class BatchSource:
    """Batches of a training cache; batch s is a pure function of (``config.seed``, s).

    A step draws from one bucket, chosen as often as its pictures' chances add up to.

    Args:
        cache: pictures and prompts.
        family: draws the noise levels.
        rows: row numbers of the cache to learn from; those of the split "prior" are the prior pictures.
        config: the run.

    Raises:
        ValueError: no rows but prior ones; latents that were not made for ``config.augmentation``; see also
            :func:`picture_chances`.
    """

    def __init__(self, cache: TrainingCache, family: Family, rows: np.ndarray, config: TrainingConfig):
        self.cache, self.family, self.config = cache, family, config
        rows = np.asarray(rows, dtype=np.int64)
        is_prior = cache.rows["split"].to_numpy()[rows] == PRIOR_SPLIT
        learnt, prior = rows[~is_prior], rows[is_prior]
        if len(learnt) == 0:
            raise ValueError("there are no pictures to train on: the training split is empty")
        if cache.augmentation is not None:
            _refuse_other_variants(cache.augmentation, config.augmentation)

        self._bucket = cache.rows["bucket"].to_numpy(dtype=object)
        self._slot = cache.rows["slot"].to_numpy(dtype=np.int64)
        self._may_flip = cache.rows["may_flip"].to_numpy(dtype=bool)
        # Prompts of all pictures in one flat array: those of a picture begin at its first.
        own = cache.rows["prompts"].tolist()
        self._prompts = np.concatenate(own).astype(np.int64)
        self._prompt_count = np.array([len(numbers) for numbers in own])
        self._first_prompt = np.cumsum(self._prompt_count) - self._prompt_count
        self._weight = np.where(cache.rows["split"] == PRIOR_SPLIT, config.prior_weight, 1.0).astype(np.float32)

        share = config.prior_share if len(prior) else 0.0
        chances = (1 - share) * picture_chances(cache.rows.iloc[learnt], config.class_balance)
        prior_chances = share * picture_chances(cache.rows.iloc[prior], 0.0)
        self._buckets = []
        for name in sorted(set(self._bucket[rows])):
            here, prior_here = self._bucket[learnt] == name, self._bucket[prior] == name
            bucket = _Bucket(_Pool(learnt[here], chances[here]), _Pool(prior[prior_here], prior_chances[prior_here]))
            if bucket.chance > 0:
                self._buckets.append(bucket)
        self._bucket_bounds = _bounds(np.array([bucket.chance for bucket in self._buckets]))

    def batch(self, step: int) -> Batch:
        """The pictures of one step, on the CPU.

        Raises:
            DataNotFinite: a latent or an encoded prompt of it is damaged.
        """
        import torch

        config, count = self.config, self.config.batch_size
        dice = np.random.default_rng([config.seed, step])
        bucket = self._buckets[np.searchsorted(self._bucket_bounds, dice.random(), side="right")]
        rows = bucket.draw(dice, count)
        prompts = self._pick_prompts(rows, dice.random(count))
        prompts[dice.random(count) < config.prompt_dropout] = 0
        mirrored = (dice.random(count) < config.augmentation.flip) & self._may_flip[rows]
        if self.cache.augmentation is None:
            codes = self._change_pictures(self._codes(rows), mirrored, step)
        else:
            codes = self._codes(rows, self._pick_variants(rows, mirrored, dice))
        clean = self._to_clean(codes, rows)
        # One generator for the whole batch: each picture's noise is the same however the batch is cut.
        generator = torch.Generator().manual_seed(int(dice.integers(2**62)))
        noise = torch.randn(clean.shape, generator=generator)
        level = self.family.random_levels(count, config, generator, clean.shape[1:])
        return self._batch(clean, noise, level, prompts, torch.from_numpy(self._weight[rows]))

    def validation_batches(self, rows: np.ndarray) -> list[Batch]:
        """Every picture of ``rows`` once, as it is and with its plain caption; noise and levels are fixed by the seed.

        Levels are spread evenly over all the pictures. A batch has at most 64 pictures, of one bucket.

        Raises:
            DataNotFinite: as :meth:`batch`.
        """
        import torch

        rows = np.asarray(rows, dtype=np.int64)
        levels = self.family.even_levels(len(rows))
        generator = torch.Generator().manual_seed(self.config.seed)
        batches = []
        for bucket in sorted(set(self._bucket[rows])):
            members = np.flatnonzero(self._bucket[rows] == bucket)
            for start in range(0, len(members), _MOST_IN_A_VALIDATION_BATCH):
                places = members[start : start + _MOST_IN_A_VALIDATION_BATCH]
                clean = self._to_clean(self._codes(rows[places]), rows[places])
                noise = torch.randn(clean.shape, generator=generator)
                plain = self._prompts[self._first_prompt[rows[places]]]
                batches.append(
                    self._batch(clean, noise, levels[torch.from_numpy(places)], plain, torch.ones(len(places)))
                )
        return batches

    def _pick_prompts(self, rows: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Numbers of prompts: the plain one half of the time; a picture's further ones share the other half."""
        others = self._prompt_count[rows] - 1
        further = 1 + ((chance - 0.5) * 2 * others).astype(np.int64)
        return self._prompts[self._first_prompt[rows] + np.where((chance < 0.5) | (others == 0), 0, further)]

    def _pick_variants(self, rows: np.ndarray, mirrored: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        """Numbers of latents: any change is as likely as the plain picture."""
        assert self.cache.augmentation is not None
        sides = 2 if self.cache.augmentation.flip else 1
        changed = self.cache.codes[self._bucket[rows[0]]].shape[1] // sides
        number = dice.integers(changed, size=len(rows)) if augmenting.changes(self.config.augmentation) else 0
        return number * sides + mirrored

    def _change_pictures(self, pictures: np.ndarray, mirrored: np.ndarray, step: int) -> np.ndarray:
        """Pictures [B, H, W, 3] changed in place: number i by a generator of (seed, step, i)."""
        pictures[mirrored] = augmenting.mirror(pictures[mirrored])
        if augmenting.changes(self.config.augmentation):
            for number, picture in enumerate(pictures):
                dice = np.random.default_rng([self.config.seed, step, number])
                pictures[number] = augmenting.change(picture, self.config.augmentation, dice)
        return pictures

    def _codes(self, rows: np.ndarray, variants: "np.ndarray | int" = 0) -> np.ndarray:
        """A copy of what the cache has of pictures, all of one bucket: uint8 [B, H, W, 3], or latents fp16 [B, ...]."""
        codes, slots = self.cache.codes[self._bucket[rows[0]]], self._slot[rows]
        return np.asarray(codes[slots] if self.cache.augmentation is None else codes[slots, variants])

    def _to_clean(self, codes: np.ndarray, rows: np.ndarray) -> "Tensor":
        import torch

        if self.cache.augmentation is None:
            return to_model_range(codes)
        clean = torch.from_numpy(codes).float()
        _require_finite(clean, lambda place: f"the latents of the picture {self.cache.rows['id'].iloc[rows[place]]}")
        return clean

    def _batch(self, clean: "Tensor", noise: "Tensor", level: "Tensor", prompts: np.ndarray, weight: "Tensor") -> Batch:
        import torch

        conditions = {}
        for name, values in self.cache.conditions.items():
            value = torch.from_numpy(np.asarray(values[prompts]))
            if value.is_floating_point():
                value = value.float()
                _require_finite(
                    value, lambda place, name=name: f"{name} of the prompt {self.cache.texts[prompts[place]]!r}"
                )
            conditions[name] = value
        return Batch(clean, noise, level, conditions, weight, [self.cache.texts[number] for number in prompts])


class _Pool:
    """Pictures that are drawn from together, with replacement."""

    def __init__(self, rows: np.ndarray, chances: np.ndarray):
        self.rows, self.chance = rows[chances > 0], float(chances.sum())
        self.bounds = _bounds(chances[chances > 0])

    def draw(self, dice: np.random.Generator, count: int) -> np.ndarray:
        return self.rows[np.searchsorted(self.bounds, dice.random(count), side="right")]


class _Bucket:
    """Pictures of one size. Over all buckets together, prior pictures have their share of all that is drawn."""

    def __init__(self, learnt: _Pool, prior: _Pool):
        self.learnt, self.prior = learnt, prior
        self.chance = learnt.chance + prior.chance

    def draw(self, dice: np.random.Generator, count: int) -> np.ndarray:
        """Row numbers; what is left of the share after whole pictures is one more picture, as often as it says."""
        prior = min(count, int(count * self.prior.chance / self.chance + dice.random()))
        return np.concatenate((self.learnt.draw(dice, count - prior), self.prior.draw(dice, prior)))


def _bounds(chances: np.ndarray) -> np.ndarray:
    """Where [0, 1) is cut so that the parts are as long as the chances."""
    bounds = np.cumsum(chances)
    bounds /= bounds[-1:]
    bounds[-1:] = 1.0  # whatever was lost in rounding
    return bounds


def _refuse_other_variants(made: Augmentation, asked: Augmentation) -> None:
    """Latents are changed before they are encoded: a run can leave their variants out, but not ask for others."""
    mirrors = made.flip > 0 or asked.flip == 0
    unlike = made.model_dump(exclude={"flip"}) != asked.model_dump(exclude={"flip"})
    if not mirrors or (augmenting.changes(asked) and unlike):
        raise ValueError(
            f"the training cache's latents were made with the augmentation ({made}), the run asks for ({asked}): build "
            "the cache with the same one"
        )


def _require_finite(values: "Tensor", name: Callable[[int], str]) -> None:
    # One sum finds out: it cannot overflow, for the values were in half precision.
    if not values.sum().isfinite():
        place = int(values.flatten(1).isfinite().all(dim=1).int().argmin())
        raise DataNotFinite(f"{name(place)} are not finite numbers; the training cache is damaged: build it anew")
