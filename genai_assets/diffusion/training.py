"""The training loop, written out: one optimizer step and the run around it.

Belongs here: what a step does, when a run validates, saves, goes back or ends. It reports through ``on_step`` and knows
neither Dagster nor MLflow. Every random choice of step s derives from (seed, s), so a run that was stopped goes on as
if it had not been; and a step's batch does not depend on how many processes share it.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from genai_assets.diffusion.batches import Batch, BatchSource
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import mixed_precision
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.optimizers import build_optimizer
from genai_assets.diffusion.training_cache import TrainingCache

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RATE_AFTER_A_FAULT = 0.5
"""What the learning rate is multiplied by when a run goes back to its last checkpoint."""
_MOST_FAULTS = 1


class TrainingDiverged(RuntimeError):
    """Loss, gradient or weights are not finite; nothing of the run is to be used."""


@dataclass(frozen=True)
class StepReport:
    """What one step tells.

    Attributes:
        step: steps done, from 1.
        steps: steps in all.
        loss: weighted squared error of this step's batch.
        learning_rate: of this step.
        pictures_per_second: over the last steps.
        validation_loss: on fixed noise and levels with the EMA weights, when this step validated.
        note: what else people should know: that the run went back, that it ends early.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    pictures_per_second: float
    validation_loss: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The end of a run; the trained weights are in the family's pipeline.

    Attributes:
        denoiser: with its final weights; a LoRA is merged into it.
        lora_layers: the LoRA by itself, by name inside the denoiser; None after full training.
        steps: steps done; fewer than asked for after a stop or an early end.
        final_loss: of the last step.
        first_validation_loss, validation_loss: before the run, and of the weights it ends with.
        best_step: the step whose weights the run ends with, when ``keep`` is ``"best"``.
        pictures_seen: over all steps.
        seconds: of training, earlier sittings included.
        faults: how often the run went back to its last checkpoint.
    """

    denoiser: Any
    lora_layers: "dict[str, Tensor] | None"
    steps: int
    final_loss: float
    first_validation_loss: float | None
    validation_loss: float | None
    best_step: int | None
    pictures_seen: int
    seconds: float
    faults: int


class Batches(Protocol):
    """Where a run's batches come from, ``BatchSource`` for one."""

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, the same whenever it is asked for."""
        ...

    def validation_batches(self, rows: np.ndarray) -> list[Batch]:
        """Fixed batches to validate on."""
        ...


@dataclass
class _Facts:
    """What a run knows of itself besides tensors; written into each checkpoint."""

    loss: float = math.nan
    first_validation_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    faults: int = 0
    seconds: float = 0.0
    ended: bool = False


def begun_config(checkpoints: CheckpointFolder) -> TrainingConfig | None:
    """The config of the run whose valid checkpoint is there, which goes on with it; None when none was begun."""
    found = checkpoints.newest_valid()
    return TrainingConfig.model_validate(found[2]["config"]) if found else None


def train(
    family: Family,
    cache: TrainingCache,
    config: TrainingConfig,
    *,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    device: "torch.device",
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    learner: Learner | None = None,
    source: "Batches | None" = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a family's model in place.

    Started in several processes by ``accelerate launch``, each works on its part of every batch, and all end with the
    same weights; the first one writes checkpoints and reports.

    Args:
        family: the model.
        cache: encoded pictures and prompts.
        config: the run.
        training_rows, validation_rows: row numbers of the cache.
        device: where to train; with several processes on GPUs, each takes its own.
        checkpoints: where to keep the state; a valid one there is gone on from. Without it nothing can be gone back to.
        on_step: told after every step.
        learner: what was made of the family already, compiled for one; it fits ``config`` and ``device``.
        source: gives the batches in the place of ``cache``; ``validation_rows`` are then what it takes them for.
        stop: asked after every step; when true a checkpoint is written and training ends.

    Raises:
        TrainingDiverged: loss, gradient or weights are not finite, again after going back once.
        ValueError: no training rows; data that is not finite; a checkpoint of another model.
        OSError: a checkpoint could not be written; those before are as they were.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import broadcast

    # Some weights never get a gradient: a last block's prompt branch, a text encoder's last layer.
    wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[wrapping])
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size < processes:
        raise ValueError(f"a batch of {config.batch_size} cannot be shared by {processes} processes: raise batch_size")
    if learner is None:
        learner = Learner(family, config, device)
    weights = learner.parameters
    average = {name: value.detach().clone() for name, value in weights.items()}
    best = dict(average)
    own = build_optimizer(weights, config, learner.hidden_matrices)
    module, optimizer = accelerator.prepare(learner.module, own)
    source = source or BatchSource(cache, family, training_rows, config)
    validation = source.validation_batches(validation_rows) if config.validate_every and len(validation_rows) else []

    def validate() -> float | None:
        if not validation:
            return None
        loss = _validate(learner.module, weights, average, validation, config, device)
        # The first process' word: devices may differ in the last bit, yet all must decide alike.
        return broadcast(torch.tensor(loss, dtype=torch.float64, device=device)).item()

    def save() -> None:
        if checkpoints and accelerator.is_main_process:
            facts.seconds = time.monotonic() - started
            kept = best if config.keep == "best" and facts.best_step is not None else {}
            written = dataclasses.asdict(facts) | {"config": config.model_dump(mode="json")}
            checkpoints.save(step, _state(weights, average, kept, own), written)
        accelerator.wait_for_everyone()

    def load() -> bool:
        nonlocal step, facts, best
        found = checkpoints.newest_valid() if checkpoints else None
        if found is None:
            return False
        step, state, kept = found
        _restore(state, weights, average, own)
        facts = _Facts(**{field.name: kept[field.name] for field in dataclasses.fields(_Facts)})
        if facts.best_step is not None and config.keep == "best":
            best = {name: state[f"best.{name}"].to(device) for name in weights}
        return True

    step, facts, started = 0, _Facts(), time.monotonic()
    resumed = load()
    accelerator.wait_for_everyone()  # else a late process would take the checkpoint saved below for an earlier run's
    if resumed:
        started -= facts.seconds
    else:
        facts.first_validation_loss = validate()
        save()  # to go back to, and to notice now rather than in an hour that the disk is full

    clock, clock_step = time.monotonic(), step
    while step < config.steps and not facts.ended:
        learning_rate = config.learning_rate_at(step) * RATE_AFTER_A_FAULT**facts.faults
        for group in own.param_groups:
            group["lr"] = learning_rate

        # The gradient of the mean loss over the whole batch, of which this process works on its part.
        batch = source.batch(step)
        mine = batch.part(*(len(batch) * number // processes for number in (rank, rank + 1)))
        loss = _backward(accelerator, family, module, mine, config, device, step=step)
        norm = accelerator.clip_grad_norm_(list(weights.values()), config.gradient_clip)
        loss_value = accelerator.reduce(loss, "sum").item()
        fault = _fault(step, loss_value, norm)

        note, validation_loss = None, None
        if fault is None:
            optimizer.step()
            with torch.no_grad():
                decay = config.ema_decay_at(step)
                torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
            step, facts.loss = step + 1, loss_value
            if validation and (step % config.validate_every == 0 or step == config.steps):
                validation_loss = validate()
            looked = step % config.checkpoint_every == 0 or step == config.steps
            fault = _fault_after(step, validation_loss, weights, looked=looked)
        optimizer.zero_grad(set_to_none=True)

        if fault is not None:
            faults = facts.faults + 1
            if faults > _MOST_FAULTS or not load():
                raise TrainingDiverged(
                    f"{fault}; nothing was saved. Lower the learning rate of this training, "
                    "or look for broken pictures or captions."
                )
            facts.faults = faults
            note = f"{fault}: went back to step {step}, learning rate times {RATE_AFTER_A_FAULT**faults:g}"
            clock, clock_step = time.monotonic(), step
        elif validation_loss is not None:
            facts.validation_loss = validation_loss
            if facts.best_validation_loss is None or validation_loss < facts.best_validation_loss:
                facts.best_validation_loss, facts.best_step, facts.validations_since_best = validation_loss, step, 0
                if config.keep == "best":
                    best = {name: value.clone() for name, value in average.items()}
            else:
                facts.validations_since_best += 1
            if config.early_stop_after and facts.validations_since_best >= config.early_stop_after:
                facts.ended = step < config.steps
                note = f"ends early: no better validation since step {facts.best_step}" if facts.ended else None
        if note is None and step == config.steps and config.keep == "best" and (facts.best_step or step) < step:
            note = f"keeps the weights of step {facts.best_step}: no validation was better since"

        stopping = stop is not None and bool(
            accelerator.reduce(torch.tensor(float(stop()), device=device), "sum").item()
        )
        ending = step == config.steps or facts.ended or stopping
        if ending or (note is None and step % config.checkpoint_every == 0):
            save()
        if on_step and accelerator.is_main_process:
            speed = (step - clock_step) * config.batch_size / max(1e-9, time.monotonic() - clock)
            on_step(StepReport(step, config.steps, loss_value, learning_rate, speed, validation_loss, note))
        if step - clock_step >= 20:
            clock, clock_step = time.monotonic(), step
        if stopping:
            break

    keeps_best = config.keep == "best" and facts.best_step is not None
    layers = learner.finish(best if keeps_best else average)
    return TrainingResult(
        denoiser=family.denoiser,
        lora_layers=layers,
        steps=step,
        final_loss=facts.loss,
        first_validation_loss=facts.first_validation_loss,
        validation_loss=facts.best_validation_loss if keeps_best else facts.validation_loss,
        best_step=facts.best_step if keeps_best else None,
        pictures_seen=step * config.batch_size,
        seconds=time.monotonic() - started,
        faults=facts.faults,
    )


def _backward(
    accelerator: Any,
    family: Family,
    module: Any,
    mine: Batch,
    config: TrainingConfig,
    device: "torch.device",
    *,
    step: int,
) -> "Tensor":
    """Add up the gradients of this process' part of a batch, ``micro_batch_size`` pictures at a time.

    Returns:
        Tensor: this part's share of the mean loss over the whole batch, a scalar.
    """
    import torch

    at_once = config.micro_batch_size or len(mine)
    total = torch.zeros((), device=device)
    own_dice = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with own_dice, family.fast_attention(device):
        # What a model itself draws, dropout for one, is of this step and process and of nothing that ran before.
        dice = np.random.default_rng([config.seed, step, accelerator.process_index])
        torch.manual_seed(int(dice.integers(2**62)))
        for start in range(0, len(mine), at_once):
            part = mine.part(start, start + at_once).to(device)
            last = start + at_once >= len(mine)
            # Processes exchange gradients once a step, with its last part.
            with nullcontext() if last else accelerator.no_sync(module):
                with mixed_precision(device):
                    loss = module(part, config.batch_size)
                # Gradients are averaged over the processes, yet each loss is a share of a sum: hence the factor.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
    return total


def _fault(step: int, loss: float, norm: "Tensor") -> str | None:
    """What is wrong with a step's loss and gradient, if anything; asked before the weights move."""
    if math.isfinite(loss) and math.isfinite(norm.item()):
        return None
    return f"step {step + 1}: loss {loss}, gradient norm {norm.item()}"


def _fault_after(step: int, validation_loss: float | None, weights: "dict[str, Tensor]", *, looked: bool) -> str | None:
    """What is wrong after a step, if anything; the weights are looked at when ``looked``."""
    import torch

    if validation_loss is not None and not math.isfinite(validation_loss):
        return f"step {step}: validation loss {validation_loss}"
    if looked:
        with torch.no_grad():
            largest = torch.stack(torch._foreach_norm(list(weights.values()), math.inf))
        if not largest.isfinite().all():
            return f"step {step}: weights are not finite"
    return None


def _validate(
    module: Any, weights: Any, average: Any, batches: list[Batch], config: TrainingConfig, device: "torch.device"
) -> float:
    """Mean loss of the EMA weights on fixed batches; the training weights are put back afterwards."""
    import torch

    count = sum(len(batch) for batch in batches)
    parts = [
        batch.part(start, start + at_once)
        for batch in batches
        for at_once in [config.micro_batch_size or config.batch_size]
        for start in range(0, len(batch), at_once)
    ]
    with torch.no_grad():
        kept = {name: value.detach().clone() for name, value in weights.items()}
        for name, value in weights.items():
            value.copy_(average[name])
        module.parts["denoiser"].eval()  # dropout is of training, and would be drawn from nobody's seed
        try:
            with mixed_precision(device):
                return sum(module(part.to(device), count).item() for part in parts)
        finally:
            module.parts["denoiser"].train()
            for name, value in weights.items():
                value.copy_(kept[name])


def _state(weights: Any, average: Any, best: Any, optimizer: Any) -> "dict[str, Tensor]":
    """Every tensor that a run needs to go on."""
    state: dict[str, Any] = {f"best.{name}": value.cpu() for name, value in best.items()}
    for name, value in weights.items():
        state[f"weights.{name}"] = value.detach().cpu()
        state[f"average.{name}"] = average[name].cpu()
        for key, moment in optimizer.state[value].items():
            state[f"optimizer.{key}.{name}"] = moment.detach().cpu()
    return state


def _restore(state: "dict[str, Tensor]", weights: Any, average: Any, optimizer: Any) -> None:
    """Put a state in place.

    Raises:
        ValueError: it is of another model.
    """
    import torch

    for name, value in weights.items():
        kept = state.get(f"weights.{name}")
        if kept is None or kept.shape != value.shape:
            raise ValueError(f"the checkpoint is of another model: its {name} differs; remove its folder to start anew")
    moments = dict.fromkeys(key.split(".")[1] for key in state if key.startswith("optimizer."))
    optimizer.state.clear()
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(state[f"weights.{name}"])
            average[name].copy_(state[f"average.{name}"])
            if moments:
                # All on the weights' device: there fused AdamW keeps its count of steps, too.
                optimizer.state[value] = {
                    key: state[f"optimizer.{key}.{name}"].to(value.device, copy=True)
                    for key in moments
                    if f"optimizer.{key}.{name}" in state  # what never gets a gradient has none
                }
