"""From settings and a training cache to a finished study: what the stage ``hyperparameter_study`` does.

Belongs here: loading the base anew for every trial, and handing search, training and review to each other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.fine_tuning import training_config
from genai_assets.diffusion.training import StepReport
from genai_assets.diffusion.training_cache import PRIOR_SPLIT, TrainingCache
from genai_assets.diffusion.tuning.proposal import write_study
from genai_assets.diffusion.tuning.space import Budget, current_values, search_space
from genai_assets.diffusion.tuning.study import Trial, plots, run_study
from genai_assets.diffusion.tuning.trial import train_trial
from genai_assets.settings import FineTuneSettings

CODE_VERSION = "1"
"""Raised when a trial's result would differ: part of a study's name."""

_MAX_VALIDATION_PICTURES = 128


@dataclass(frozen=True)
class Progress:
    """What a study tells: a step of the trial that runs, or a trial that ended.

    Attributes:
        trials: how many there are to be.
        trial: that ended.
        step: of the trial that runs.
    """

    trials: int
    trial: Trial | None = None
    step: StepReport | None = None


def tune(
    base: Path,
    cache_folder: Path,
    settings: FineTuneSettings,
    out: Path,
    *,
    house_style: str,
    name: str,
    trials: int,
    pictures: int,
    repeats: int,
    seed: int,
    database_url: str,
    lock: Path,
    device: str = "auto",
    on_step: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Run or go on with a study and write what came out into ``out``.

    Args:
        base: a complete pipeline folder.
        cache_folder: the training cache's, made for ``base``.
        settings: the current settings, trial 0.
        out: a folder.
        house_style: the style to learn.
        name: the study's; it must change with anything that a trial's result depends on.
        trials: how many are to have ended.
        pictures: that each trial sees, about; rounded to what every batch size divides.
        repeats: with how many other seeds the best must be better once more.
        seed: of the choice of values.
        database_url: where the study lives.
        lock: a file that is locked meanwhile.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        on_step: told of steps and trials.

    Returns:
        dict: the summary.

    Raises:
        ValueError: there are no pictures to train or to validate on.
        StudyBusy, StudyUnreadable: as of ``study.run_study``.
    """
    where = choose_device(device)
    cache = TrainingCache.open(cache_folder)
    rows = cache.select("train", house_style)
    validation = cache.select("validation", house_style)[:_MAX_VALIDATION_PICTURES]
    if not len(rows) or not len(validation):
        raise ValueError(
            f"a study needs pictures to train and to validate on in style {house_style!r}: there are {len(rows)} and "
            f"{len(validation)}; look at dataset.house_style and splits.validation_share"
        )
    rows = np.concatenate((rows, cache.select(PRIOR_SPLIT)))
    asked = training_config(settings, max(1, pictures // settings.batch_size))
    family = family_of(load_pipeline(base))
    space, current = search_space(asked, family), current_values(asked, family)
    del family
    budget = Budget.near(pictures, space, asked)

    def told(**what: Any) -> None:
        if on_step:
            on_step(Progress(trials, **what))

    def run_trial(
        config: TrainingConfig, report: Callable[[int, float], None], should_prune: Callable[[], bool]
    ) -> float:
        return train_trial(
            family_of(load_pipeline(base)),
            cache,
            config,
            report,
            should_prune,
            measured_by=asked,
            training_rows=rows,
            validation_rows=validation,
            device=where,
            on_step=lambda step: told(step=step),
        )

    result = run_study(
        run_trial,
        name=name,
        space=space,
        current=current,
        config=asked,
        budget=budget,
        trials=trials,
        seed=seed,
        database_url=database_url,
        lock=lock,
        repeats=repeats,
        on_trial=lambda trial, _: told(trial=trial),
    )
    facts = {
        "training_pictures": len(rows),
        "validation_pictures": len(validation),
        "method": asked.method,
        "device": str(where),
        "seed_of_the_trainings": asked.seed,
        "seed_of_the_choice": seed,
        "code_version": CODE_VERSION,
    }
    return write_study(out, result, space, budget, plots(name, database_url), facts)
