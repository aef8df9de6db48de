"""Real trials: the loop trains a tiny pipeline from its beginning each time, and every trial is measured alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets.diffusion.tuning.study import TrialFailed
from genai_assets.diffusion.tuning.trial import train_trial
from genai_assets.diffusion.tuning.tune import Progress, tune
from genai_assets.settings import FineTuneSettings
from genai_assets_tests.diffusion.conftest import fresh

CONFIG = TrainingConfig(steps=2, batch_size=4, validate_every=1, warmup_steps=0, decay_share=0)


@pytest.fixture
def trial(tiny_family: Family, cache: TrainingCache) -> Callable[..., tuple[float, list[float]]]:
    """Run one trial; the loss at its end, and those reported."""

    def run(config: TrainingConfig = CONFIG, prune_after: int = 99, **more: Any) -> tuple[float, list[float]]:
        losses: list[float] = []
        loss = train_trial(
            fresh(tiny_family),
            cache,
            config,
            lambda part, loss: losses.append(loss),
            lambda: len(losses) >= prune_after,
            measured_by=CONFIG,
            training_rows=cache.select("train"),
            validation_rows=more.pop("validation_rows", cache.select("validation")),
            device=torch.device("cpu"),
            **more,
        )
        return loss, losses

    return run


def test_a_trial_reports_each_part_and_is_the_same_when_run_again(trial):
    loss, losses = trial()
    assert len(losses) == 2 and losses[-1] == loss
    assert trial() == (loss, losses)
    assert trial(CONFIG.model_copy(update={"learning_rate": 5e-3}))[0] != loss


def test_a_trial_that_is_told_to_stop_stops(trial):
    config = CONFIG.model_copy(update={"steps": 30})
    steps: list[int] = []
    trial(config, prune_after=1, on_step=lambda step: steps.append(step.step))
    assert 1 <= len(steps) <= 2


def test_every_trial_is_measured_by_the_current_weighting_of_the_loss(trial):
    still = {"learning_rate": 1e-12}
    weighed, _ = trial(CONFIG.model_copy(update=still))
    unweighed, _ = trial(CONFIG.model_copy(update=still | {"loss_weighting": "none"}))
    assert unweighed == pytest.approx(weighed, rel=1e-4)


def test_a_trial_that_diverges_fails_with_its_reason(trial):
    config = CONFIG.model_copy(update={"learning_rate": 1e30})  # further than any setting may go
    with pytest.raises(TrialFailed, match=r"diverged: step 1: validation loss nan$"):
        trial(config)


def test_without_validation_pictures_there_is_nothing_to_compare(trial, cache):
    with pytest.raises(ValueError, match="validation_share"):
        trial(validation_rows=cache.select("validation")[:0])


def test_a_study_of_two_real_trials_leaves_its_files_and_trains_nothing_when_asked_again(
    tiny_base: Path, cache_folder: Path, tmp_path: Path
):
    settings = FineTuneSettings(batch_size=4)
    news: list[Progress] = []

    def run(out: str) -> dict[str, Any]:
        news.clear()
        (tmp_path / out).mkdir()
        return tune(
            tiny_base,
            cache_folder,
            settings,
            tmp_path / out,
            house_style="plain",
            name="real",
            trials=2,
            pictures=64,
            repeats=1,
            seed=0,
            database_url=f"sqlite:///{tmp_path / 'studies.sqlite'}",
            lock=tmp_path / "study.lock",
            device="cpu",
            on_step=news.append,
        )

    summary = run("first")
    assert summary["trials"] == 2
    assert summary["current"]["learning_rate"] == settings.learning_rate
    assert [told.trial.number for told in news if told.trial] == [0, 1]
    assert sum(told.step is not None for told in news) >= 16
    figures = json.loads((tmp_path / "first/study.json").read_text())
    assert {trial["state"] for trial in figures["trials"]} == {"complete"}
    assert figures["budget"] == {"pictures": 64, "parts": 8}
    assert (tmp_path / "first/proposal.toml").exists() == bool(summary["proposed"])
    assert "plotly.js v" in (tmp_path / "first/study.html").read_text()
    assert run("again") == summary
    assert not news
