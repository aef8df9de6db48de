"""A budget of minutes becomes steps before a run begins."""

import time

import pytest

from genai_assets.diffusion.budget import affordable_steps, seconds_a_step


@pytest.mark.parametrize(
    ("spent", "at_most", "steps"),
    [(0, None, 54), (30, None, 24), (600, None, 1), (0, 7, 7), (0, 100, 54)],
)
def test_what_was_spent_and_a_tenth_for_the_rest_are_taken_from_a_budget_and_a_step_is_left(spent, at_most, steps):
    started = time.monotonic() - spent
    bought = affordable_steps(1.0, minutes=1, started=started - 0.001, at_most=at_most)
    assert bought in {steps, max(1, steps - 1)}


def test_timing_a_step_leaves_the_weights_and_reckons_with_the_rest_of_a_batch(tiny_family, cache, monkeypatch):
    import torch

    from genai_assets.diffusion.batches import BatchSource
    from genai_assets.diffusion.config import TrainingConfig
    from genai_assets.diffusion.learner import Learner

    cpu, config = torch.device("cpu"), TrainingConfig(steps=1, batch_size=4)
    learner = Learner(tiny_family, config, cpu)
    before = {name: value.detach().clone() for name, value in learner.parameters.items()}
    batch = BatchSource(cache, tiny_family, cache.select("train"), config).batch(0)
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert seconds_a_step(learner, batch, cpu, micro_batch_size=None) == pytest.approx(1.05)
    assert seconds_a_step(learner, batch, cpu, micro_batch_size=1) == pytest.approx(4.2)
    assert seconds_a_step(learner, batch, cpu, micro_batch_size=1, processes=2) == pytest.approx(2.1)
    assert all(value.equal(before[name]) and value.grad is None for name, value in learner.parameters.items())
