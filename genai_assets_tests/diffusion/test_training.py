"""The loop: it learns, it goes on bit for bit where it was stopped, and it stops when it diverges."""

import copy
import dataclasses
import math
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.batches import BatchSource
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.families.prx import PRXPixel
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.optimizers import build_optimizer
from genai_assets.diffusion.training import StepReport, TrainingDiverged, TrainingResult, train
from genai_assets.diffusion.training_cache import DataNotFinite, TrainingCache
from genai_assets_tests.diffusion.conftest import fresh
from genai_assets_tests.diffusion.weights import digest_weights

CPU = torch.device("cpu")
STEPS = 5
WAYS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"method": "lora"}, "muon": {"optimizer": "muon"}}


class Killed(Exception):
    """Stands for the end of a process between two steps."""


def make_config(**changes: Any) -> TrainingConfig:
    plan = {"steps": STEPS, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2}
    return TrainingConfig.model_validate(plan | {"checkpoint_every": 1, "validate_every": 2} | changes)


def run(family: Family, cache: TrainingCache, config: TrainingConfig, **more: Any) -> TrainingResult:
    return train(
        family if isinstance(family, Stumbling) else fresh(family),
        cache,
        config,
        training_rows=more.pop("training_rows", cache.select("train")),
        validation_rows=more.pop("validation_rows", cache.select("validation")),
        device=CPU,
        **more,
    )


@pytest.fixture(scope="module")
def untouched(tiny_pipeline: Any, cache: TrainingCache) -> dict[str, TrainingResult]:
    """What runs give that nothing interrupted."""
    return {way: run(family_of(tiny_pipeline), cache, make_config(**changes)) for way, changes in WAYS.items()}


def test_a_training_of_a_few_steps_lowers_the_loss(tiny_family, cache):
    picture = cache.select("train")[:1]
    config = make_config(
        steps=30,
        batch_size=8,
        augmentation=Augmentation(flip=0),
        prompt_dropout=0,
        learning_rate=5e-3,
        decay_share=0,
        validate_every=0,
    )
    losses: list[float] = []
    run(tiny_family, cache, config, training_rows=picture, on_step=lambda report: losses.append(report.loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_the_loss_of_a_perfect_guess_is_zero_and_little_noise_weighs_more(tiny_family):
    pictures, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)
    told = {"embeddings": torch.zeros(2, 1, 4), "mask": torch.ones(2, 1, dtype=torch.bool)}

    def loss(guess, sigma):
        config = make_config()
        return (
            tiny_family.losses(lambda **_: (guess,), pictures, noise, torch.tensor(sigma), told, config).mean().item()
        )

    assert loss(pictures, [0.3, 0.9]) == 0
    assert loss(pictures + 1, [1.0, 1.0]) == pytest.approx(1)
    assert loss(pictures + 1, [0.5, 0.5]) == pytest.approx(4)
    assert loss(pictures + 1, [0.0, 0.0]) == pytest.approx(100), "the weight is bounded near sigma 0"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("after", "every"), [(1, 1), (3, 1), (4, 1), (4, 3), (5, 1)])
def test_a_killed_run_goes_on_to_the_very_same_weights(tiny_family, cache, untouched, tmp_path, way, after, every):
    config = make_config(**WAYS[way], checkpoint_every=every)

    def kill(report: StepReport) -> None:
        if report.step == after:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=kill)
    reports: list[StepReport] = []
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert digest_weights(result.denoiser) == digest_weights(untouched[way].denoiser)
    assert [report.step for report in reports] == list(range(after - after % every + 1, STEPS + 1))
    figures = ("steps", "final_loss", "first_validation_loss", "validation_loss", "pictures_seen")
    assert [getattr(result, name) for name in figures] == [getattr(untouched[way], name) for name in figures]


@pytest.mark.parametrize("dies", ["between two steps", "while it writes a checkpoint"])
def test_a_run_whose_process_is_killed_goes_on_to_the_very_same_weights(
    tiny_family, cache, untouched, tmp_path, monkeypatch, dies
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
                run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
            else:
                run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=die)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = sorted(path.name[:14] for path in tmp_path.iterdir())
    writing = [".step-00000001"] if dies == "while it writes a checkpoint" else ["step-00000001"]
    assert left == sorted([*writing, "step-00000000"])

    reports: list[StepReport] = []
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    first = 1 if dies == "while it writes a checkpoint" else 2
    assert [report.step for report in reports] == list(range(first, STEPS + 1))
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_run_asked_to_stop_writes_a_checkpoint_and_goes_on_to_the_very_same_weights(
    tiny_family, cache, untouched, tmp_path
):
    config = make_config(checkpoint_every=100)
    steps = iter([False, True])
    stopped = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), stop=lambda: next(steps))
    assert stopped.steps == 2
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)
    assert result.seconds > stopped.seconds, "the time before the stop counts as well"


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(tiny_family, cache, untouched, tmp_path):
    config = make_config()
    steps = iter([False, False, False, True])
    run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), stop=lambda: next(steps))
    state = tmp_path / "step-00000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(result.denoiser) == digest_weights(untouched["full"].denoiser)


def test_a_lora_training_is_the_same_whatever_was_drawn_before_it(tiny_family, cache, untouched):
    torch.manual_seed(99)
    result = run(tiny_family, cache, make_config(method="lora"))
    assert digest_weights(result.denoiser) == digest_weights(untouched["lora"].denoiser)


def test_muon_moves_the_matrices_of_attention_and_feed_forward_otherwise_and_by_as_much(tiny_family):
    def moved(optimizer: str) -> dict[str, torch.Tensor]:
        family, config = fresh(tiny_family), make_config(optimizer=optimizer, weight_decay=0)
        learner = Learner(family, config, CPU)
        before = {name: value.detach().clone() for name, value in learner.parameters.items()}
        generator = torch.Generator().manual_seed(1)
        for value in learner.parameters.values():
            value.grad = torch.randn(value.shape, generator=generator)
        build_optimizer(learner.parameters, config, learner.hidden_matrices).step()
        return {name: value.detach() - before[name] for name, value in learner.parameters.items()}

    by_adam, by_muon = moved("adamw"), moved("muon")
    unlike = {name for name in by_adam if not torch.equal(by_adam[name], by_muon[name])}
    assert unlike == Learner(fresh(tiny_family), make_config(), CPU).hidden_matrices
    assert all(any(layer in name for layer in tiny_family.lora_targets) for name in unlike)
    for name in unlike:
        # AdamW's first step moves each weight by the rate; Muon's are scaled to what AdamW's are in the long run.
        assert 0.1 < by_muon[name].square().mean().sqrt() / by_adam[name].square().mean().sqrt() < 0.4
        widths = torch.linalg.svdvals(by_muon[name])
        assert widths.max() < 2.5 * widths.min(), "every direction is moved alike"


def test_muon_without_a_matrix_to_move_is_refused():
    weights = {"denoiser.norm": torch.nn.Parameter(torch.ones(3))}
    with pytest.raises(ValueError, match="there are none: use adamw"):
        build_optimizer(weights, make_config(optimizer="muon"))


def test_another_seed_is_another_training(tiny_family, cache, untouched):
    result = run(tiny_family, cache, make_config(seed=1))
    assert digest_weights(result.denoiser) != digest_weights(untouched["full"].denoiser)


def test_a_merged_lora_leaves_a_plain_denoiser(tiny_family, untouched):
    merged, before = untouched["lora"].denoiser, tiny_family.denoiser
    assert type(merged) is type(before)
    assert merged.state_dict().keys() == before.state_dict().keys()
    assert digest_weights(merged) != digest_weights(before)


def test_a_checkpoint_of_another_model_is_a_clear_error(tiny_family, cache, tmp_path):
    run(tiny_family, cache, make_config(steps=1), checkpoints=CheckpointFolder(tmp_path))
    with pytest.raises(ValueError, match="of another model"):
        run(tiny_family, cache, make_config(method="lora"), checkpoints=CheckpointFolder(tmp_path))


def test_weights_that_run_away_are_noticed_in_the_step_they_do(tiny_family, cache, tmp_path):
    with torch.no_grad():
        for weight in tiny_family.denoiser.parameters():
            weight.mul_(1e20)
    with pytest.raises(TrainingDiverged, match=r"step 1: loss (inf|nan).*Lower the learning rate"):
        run(tiny_family, cache, make_config(validate_every=0), checkpoints=CheckpointFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"], "where it went back to, once"


class Stumbling(PRXPixel):
    """Its loss is not a number at the named calls of a training step."""

    calls = 0
    stumbles_at: tuple[int, ...] = ()

    def losses(self, *arguments: Any) -> torch.Tensor:
        found = super().losses(*arguments)
        if not torch.is_grad_enabled():
            return found
        self.calls += 1
        return found * math.nan if self.calls in self.stumbles_at else found


def stumbling(family: Family, *calls: int) -> Stumbling:
    made = Stumbling(fresh(family).pipeline)
    made.stumbles_at = calls
    return made


def test_a_run_that_stumbles_once_goes_back_and_on_with_half_the_rate(tiny_family, cache, tmp_path):
    reports: list[StepReport] = []
    config = make_config(checkpoint_every=2, warmup_steps=0, decay_share=0)
    result = train(
        stumbling(tiny_family, 4),
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=cache.select("validation"),
        device=CPU,
        checkpoints=CheckpointFolder(tmp_path),
        on_step=reports.append,
    )
    assert [report.step for report in reports] == [1, 2, 3, 2, 3, 4, 5]
    assert [report.learning_rate for report in reports] == [3e-3] * 4 + [1.5e-3] * 3
    assert "loss nan" in str(reports[3].note) and "went back to step 2" in str(reports[3].note)
    assert result.faults == 1 and result.steps == STEPS
    assert all(weight.isfinite().all() for weight in result.denoiser.parameters())


def test_a_run_that_stumbled_and_was_killed_ends_as_if_it_had_not_been_killed(tiny_family, cache, tmp_path):
    def go(place: Path, *calls: int, die_after: int | None = None) -> TrainingResult:
        def die(report: StepReport) -> None:
            if report.step == die_after:
                raise Killed

        return run(
            stumbling(tiny_family, *calls),
            cache,
            make_config(checkpoint_every=2),
            checkpoints=CheckpointFolder(place),
            on_step=die,
        )

    whole = go(tmp_path / "whole", 4)
    with pytest.raises(Killed):
        go(tmp_path / "killed", 4, die_after=4)
    resumed = go(tmp_path / "killed")
    assert digest_weights(resumed.denoiser) == digest_weights(whole.denoiser)
    assert resumed.faults == 1, "the lower rate is remembered"


def test_a_run_that_stumbles_twice_ends(tiny_family, cache, tmp_path):
    with pytest.raises(TrainingDiverged, match="step 4: loss nan"):
        run(
            stumbling(tiny_family, 4, 6), cache, make_config(checkpoint_every=2), checkpoints=CheckpointFolder(tmp_path)
        )


def test_without_checkpoints_there_is_nothing_to_go_back_to(tiny_family, cache):
    with pytest.raises(TrainingDiverged, match="step 2: loss nan"):
        run(stumbling(tiny_family, 2), cache, make_config())


def test_the_highest_learning_rate_never_leaves_what_is_not_a_number(tiny_family, cache):
    config = make_config(learning_rate=1.0, warmup_steps=0, gradient_clip=1e30, steps=8)
    result = run(tiny_family, cache, config)
    assert all(weight.isfinite().all() for weight in result.denoiser.parameters())


@pytest.mark.parametrize("broken", ["training", "validation"])
def test_data_that_is_not_finite_ends_a_run_at_once_and_is_named(tiny_family, cache, tmp_path, broken):
    embeddings = np.array(cache.conditions["embeddings"])
    hurt = cache.select("train" if broken == "training" else "validation")
    embeddings[[number for row in hurt for number in cache.rows["prompts"][row]]] = np.nan
    hurt_cache = dataclasses.replace(cache, conditions={**cache.conditions, "embeddings": embeddings})
    with pytest.raises(DataNotFinite, match="plain style"):
        run(
            tiny_family,
            hurt_cache,
            make_config(validate_every=1 if broken == "validation" else 0, prompt_dropout=0),
            checkpoints=CheckpointFolder(tmp_path),
        )


def test_a_run_can_end_with_the_weights_of_its_best_validation(tiny_family, cache, tmp_path):
    reports: list[StepReport] = []
    config = make_config(steps=8, validate_every=1, keep="best", learning_rate=0.3, warmup_steps=0, ema_decay=0)
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    losses = [report.validation_loss or math.inf for report in reports]
    assert losses.index(min(losses)) + 1 == result.best_step < 8, "at such a rate later steps make it worse"
    assert result.validation_loss == min(losses)
    assert [report.note for report in reports if report.note] == [
        f"keeps the weights of step {result.best_step}: no validation was better since"
    ]
    again = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(again.denoiser) == digest_weights(result.denoiser), "kept in the checkpoint, too"
    last = run(tiny_family, cache, config.model_copy(update={"keep": "last"}))
    assert digest_weights(last.denoiser) != digest_weights(result.denoiser)


def test_a_run_ends_early_when_validation_gets_no_better_and_stays_ended(tiny_family, cache, tmp_path):
    reports: list[StepReport] = []
    config = make_config(steps=50, validate_every=1, early_stop_after=2, learning_rate=0.3, warmup_steps=0, ema_decay=0)
    result = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert result.steps == len(reports) < 50
    assert "ends early" in str(reports[-1].note)
    again = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert again.steps == result.steps == len(reports), "asked again, it trains no further"


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny_family, cache):
    config = make_config(steps=1, batch_size=6, validate_every=0)
    source = BatchSource(cache, tiny_family, cache.select("train"), config)
    batch = source.batch(0)
    gradients = []
    for at_once in (6, 4, 1):
        learner = Learner(fresh(tiny_family), config, CPU)
        for start in range(0, 6, at_once):
            learner.module(batch.part(start, start + at_once), 6).backward()
        gradients.append([weight.grad for weight in learner.parameters.values()])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_text_encoder_learns_along_when_asked_and_only_then(tiny_family, cache):
    def encoder() -> dict[str, str]:
        return digest_weights(tiny_family.pipeline.text_encoder)

    before = encoder()
    run(tiny_family, cache, make_config(steps=1))
    assert encoder() == before
    tiny_family.pipeline.text_encoder = copy.deepcopy(tiny_family.pipeline.text_encoder)
    run(tiny_family, cache, make_config(steps=1, train_text_encoder=True))
    assert encoder() != before


def test_a_lora_and_the_text_encoder_at_once_are_a_clear_error(tiny_family, cache):
    with pytest.raises(ValueError, match=r"train_text_encoder to false, or fine_tune\.method to 'full'"):
        run(tiny_family, cache, make_config(method="lora", train_text_encoder=True))


def test_a_weighting_that_the_family_does_not_know_is_a_clear_error(tiny_family, cache):
    with pytest.raises(ValueError, match=r"min_snr.*PRX pixel"):
        run(tiny_family, cache, make_config(loss_weighting="min_snr"))


def test_dropout_is_of_training_alone_and_drawn_from_the_runs_seed(tiny_family, cache, tmp_path):
    def drop(module: Any, _: Any, out: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.nn.functional.dropout(out[0], 0.5, module.training),)

    tiny_family.denoiser.register_forward_hook(drop)
    whole = run(tiny_family, cache, make_config())
    torch.rand(7)  # whatever was drawn meanwhile
    stops = iter([False, True])
    run(tiny_family, cache, make_config(), checkpoints=CheckpointFolder(tmp_path), stop=lambda: next(stops))
    resumed = run(tiny_family, cache, make_config(), checkpoints=CheckpointFolder(tmp_path))
    assert digest_weights(resumed.denoiser) == digest_weights(whole.denoiser)
    assert resumed.first_validation_loss == whole.first_validation_loss
    plain = run(family_of(tiny_family.pipeline), cache, make_config(steps=1))
    assert plain.first_validation_loss == whole.first_validation_loss, "validation drops nothing"


def test_no_training_pictures_is_a_clear_error(tiny_family, cache):
    with pytest.raises(ValueError, match="training split is empty"):
        run(tiny_family, cache, make_config(), training_rows=np.array([], dtype=int))


def test_without_validation_pictures_there_is_no_validation_loss(tiny_family, cache):
    result = run(tiny_family, cache, make_config(steps=2), validation_rows=np.array([], dtype=int))
    assert result.first_validation_loss is None and result.validation_loss is None


def test_checkpoint_figures_reach_a_run_that_had_nothing_left_to_do(tiny_family, cache, tmp_path: Path):
    config = make_config()
    first = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
    again = run(tiny_family, cache, config, checkpoints=CheckpointFolder(tmp_path))
    assert np.isfinite(again.final_loss)
    assert (again.final_loss, again.validation_loss) == (first.final_loss, first.validation_loss)
    assert digest_weights(again.denoiser) == digest_weights(first.denoiser)
