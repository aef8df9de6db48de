"""The loop: it learns, it goes on bit for bit where it was stopped, and it stops when it diverges."""

import copy
import dataclasses
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.training import (
    BatchSource,
    StepReport,
    TrainingDiverged,
    TrainingResult,
    flow_matching_loss,
    train,
)
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets_tests.diffusion.weights import digest_weights

CPU = torch.device("cpu")
STEPS = 5


class Killed(Exception):
    """Stands for the end of a process between two steps."""


def make_config(**changes: Any) -> TrainingConfig:
    plan = {"steps": STEPS, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2}
    return TrainingConfig.model_validate(plan | {"checkpoint_every": 1, "validate_every": 2} | changes)


def run(denoiser: Any, cache: TrainingCache, config: TrainingConfig, **more: Any) -> TrainingResult:
    return train(
        copy.deepcopy(denoiser),
        cache,
        config,
        training_rows=more.pop("training_rows", cache.select("train")),
        validation_rows=more.pop("validation_rows", cache.select("validation")),
        device=CPU,
        **more,
    )


@pytest.fixture(scope="module")
def untouched(tiny_pipeline: Any, cache: TrainingCache) -> dict[str, TrainingResult]:
    """What runs give that nothing interrupted, by method."""
    return {method: run(tiny_pipeline.transformer, cache, make_config(method=method)) for method in ("full", "lora")}


def test_a_training_of_a_few_steps_lowers_the_loss(tiny_denoiser, cache):
    picture = cache.select("train")[:1]
    config = make_config(
        steps=30, batch_size=8, flip_share=0, prompt_dropout=0, learning_rate=5e-3, decay_share=0, validate_every=0
    )
    losses: list[float] = []
    run(tiny_denoiser, cache, config, training_rows=picture, on_step=lambda report: losses.append(report.loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_the_loss_of_a_perfect_guess_is_zero_and_little_noise_weighs_more():
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    noise, texts, mask = torch.randn(2, 3, 8, 8), torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)

    def loss(guess, sigma):
        return flow_matching_loss(lambda **_: (guess,), pictures, texts, mask, noise, torch.tensor(sigma)).item()

    assert loss(pictures, [0.3, 0.9]) == 0
    assert loss(pictures + 1, [1.0, 1.0]) == pytest.approx(1)
    assert loss(pictures + 1, [0.5, 0.5]) == pytest.approx(4)
    assert loss(pictures + 1, [0.0, 0.0]) == pytest.approx(100), "the weight is bounded near sigma 0"


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("after", "every"), [(1, 1), (3, 1), (4, 1), (4, 3), (5, 1)])
def test_a_killed_run_goes_on_to_the_very_same_weights(tiny_denoiser, cache, untouched, tmp_path, method, after, every):
    config = make_config(method=method, checkpoint_every=every)

    def kill(report: StepReport) -> None:
        if report.step == after:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=kill)
    reports: list[StepReport] = []
    result = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert digest_weights(result.denoiser) == digest_weights(untouched[method].denoiser)
    assert [report.step for report in reports] == list(range(after - after % every + 1, STEPS + 1))
    figures = ("steps", "final_loss", "first_validation_loss", "validation_loss", "pictures_seen")
    assert [getattr(result, name) for name in figures] == [getattr(untouched[method], name) for name in figures]


@pytest.mark.parametrize("dies", ["between two steps", "while it writes a checkpoint"])
def test_a_run_whose_process_is_killed_goes_on_to_the_very_same_weights(
    tiny_denoiser, cache, untouched, tmp_path, monkeypatch, dies
):
    """A fork, not a new interpreter: importing torch once more takes longer than all the rest."""
    config = make_config()

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        # From Python 3.12 on; the child takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            if dies == "while it writes a checkpoint":
                saved: list[Path] = []
                monkeypatch.setattr(durable, "sync_tree", lambda path: die() if saved else saved.append(path))
                run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path))
            else:
                run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=die)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = sorted(path.name[:14] for path in tmp_path.iterdir())
    assert left == ([".step-00000002"] if dies == "while it writes a checkpoint" else []) + ["step-00000001"]

    reports: list[StepReport] = []
    result = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert [report.step for report in reports] == [2, 3, 4, 5]
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_run_asked_to_stop_writes_a_checkpoint_and_goes_on_to_the_very_same_weights(
    tiny_denoiser, cache, untouched, tmp_path
):
    config = make_config(checkpoint_every=100)
    steps = iter([False, True])
    stopped = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), stop=lambda: next(steps))
    assert stopped.steps == 2
    result = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)
    assert result.seconds > stopped.seconds, "the time before the stop counts as well"


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(tiny_denoiser, cache, untouched, tmp_path):
    config = make_config()
    steps = iter([False, False, False, True])
    run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path), stop=lambda: next(steps))
    state = tmp_path / "step-00000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])
    result = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)


def test_a_lora_training_is_the_same_whatever_was_drawn_before_it(tiny_denoiser, cache, untouched):
    torch.manual_seed(99)
    result = run(tiny_denoiser, cache, make_config(method="lora"))
    assert digest_weights(result.denoiser) == digest_weights(untouched["lora"].denoiser)


def test_another_seed_is_another_training(tiny_denoiser, cache, untouched):
    result = run(tiny_denoiser, cache, make_config(seed=1))
    assert digest_weights(result.denoiser) != digest_weights(untouched["full"].denoiser)


def test_a_merged_lora_leaves_a_plain_denoiser(tiny_denoiser, untouched):
    merged = untouched["lora"].denoiser
    assert type(merged) is type(tiny_denoiser)
    assert merged.state_dict().keys() == tiny_denoiser.state_dict().keys()
    assert digest_weights(merged) != digest_weights(tiny_denoiser)


def test_a_checkpoint_of_another_model_is_a_clear_error(tiny_denoiser, cache, tmp_path):
    run(tiny_denoiser, cache, make_config(steps=1), checkpoints=CheckpointFolder(tmp_path))
    with pytest.raises(ValueError, match="of another model"):
        run(tiny_denoiser, cache, make_config(method="lora"), checkpoints=CheckpointFolder(tmp_path))


def test_weights_that_run_away_are_noticed_in_the_step_they_do(tiny_denoiser, cache, tmp_path):
    with torch.no_grad():
        for weight in tiny_denoiser.parameters():
            weight.mul_(1e20)
    with pytest.raises(TrainingDiverged, match=r"step 1: loss (inf|nan).*Lower fine_tune\.learning_rate"):
        run(tiny_denoiser, cache, make_config(validate_every=0), checkpoints=CheckpointFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_highest_learning_rate_never_leaves_what_is_not_a_number(tiny_denoiser, cache):
    config = make_config(learning_rate=1.0, warmup_steps=0, gradient_clip=1e30, steps=8)
    result = run(tiny_denoiser, cache, config)
    assert all(weight.isfinite().all() for weight in result.denoiser.parameters())


@pytest.mark.parametrize("broken", ["training", "validation"])
def test_a_training_that_diverges_says_so_and_saves_nothing(tiny_denoiser, cache, tmp_path, broken):
    embeddings = np.array(cache.embeddings)
    hurt = cache.select("train" if broken == "training" else "validation")
    embeddings[[number for row in hurt for number in cache.rows["prompts"][row]]] = np.nan
    hurt_cache = dataclasses.replace(cache, embeddings=embeddings)
    with pytest.raises(TrainingDiverged, match="nothing was saved"):
        run(
            tiny_denoiser,
            hurt_cache,
            make_config(validate_every=1 if broken == "validation" else 0, prompt_dropout=0),
            checkpoints=CheckpointFolder(tmp_path),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_for_the_denoiser_that_shares_its_weights_trains_it_alike(tiny_denoiser, cache, untouched):
    denoiser, calls = copy.deepcopy(tiny_denoiser), []

    def stand_in(**inputs: Any) -> Any:
        calls.append(len(inputs["timestep"]))
        return denoiser(**inputs)

    rows, validation = cache.select("train"), cache.select("validation")
    result = train(
        denoiser, cache, make_config(), training_rows=rows, validation_rows=validation, device=CPU, forward=stand_in
    )
    assert calls == [4] * STEPS
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)


def test_a_lora_with_a_denoiser_that_was_compiled_without_it_is_a_clear_error(tiny_denoiser, cache):
    with pytest.raises(ValueError, match="LoRA cannot be trained through a denoiser that was compiled"):
        run(tiny_denoiser, cache, make_config(method="lora"), forward=tiny_denoiser)


def test_no_training_pictures_is_a_clear_error(tiny_denoiser, cache):
    with pytest.raises(ValueError, match="training split is empty"):
        run(tiny_denoiser, cache, make_config(), training_rows=np.array([], dtype=int))


def test_without_validation_pictures_there_is_no_validation_loss(tiny_denoiser, cache):
    result = run(tiny_denoiser, cache, make_config(steps=2), validation_rows=np.array([], dtype=int))
    assert result.first_validation_loss is None and result.validation_loss is None


def test_a_batch_depends_on_seed_and_step_alone(cache):
    config = make_config(batch_size=8)
    rows = cache.select("train")
    forwards = [BatchSource(cache, rows, config).batch(step) for step in (0, 1, 2)]
    source = BatchSource(cache, rows, config)
    backwards = [source.batch(step) for step in (2, 1, 0)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(forwards[0][3], forwards[1][3])


def test_a_batch_has_the_promised_shapes_and_ranges(cache):
    pictures, embeddings, mask, noise, sigma = BatchSource(cache, cache.select("train"), make_config()).batch(0)
    assert pictures.shape == noise.shape == (4, 3, 64, 64)
    assert pictures.min() >= -1 and pictures.max() <= 1
    assert embeddings.shape[:2] == mask.shape == (4, 20)
    assert mask.dtype == torch.bool
    assert sigma.shape == (4,) and sigma.min() > 0 and sigma.max() < 1


def test_a_mirrored_picture_is_mirrored_left_to_right_and_the_cache_stays_as_it_is(cache):
    row = cache.select("train")[:1]
    before = durable.digest_bytes(cache.pictures.tobytes())
    plain = BatchSource(cache, row, make_config(flip_share=0)).batch(0)[0][0]
    mirrored = BatchSource(cache, row, make_config(flip_share=1)).batch(0)[0][0]
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)
    assert durable.digest_bytes(cache.pictures.tobytes()) == before


def test_dropped_prompts_are_the_empty_prompt(cache):
    embeddings, mask = BatchSource(cache, cache.select("train"), make_config(prompt_dropout=0.999)).batch(0)[1:3]
    assert torch.equal(embeddings, torch.from_numpy(cache.embeddings[[0] * 4]).float())
    assert torch.equal(mask, torch.from_numpy(cache.mask[[0] * 4]))


def test_variants_are_drawn_as_seldom_as_they_weigh(cache):
    rows = cache.select("train")
    source = BatchSource(cache, rows, make_config())
    variants = cache.rows["id"].iloc[rows].str.startswith("green").to_numpy()
    assert source.chances.sum() == pytest.approx(1)
    assert source.chances[variants] == pytest.approx(source.chances[~variants][0] * 0.15)


def test_both_forms_of_a_prompt_are_drawn_and_the_plain_one_half_of_the_time():
    picks = [BatchSource._pick([7, 8, 9], chance) for chance in np.linspace(0, 0.999, 1000)]
    assert {number: picks.count(number) for number in (7, 8, 9)} == pytest.approx({7: 500, 8: 250, 9: 250}, abs=2)
    assert BatchSource._pick([7], 0.9) == 7


def test_checkpoint_figures_reach_a_run_that_had_nothing_left_to_do(tiny_denoiser, cache, tmp_path: Path):
    config = make_config()
    first = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path))
    again = run(tiny_denoiser, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert np.isfinite(again.final_loss)
    assert (again.final_loss, again.validation_loss) == (first.final_loss, first.validation_loss)
    assert digest_weights(again.denoiser) == digest_weights(first.denoiser)
