"""What varies: only what makes a difference, always around the current settings, with equal budgets."""

from typing import Any

import pytest

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.fine_tuning import training_config
from genai_assets.diffusion.tuning.space import Budget, Choice, current_values, rounded, search_space, trial_config
from genai_assets.settings import FineTuneSettings


def make_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"steps": 100, "batch_size": 64} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "lora", "lora_rank": 1, "batch_size": 1},
        {"weight_decay": 0.0, "prompt_dropout": 0.6, "learning_rate": 0.9, "level_std": 0.01, "batch_size": 7},
    ],
)
def test_the_current_settings_are_always_within(tiny_family: Family, changes: dict[str, Any]):
    config = make_config(**changes)
    space, now = search_space(config, tiny_family), current_values(config, tiny_family)
    for name, varied in space.items():
        inside = now[name] in varied.values if isinstance(varied, Choice) else varied.low <= now[name] <= varied.high
        assert inside, name
    assert ("lora_rank" in space) == (config.method == "lora")


def test_everything_that_varies_is_a_setting_of_fine_tuning_and_reaches_the_run(tiny_family: Family):
    space = search_space(make_config(method="lora"), tiny_family)
    assert set(space) <= set(FineTuneSettings.model_fields)
    changed = FineTuneSettings(
        learning_rate=0.01, batch_size=8, lora_rank=3, weight_decay=0.3, prompt_dropout=0.2, level_mean=0.5, level_std=2
    )
    assert {name for name in space if getattr(training_config(changed, 9), name) != getattr(changed, name)} == set()


def test_a_family_is_asked_what_makes_a_difference(tiny_family: Family):
    assert {"level_mean", "level_std", "loss_weighting"} <= set(search_space(make_config(), tiny_family))
    weightings = search_space(make_config(), tiny_family)["loss_weighting"]
    assert isinstance(weightings, Choice) and weightings.values == ("family", "none"), "min_snr is not for flows"

    class WeighsAlike(type(tiny_family)):
        def loss_weight(self, level: Any, config: TrainingConfig) -> Any:
            return level * 0 + 1

        def random_levels(self, count: int, config: TrainingConfig, generator: Any) -> Any:
            return super().random_levels(count, make_config(), generator)

    without = search_space(make_config(), WeighsAlike(tiny_family.pipeline))
    assert not {"level_mean", "level_std", "loss_weighting"} & set(without)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_batch_size_divides_the_budget(tiny_family: Family, batch_size: int):
    config = make_config(batch_size=batch_size)
    space = search_space(config, tiny_family)
    budget = Budget.near(5000, space, config)
    assert abs(budget.pictures - 5000) <= budget.pictures / 2
    sizes = space["batch_size"]
    assert isinstance(sizes, Choice) and len(sizes.values) >= 2
    runs = [trial_config(config, {"batch_size": size}, budget) for size in sizes.values]
    assert {run.steps * run.batch_size for run in runs} == {budget.pictures}
    assert {run.steps // run.validate_every for run in runs} == {budget.parts}
    with pytest.raises(ValueError, match="does not divide"):
        trial_config(config, {"batch_size": budget.pictures + 1}, budget)


def test_a_trial_keeps_the_share_of_the_warm_up(tiny_family: Family):
    config = make_config(steps=100, warmup_steps=10)
    budget = Budget(64 * 40, 4)
    assert trial_config(config, {}, budget).warmup_steps == 4
    assert trial_config(config, {"batch_size": 32}, budget).warmup_steps == 8


def test_numbers_are_rounded_to_what_a_person_would_type():
    assert rounded({"a": 0.000123456, "b": 64, "c": "none"}) == {"a": 0.000123, "b": 64, "c": "none"}
