"""The training loop: flow matching with prediction of the clean picture, written out.

Belongs here: one optimizer step and the run around it. It reports through ``on_step`` and knows neither Dagster nor
MLflow. Every random choice of step s derives from (seed, s), so a run that was stopped goes on as if it had not been.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets.diffusion.attention import use_fastest_for_training
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import mixed_precision
from genai_assets.diffusion.training_cache import TrainingCache, to_model_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST_SIGMA = 0.1
LORA_TARGETS = ("img_qkv_proj", "txt_kv_proj", "to_out.0", "gate_proj", "up_proj", "down_proj")


class TrainingDiverged(RuntimeError):
    """Loss or gradient is not finite; nothing of the run is to be used."""


@dataclass(frozen=True)
class StepReport:
    """What one step tells.

    Attributes:
        step: steps done, from 1.
        steps: steps in all.
        loss: weighted squared error of this step's batch.
        learning_rate: of this step.
        pictures_per_second: over the last steps.
        validation_loss: on fixed noise and timesteps with the EMA weights, when this step validated.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    pictures_per_second: float
    validation_loss: float | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The end of a run: the denoiser with its EMA weights in place, and the figures."""

    denoiser: Any
    steps: int
    final_loss: float
    first_validation_loss: float | None
    validation_loss: float | None
    pictures_seen: int
    seconds: float


def flow_matching_loss(
    denoiser: Any, pictures: "Tensor", embeddings: "Tensor", mask: "Tensor", noise: "Tensor", sigma: "Tensor"
) -> "Tensor":
    """Loss of predicting clean pictures from noisy ones.

    ``z = (1 - sigma) x + sigma n``; the denoiser returns an estimate of x. The error of the velocity
    ``(z - x) / sigma`` is the error of x divided by sigma, hence the weight (Lipman et al. 2023, "Flow Matching for
    Generative Modeling"; x-prediction with large patches: Li and He 2025, "Back to Basics").

    Args:
        denoiser: maps (z, sigma, text) to pictures.
        pictures: float32 [B, 3, S, S] in [-1, 1].
        embeddings: [B, T, D].
        mask: bool [B, T].
        noise: standard normal, as ``pictures``.
        sigma: float32 [B] in [0, 1].

    Returns:
        Tensor: scalar.
    """
    level = sigma[:, None, None, None]
    noisy = (1 - level) * pictures + level * noise
    predicted = denoiser(
        hidden_states=noisy,
        timestep=sigma,
        encoder_hidden_states=embeddings,
        attention_mask=mask,
        return_dict=False,
    )[0]
    error = (predicted.float() - pictures).square().mean(dim=(1, 2, 3))
    return (error / sigma.clamp(min=SMALLEST_SIGMA).square()).mean()


class BatchSource:
    """Batches of a training cache; batch s is a pure function of (seed, s)."""

    def __init__(self, cache: TrainingCache, rows: np.ndarray, config: TrainingConfig):
        if len(rows) == 0:
            raise ValueError("there are no pictures to train on: the training split is empty")
        self.cache, self.rows, self.config = cache, rows, config
        table = cache.rows.iloc[rows]
        weights = table["weight"].to_numpy(dtype=np.float64)
        self.chances = weights / weights.sum()
        self.prompts = [list(numbers) for numbers in table["prompts"]]

    def batch(self, step: int) -> "tuple[Tensor, Tensor, Tensor, Tensor, Tensor]":
        """Pictures, embeddings, mask, noise and sigma of one step, on the CPU."""
        import torch

        config = self.config
        dice = np.random.default_rng([config.seed, step])
        chosen = dice.choice(len(self.rows), size=config.batch_size, p=self.chances)
        pictures = self.cache.pictures[self.rows[chosen]]
        mirrored = dice.random(config.batch_size) < config.flip_share
        pictures[mirrored] = pictures[mirrored, :, ::-1]
        # The first prompt is the plain caption: half of the draws; further ones share the other half.
        prompts = np.array([self._pick(self.prompts[row], dice.random()) for row in chosen])
        prompts[dice.random(config.batch_size) < config.prompt_dropout] = 0
        generator = torch.Generator().manual_seed(int(dice.integers(2**62)))
        clean = to_model_range(pictures)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = 1 - torch.sigmoid(
            torch.randn(config.batch_size, generator=generator) * config.sigma_std + config.sigma_mean
        )
        return clean, *self._texts(prompts), noise, sigma

    def validation_batch(self, rows: np.ndarray) -> "tuple[Tensor, Tensor, Tensor, Tensor, Tensor]":
        """Every picture of ``rows`` with its plain caption, at noise levels spread evenly and fixed for good."""
        import torch

        clean = to_model_range(self.cache.pictures[rows])
        prompts = np.array([numbers[0] for numbers in self.cache.rows.iloc[rows]["prompts"]])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(self.config.seed))
        sigma = (torch.arange(len(rows)) + 0.5) / len(rows)
        return clean, *self._texts(prompts), noise, sigma

    def _texts(self, prompts: np.ndarray) -> "tuple[Tensor, Tensor]":
        import torch

        return torch.from_numpy(self.cache.embeddings[prompts]).float(), torch.from_numpy(self.cache.mask[prompts])

    @staticmethod
    def _pick(numbers: list[int], chance: float) -> int:
        if chance < 0.5 or len(numbers) == 1:
            return numbers[0]
        return numbers[1 + int((chance - 0.5) * 2 * (len(numbers) - 1))]


def train(
    denoiser: Any,
    cache: TrainingCache,
    config: TrainingConfig,
    *,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    device: "torch.device",
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    forward: Any = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a denoiser and return it with its EMA weights.

    Args:
        denoiser: a ``PRXTransformer2DModel`` in fp32; trained in place.
        cache: pictures and encoded prompts.
        config: the run.
        training_rows, validation_rows: row numbers of the cache.
        device: where to train.
        checkpoints: where to keep the state; a valid one there is gone on from.
        on_step: told after every step.
        forward: what is called in the denoiser's place, sharing its weights: a compiled one. Not with a LoRA, which
            changes the denoiser after it was compiled.
        stop: asked after every step; when true a checkpoint is written and training ends.

    Raises:
        TrainingDiverged: loss or gradient norm is not finite.
        ValueError: no training rows; or a compiled denoiser together with a LoRA.
    """
    import torch

    if forward is not None and config.method == "lora":
        raise ValueError("a LoRA cannot be trained through a denoiser that was compiled without it")
    denoiser.to(device, torch.float32).train().requires_grad_(True)
    use_fastest_for_training(denoiser, device)
    if config.method == "lora":
        denoiser = add_lora(denoiser, config)
    parameters = {name: value for name, value in denoiser.named_parameters() if value.requires_grad}
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = build_optimizer(parameters, config)
    source = BatchSource(cache, training_rows, config)
    validation = source.validation_batch(validation_rows) if len(validation_rows) else None
    forward = denoiser if forward is None else forward

    done, facts = 0, {}
    if checkpoints and (found := checkpoints.newest_valid()):
        done, state, facts = found
        _restore(state, parameters, average, optimizer)
    step, loss_value = done, facts.get("loss", math.nan)
    first_validation, validation_loss = facts.get("first_validation_loss"), facts.get("validation_loss")
    if validation and not done and config.validate_every:
        first_validation = _validate(denoiser, parameters, average, validation, device)

    clock, clock_step = time.monotonic(), step
    started = clock - facts.get("seconds", 0.0)
    while step < config.steps:
        learning_rate = config.learning_rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batch = [part.to(device) for part in source.batch(step)]
        with mixed_precision(device):
            loss = flow_matching_loss(forward, *batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip, foreach=True)
        loss_value = loss.item()
        if not (math.isfinite(loss_value) and math.isfinite(norm.item())):
            raise TrainingDiverged(
                f"step {step + 1}: loss {loss_value}, gradient norm {norm.item()}; nothing was saved. "
                "Lower fine_tune.learning_rate, or look for broken pictures."
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = config.ema_decay_at(step)
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        step += 1

        due = config.validate_every and (step % config.validate_every == 0 or step == config.steps)
        validation_loss = _validate(denoiser, parameters, average, validation, device) if validation and due else None
        if validation_loss is not None and not math.isfinite(validation_loss):
            raise TrainingDiverged(
                f"step {step}: validation loss {validation_loss}; nothing was saved. "
                "Lower fine_tune.learning_rate, or look for broken validation pictures or captions."
            )
        stopping = stop is not None and stop()
        if checkpoints and (step % config.checkpoint_every == 0 or step == config.steps or stopping):
            facts = {
                "first_validation_loss": first_validation,
                "validation_loss": validation_loss,
                "loss": loss_value,
                "seconds": time.monotonic() - started,
                "config": config.model_dump(mode="json"),
            }
            checkpoints.save(step, _state(parameters, average, optimizer), facts)
        if on_step:
            speed = (step - clock_step) * config.batch_size / max(1e-9, time.monotonic() - clock)
            on_step(StepReport(step, config.steps, loss_value, learning_rate, speed, validation_loss))
        if step - clock_step >= 20:
            clock, clock_step = time.monotonic(), step
        if stopping:
            break

    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(average[name])
    if config.method == "lora":
        denoiser = denoiser.merge_and_unload()
    seconds = time.monotonic() - started
    return TrainingResult(
        denoiser.eval(), step, loss_value, first_validation, validation_loss, step * config.batch_size, seconds
    )


def add_lora(denoiser: Any, config: TrainingConfig) -> Any:
    """Freeze a denoiser and give its large products low-rank adapters (Hu et al. 2021), by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=list(LORA_TARGETS))
    with torch.random.fork_rng(devices=[]):  # PEFT draws the adapters' first weights on the CPU
        torch.manual_seed(config.seed)
        return get_peft_model(denoiser, lora)


def build_optimizer(parameters: "dict[str, Any]", config: TrainingConfig) -> "torch.optim.Optimizer":
    """AdamW (Loshchilov and Hutter 2019); matrices decay, norms and biases do not."""
    import torch

    matrices = [value for value in parameters.values() if value.ndim >= 2]
    others = [value for value in parameters.values() if value.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _validate(denoiser: Any, parameters: Any, average: Any, batch: Any, device: "torch.device") -> float:
    """Loss of the EMA weights on the fixed batch; the training weights are put back afterwards."""
    import torch

    with torch.no_grad():
        kept = {name: value.detach().clone() for name, value in parameters.items()}
        for name, value in parameters.items():
            value.copy_(average[name])
        try:
            total, count = 0.0, len(batch[0])
            for start in range(0, count, 64):
                part = [values[start : start + 64].to(device) for values in batch]
                with mixed_precision(device):
                    total += flow_matching_loss(denoiser, *part).item() * len(part[0])
        finally:
            for name, value in parameters.items():
                value.copy_(kept[name])
    return total / count


def _state(parameters: Any, average: Any, optimizer: Any) -> "dict[str, Tensor]":
    state: dict[str, Any] = {}
    for name, value in parameters.items():
        state[f"weights.{name}"] = value.detach().cpu()
        state[f"average.{name}"] = average[name].cpu()
        for key, moment in optimizer.state[value].items():
            state[f"optimizer.{key}.{name}"] = moment.detach().cpu()
    return state


def _restore(state: "dict[str, Tensor]", parameters: Any, average: Any, optimizer: Any) -> None:
    import torch

    for name, value in parameters.items():
        kept = state.get(f"weights.{name}")
        if kept is None or kept.shape != value.shape:
            raise ValueError(f"the checkpoint is of another model: its {name} differs; remove its folder to start anew")
    moments = [key.split(".")[1] for key in state if key.startswith("optimizer.")]
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(state[f"weights.{name}"])
            average[name].copy_(state[f"average.{name}"])
            optimizer.state[value] = {
                # All on the weights' device: there fused AdamW keeps its count of steps, too.
                key: state[f"optimizer.{key}.{name}"].to(value.device)
                for key in dict.fromkeys(moments)
            }
