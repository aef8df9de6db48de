"""The numbers of a run: learning rate and moving average by step, and ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_assets.diffusion.config import DenoiserConfig, TrainingConfig


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    config = TrainingConfig(steps=100, learning_rate=1e-2, warmup_steps=10, decay_share=0.2)
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[4] == pytest.approx(5e-3)
    assert rates[9:81] == pytest.approx([1e-2] * 72)
    assert rates[90] == pytest.approx(5e-3)
    assert rates[99] == pytest.approx(5e-4)
    assert rates[100] == 0


def test_without_warm_up_and_decay_the_learning_rate_is_constant():
    config = TrainingConfig(steps=7, learning_rate=0.5, warmup_steps=0, decay_share=0)
    assert [config.learning_rate_at(step) for step in range(7)] == [0.5] * 7


@given(
    steps=st.integers(1, 5000),
    warmup=st.integers(0, 500),
    decay=st.floats(0, 1),
    place=st.floats(0, 1, exclude_max=True),
)
def test_every_step_learns_at_a_positive_rate_up_to_the_peak(steps, warmup, decay, place):
    config = TrainingConfig(steps=steps, learning_rate=0.1, warmup_steps=warmup, decay_share=decay)
    assert 0 < config.learning_rate_at(int(place * steps)) <= 0.1


def test_the_moving_average_follows_fast_at_first_and_slowly_later():
    config = TrainingConfig(steps=1000, ema_decay=0.9)
    assert config.ema_decay_at(0) == pytest.approx(0.1)
    assert config.ema_decay_at(8) == pytest.approx(0.5)
    assert config.ema_decay_at(500) == 0.9
    decays = [config.ema_decay_at(step) for step in range(1000)]
    assert decays == sorted(decays)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0}, {"learning_rate": 2}, {"ema_decay": 1}, {"prompt_dropout": 1}, {"stesp": 3}],
)
def test_a_value_out_of_range_and_an_unknown_name_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainingConfig(**({"steps": 10} | wrong))


def test_an_unknown_name_in_a_denoisers_shape_is_refused():
    with pytest.raises(ValidationError, match="dpeth"):
        DenoiserConfig(dpeth=3)  # type: ignore[call-arg]
