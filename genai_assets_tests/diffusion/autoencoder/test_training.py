"""The loop: it learns, plays fair, goes on bit for bit where it was stopped, and stops when it diverges."""

import hashlib
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.autoencoder.config import AutoencoderConfig
from genai_assets.diffusion.autoencoder.pictures import Pictures
from genai_assets.diffusion.autoencoder.reconstruction import psnr, reconstruct
from genai_assets.diffusion.autoencoder.training import (
    AutoencoderDiverged,
    AutoencoderResult,
    AutoencoderStep,
    is_of_encoder,
    train_autoencoder,
)
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import SIDE, drawn_pictures, tiny_autoencoder
from genai_assets_tests.diffusion.weights import digest_weights

CPU = torch.device("cpu")
STEPS = 6
START = 2
"""Steps before the discriminator sets in: a run may be stopped before and after."""


def make_config(**changes: Any) -> AutoencoderConfig:
    plan = {
        "steps": STEPS,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "adversarial_start": START,
        "perceptual_weight": 0.5,
        "discriminator_width": 8,
        "discriminator_layers": 2,
        "checkpoint_every": 1,
        "validate_every": 3,
    }
    return AutoencoderConfig.model_validate(plan | changes)


def run(perceptual: Any, config: AutoencoderConfig, **more: Any) -> tuple[Any, AutoencoderResult]:
    autoencoder = more.pop("autoencoder", None) or tiny_autoencoder()
    result = train_autoencoder(
        autoencoder,
        more.pop("pictures", Pictures.of_array(drawn_pictures("train"))),
        config,
        device=CPU,
        perceptual=perceptual,
        validation=drawn_pictures("validation"),
        **more,
    )
    return autoencoder, result


@pytest.fixture(scope="module")
def untouched(perceptual: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str], Any]:
    """What a run gives that nothing interrupted: digests of its weights, of its last state, and its result."""
    folder = tmp_path_factory.mktemp("untouched")
    autoencoder, result = run(perceptual, make_config(), checkpoints=CheckpointFolder(folder))
    return digest_weights(autoencoder), last_state(folder), result


def last_state(folder: Path) -> dict[str, str]:
    """Digests of everything in the newest checkpoint: weights of both networks, both optimizers, EMA."""
    found = CheckpointFolder(folder).newest_valid()
    assert found is not None
    step, tensors, _ = found
    assert step == STEPS
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def test_a_few_dozen_steps_render_pictures_it_never_saw_better(perceptual):
    validation, reports = drawn_pictures("validation"), list[AutoencoderStep]()
    before = psnr(validation, reconstruct(tiny_autoencoder().eval(), validation, CPU)).mean()
    config = make_config(
        steps=40,
        batch_size=8,
        learning_rate=6e-3,
        ema_decay=0.9,
        adversarial_start=30,
        checkpoint_every=40,
        validate_every=10,
    )
    _, result = run(perceptual, config, on_step=reports.append)
    told = {report.step: report.validation_psnr for report in reports if report.validation_psnr is not None}
    assert list(told) == [10, 20, 30, 40]
    assert min(told.values()) > before + 3
    assert result.validation_psnr == told[40]
    seen = np.array([report.perceptual for report in reports])
    assert seen[20:30].mean() < 0.8 * seen[:5].mean()
    assert result.steps == 40 and result.pictures_seen == 320


def test_the_adversary_sets_in_when_it_is_told_to_and_then_plays_in_every_step(perceptual):
    reports: list[AutoencoderStep] = []
    run(perceptual, make_config(), on_step=reports.append)
    before, after = reports[:START], reports[START:]
    assert all(report.adversarial == report.adversarial_weight == report.discriminator == 0 for report in before)
    assert all(report.adversarial != 0 and report.discriminator > 0 for report in after)
    assert all(report.adversarial_weight > 0 for report in after)


def test_the_loss_is_the_weighted_sum_of_its_terms(perceptual):
    reports: list[AutoencoderStep] = []
    config = make_config(train_encoder=True, kl_weight=0.3, perceptual_weight=0.7, reconstruction="l2")
    run(perceptual, config, on_step=reports.append)
    for report in reports:
        assert report.loss == pytest.approx(
            report.reconstruction
            + 0.7 * report.perceptual
            + 0.3 * report.kl
            + report.adversarial_weight * report.adversarial,
            rel=1e-5,
        )


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_encoder_moves_only_when_asked(perceptual, train_encoder):
    before = digest_weights(tiny_autoencoder())
    autoencoder, _ = run(perceptual, make_config(train_encoder=train_encoder))
    after = digest_weights(autoencoder)
    moved = {name for name in before if before[name] != after[name]}
    frozen = {name for name in before if is_of_encoder(name)}
    assert {name.split(".")[0] for name in frozen} == {"encoder", "quant_conv"}
    # A convolution's bias before a group norm of one channel a group would not move; there is none here.
    assert moved == (set(before) if train_encoder else set(before) - frozen)


def test_without_perceptual_and_adversarial_terms_neither_network_is_needed():
    reports: list[AutoencoderStep] = []
    run(None, make_config(perceptual_weight=0, adversarial_weight=0), on_step=reports.append)
    assert all(report.loss == report.reconstruction for report in reports)
    assert all(report.perceptual == report.adversarial == 0 for report in reports)


@pytest.mark.parametrize("after", range(1, STEPS + 1))
def test_a_run_that_is_killed_after_any_step_goes_on_to_the_very_same_weights(perceptual, untouched, tmp_path, after):
    """A fork, not a new interpreter: importing torch once more takes longer than all the rest."""

    def die(report: AutoencoderStep) -> None:
        if report.step == after:
            os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        # From Python 3.12 on; the child takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            run(perceptual, make_config(), checkpoints=CheckpointFolder(tmp_path), on_step=die)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    torch.manual_seed(after)  # what the process drew before must not matter
    reports: list[AutoencoderStep] = []
    autoencoder, result = run(perceptual, make_config(), checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert [report.step for report in reports] == list(range(after + 1, STEPS + 1))
    weights, state, expected = untouched
    assert digest_weights(autoencoder) == weights
    assert last_state(tmp_path) == state
    assert (result.losses, result.validation_psnr) == (expected.losses, expected.validation_psnr)


def test_a_checkpoint_holds_both_networks_both_optimizers_and_the_average(untouched):
    kinds = {".".join(name.split(".")[:2]) for name in untouched[1] if not name.startswith("average.")}
    moments = ("weights", "step", "exp_avg", "exp_avg_sq")
    assert kinds == {f"{network}.{moment}" for network in ("autoencoder", "discriminator") for moment in moments}
    assert any(name.startswith("average.decoder.") for name in untouched[1])


def test_a_run_that_dies_while_it_writes_a_checkpoint_goes_on_from_the_last(
    perceptual, untouched, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    whole, saved = durable.sync_tree, []

    def fail(folder: Path) -> None:
        saved.append(folder)
        if len(saved) == 3:
            raise Killed
        whole(folder)

    monkeypatch.setattr(durable, "sync_tree", fail)
    with pytest.raises(Killed):
        run(perceptual, make_config(), checkpoints=CheckpointFolder(tmp_path))
    monkeypatch.undo()
    reports: list[AutoencoderStep] = []
    autoencoder, _ = run(perceptual, make_config(), checkpoints=CheckpointFolder(tmp_path), on_step=reports.append)
    assert reports[0].step == 3
    assert digest_weights(autoencoder) == untouched[0]


def test_a_run_asked_to_stop_writes_a_checkpoint_and_goes_on(perceptual, untouched, tmp_path):
    steps = iter([False, False, True])
    config = make_config(checkpoint_every=100)
    folder = CheckpointFolder(tmp_path)
    _, stopped = run(perceptual, config, checkpoints=folder, stop=lambda: next(steps))
    assert stopped.steps == 3
    autoencoder, _ = run(perceptual, config, checkpoints=folder)
    assert digest_weights(autoencoder) == untouched[0]


def test_another_seed_is_another_training(perceptual, untouched):
    autoencoder, _ = run(perceptual, make_config(seed=1))
    assert digest_weights(autoencoder) != untouched[0]


def test_gradient_checkpointing_changes_memory_and_not_the_result(perceptual, untouched):
    autoencoder, result = run(perceptual, make_config(gradient_checkpointing=True))
    assert result.losses == pytest.approx(untouched[2].losses, rel=1e-3)
    assert not autoencoder.is_gradient_checkpointing, "what it is left as"


def test_a_checkpoint_of_another_run_is_a_clear_error(perceptual, tmp_path):
    run(perceptual, make_config(steps=1), checkpoints=CheckpointFolder(tmp_path))
    with pytest.raises(ValueError, match=r"of another run: learning_rate, steps differ.*remove its folder"):
        run(perceptual, make_config(steps=2, learning_rate=1e-3), checkpoints=CheckpointFolder(tmp_path))


@pytest.mark.parametrize("where", ["decoder.conv_out.weight", "encoder.conv_in.weight"])
def test_weights_that_are_not_numbers_stop_the_run_and_nothing_is_saved(perceptual, tmp_path, where):
    autoencoder = tiny_autoencoder()
    with torch.no_grad():
        autoencoder.get_parameter(where).view(-1)[0] = torch.inf
    with pytest.raises(AutoencoderDiverged, match=r"step 1: loss (nan|inf).*nothing was saved"):
        run(perceptual, make_config(), autoencoder=autoencoder, checkpoints=CheckpointFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_not_finite_stops_the_run_before_any_weight_moves(perceptual, tmp_path):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, maps: torch.Tensor) -> torch.Tensor:
            return maps.clone()

        @staticmethod
        def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * torch.nan

    autoencoder = tiny_autoencoder()
    before = digest_weights(autoencoder)
    with pytest.raises(AutoencoderDiverged, match="gradient norms nan"):
        run(
            lambda pictures: [Broken.apply(maps) for maps in perceptual(pictures)],
            make_config(),
            autoencoder=autoencoder,
            checkpoints=CheckpointFolder(tmp_path),
        )
    assert digest_weights(autoencoder) == before
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_after_a_step_is_never_saved(perceptual, tmp_path, monkeypatch):
    whole, calls = torch.optim.AdamW.step, []

    def poison(optimizer: Any, closure: Any = None) -> None:
        whole(optimizer, closure)
        calls.append(optimizer)
        if len(calls) == STEPS:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[0] = torch.inf

    config = make_config(adversarial_weight=0, validate_every=0)
    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    with pytest.raises(AutoencoderDiverged, match=r"step 6: autoencoder weight \S+ is not finite"):
        run(perceptual, config, checkpoints=CheckpointFolder(tmp_path))
    monkeypatch.undo()
    found = CheckpointFolder(tmp_path).newest_valid()
    assert found is not None and found[0] == STEPS - 1
    autoencoder, result = run(perceptual, config, checkpoints=CheckpointFolder(tmp_path))
    assert result.steps == STEPS
    assert all(weight.isfinite().all() for weight in autoencoder.parameters())


def test_a_mirrored_batch_is_the_batch_mirrored(perceptual):
    """With every picture mirrored, a run sees what a run on mirrored pictures sees with none mirrored."""
    mirrored = Pictures.of_array(drawn_pictures("train")[:, :, ::-1].copy())
    first, _ = run(perceptual, make_config(flip_share=1, steps=1))
    second, _ = run(perceptual, make_config(flip_share=0, steps=1), pictures=mirrored)
    plain, _ = run(perceptual, make_config(flip_share=0, steps=1))
    assert digest_weights(first) == digest_weights(second) != digest_weights(plain)


@pytest.mark.parametrize(
    ("changes", "side", "told"),
    [
        ({}, 33, "multiple of 2"),
        ({"discriminator_layers": 4}, SIDE, "48 px or more a side, and these have 32"),
        ({"perceptual_weight": 0.1}, SIDE, "there is no feature network"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(changes, side, told):
    pictures = Pictures.of_array(np.zeros((2, side, side, 3), np.uint8))
    with pytest.raises(ValueError, match=told):
        run(None, make_config(**{"perceptual_weight": 0} | changes), pictures=pictures)


def test_no_training_pictures_is_a_clear_error(perceptual):
    with pytest.raises(ValueError, match="training split is empty"):
        run(perceptual, make_config(), pictures=Pictures.of_array(drawn_pictures("train")[:0]))
