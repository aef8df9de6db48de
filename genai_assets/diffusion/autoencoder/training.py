"""The loop that trains an autoencoder against a discriminator, written out.

Belongs here: one step of both networks, and the run around it. It reports through ``on_step`` and knows neither Dagster
nor MLflow. Every random choice of step s derives from (seed, s), so a run that was stopped goes on as if it had not
been. One process trains; an autoencoder is small beside a denoiser.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets.diffusion.autoencoder.config import AutoencoderConfig
from genai_assets.diffusion.autoencoder.discriminator import new_discriminator, smallest_side
from genai_assets.diffusion.autoencoder.losses import (
    FeatureMaps,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    kl_divergence,
    perceptual_distance,
    reconstruction_loss,
)
from genai_assets.diffusion.autoencoder.pictures import Pictures, to_model_range
from genai_assets.diffusion.autoencoder.reconstruction import psnr, reconstruct
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.devices import mixed_precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ENCODER_PARTS = ("encoder.", "quant_conv.")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight."""
_CLOCK_STEPS = 20


class AutoencoderDiverged(RuntimeError):
    """A loss, gradient, weight or rendered picture is not finite; nothing of the run is to be used."""


@dataclass(frozen=True)
class AutoencoderStep:
    """What one step tells.

    Attributes:
        step: steps done, from 1.
        steps: steps in all.
        loss: the weighted sum that the autoencoder was trained on.
        reconstruction: error of pixels, in units of the range [-1, 1].
        kl: divergence of the latents, nats a value of the picture.
        perceptual: distance of feature maps; 0 when the run has no such loss.
        adversarial: minus the discriminator's mean score of what was rendered; 0 before it sets in.
        adversarial_weight: what that was weighed with, the adaptive weight included.
        discriminator: the discriminator's own loss; 1 when it cannot tell.
        learning_rate: of this step.
        pictures_per_second: over the last steps.
        validation_psnr: decibels, mean over the fixed pictures with the EMA weights, when this step validated.
    """

    step: int
    steps: int
    loss: float
    reconstruction: float
    kl: float
    perceptual: float
    adversarial: float
    adversarial_weight: float
    discriminator: float
    learning_rate: float
    pictures_per_second: float
    validation_psnr: float | None = None


@dataclass(frozen=True)
class AutoencoderResult:
    """The end of a run: the autoencoder has its EMA weights in place.

    Attributes:
        steps: steps done.
        losses: the terms of the last step, as in :class:`AutoencoderStep`.
        validation_psnr: of the last validation, decibels.
        pictures_seen: with repetition.
        seconds: of training, those before an interruption included.
    """

    steps: int
    losses: dict[str, float]
    validation_psnr: float | None
    pictures_seen: int
    seconds: float


def train_autoencoder(
    autoencoder: Any,
    pictures: Pictures,
    config: AutoencoderConfig,
    *,
    device: "torch.device",
    perceptual: FeatureMaps | None,
    validation: np.ndarray | None = None,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[AutoencoderStep], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> AutoencoderResult:
    """Train an autoencoder in place; it ends with its EMA weights.

    Args:
        autoencoder: an ``AutoencoderKL`` in fp32.
        pictures: what to learn from.
        config: the run.
        device: where to train; large products are computed in bf16.
        perceptual: the feature network, its weights frozen, which takes pictures on ``device``; may be None when
            ``config.perceptual_weight`` is 0.
        validation: fixed pictures, uint8 [N, S, S, 3].
        checkpoints: where to keep the state; a valid one there is gone on from.
        on_step: told after every step.
        stop: asked after every step; when true a checkpoint is written and training ends.

    Raises:
        AutoencoderDiverged: a loss, gradient, weight or validation picture is not finite; nothing of that step is
            saved.
        ValueError: no pictures, pictures of an unusable size, no feature network for a perceptual loss, or a checkpoint
            of another run.
    """
    import torch

    _check_run(autoencoder, pictures, config, perceptual)
    autoencoder.to(device).train()
    parameters = _choose_what_to_train(autoencoder, config)
    if config.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    discriminator = new_discriminator(
        width=config.discriminator_width, layers=config.discriminator_layers, seed=config.seed
    ).to(device)
    judging = dict(discriminator.named_parameters())
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer, judges_optimizer = _build_optimizer(parameters, config), _build_optimizer(judging, config)
    networks = {"autoencoder": (parameters, optimizer), "discriminator": (judging, judges_optimizer)}

    step, facts = 0, {}
    if checkpoints and (found := checkpoints.newest_valid()):
        step, state, facts = found
        _check_checkpoint(facts, config)
        _restore(state, networks, average)
    losses, validation_psnr = facts.get("losses", {}), facts.get("validation_psnr")
    clock, clock_step = time.monotonic(), step
    started = clock - facts.get("seconds", 0.0)

    while step < config.steps:
        learning_rate = config.learning_rate_at(step)
        for group in (*optimizer.param_groups, *judges_optimizer.param_groups):
            group["lr"] = learning_rate
        originals, noise = _batch(pictures, autoencoder, config, step, device)
        adversarial_now = config.adversarial_weight > 0 and step >= config.adversarial_start

        # The autoencoder's turn: pixels, latents and features, then the discriminator's verdict on what was rendered.
        discriminator.requires_grad_(False)
        with mixed_precision(device):
            with contextlib.nullcontext() if config.train_encoder else torch.no_grad():
                latents = autoencoder.encode(originals).latent_dist
            rendered = autoencoder.decode(latents.mean + latents.std * noise).sample
        rendered = rendered.float()
        terms = {
            "reconstruction": reconstruction_loss(rendered, originals, config.reconstruction),
            # A picture's value, so that the weight means what it does beside a mean over pixels for any size.
            "kl": kl_divergence(latents.mean, latents.logvar).mean() / originals[0].numel(),
            "perceptual": torch.zeros((), device=device),
            "adversarial": torch.zeros((), device=device),
            "adversarial_weight": torch.zeros((), device=device),
            "discriminator": torch.zeros((), device=device),
        }
        loss = terms["reconstruction"]
        if perceptual and config.perceptual_weight:
            with mixed_precision(device):
                terms["perceptual"] = perceptual_distance(perceptual, rendered, originals)
            loss = loss + config.perceptual_weight * terms["perceptual"]
        if adversarial_now:
            with mixed_precision(device):
                terms["adversarial"] = adversarial_loss(discriminator(rendered))
            balance = adaptive_weight(loss, terms["adversarial"], autoencoder.decoder.conv_out.weight)
            terms["adversarial_weight"] = config.adversarial_weight * balance
            loss = loss + terms["adversarial_weight"] * terms["adversarial"]
        if config.train_encoder:
            loss = loss + config.kl_weight * terms["kl"]
        loss.backward()
        norms = [torch.nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip, foreach=True)]

        # The discriminator's turn: the same pictures, as they are and as they were rendered.
        if adversarial_now:
            discriminator.requires_grad_(True)
            with mixed_precision(device):
                terms["discriminator"] = discriminator_loss(discriminator(originals), discriminator(rendered.detach()))
            terms["discriminator"].backward()
            norms.append(torch.nn.utils.clip_grad_norm_(judging.values(), config.gradient_clip, foreach=True))

        # Both were found with the weights as they were; neither moves unless everything is finite.
        losses = {"loss": loss.item()} | {name: value.item() for name, value in terms.items()}
        _check_finite(step + 1, losses, [norm.item() for norm in norms])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if adversarial_now:
            judges_optimizer.step()
            judges_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = config.ema_decay_at(step)
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        step += 1

        due = config.validate_every and (step % config.validate_every == 0 or step == config.steps)
        told_psnr = None
        if validation is not None and due:
            told_psnr = validation_psnr = _validate(autoencoder, parameters, average, validation, device, step)
        stopping = stop is not None and stop()
        saving = step % config.checkpoint_every == 0 or step == config.steps or stopping
        if saving:
            _check_weights(step, networks)
        if checkpoints and saving:
            facts = {
                "losses": losses,
                "validation_psnr": validation_psnr,
                "seconds": time.monotonic() - started,
                "config": config.model_dump(mode="json"),
            }
            checkpoints.save(step, _state(networks, average), facts)
        if on_step:
            speed = (step - clock_step) * config.batch_size / max(1e-9, time.monotonic() - clock)
            on_step(
                AutoencoderStep(
                    step=step,
                    steps=config.steps,
                    learning_rate=learning_rate,
                    pictures_per_second=speed,
                    validation_psnr=told_psnr,
                    **losses,
                )
            )
        if step - clock_step >= _CLOCK_STEPS:
            clock, clock_step = time.monotonic(), step
        if stopping:
            break

    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(average[name])
    if config.gradient_checkpointing:
        autoencoder.disable_gradient_checkpointing()
    autoencoder.eval()
    seconds = time.monotonic() - started
    return AutoencoderResult(step, losses, validation_psnr, step * config.batch_size, seconds)


def side_multiple(autoencoder: Any) -> int:
    """Sides of pictures must be multiples of this, pixels: each level of the encoder but the last halves them."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def is_of_encoder(name: str) -> bool:
    """Whether a weight of an ``AutoencoderKL`` makes the latents, rather than rendering them."""
    return name.startswith(_ENCODER_PARTS)


def _choose_what_to_train(autoencoder: Any, config: AutoencoderConfig) -> "dict[str, Any]":
    for name, value in autoencoder.named_parameters():
        value.requires_grad_(config.train_encoder or not is_of_encoder(name))
    return {name: value for name, value in autoencoder.named_parameters() if value.requires_grad}


def _batch(
    pictures: Pictures, autoencoder: Any, config: AutoencoderConfig, step: int, device: "torch.device"
) -> "tuple[Tensor, Tensor]":
    """Pictures in [-1, 1] and noise for their latents; a function of (seed, step), drawn on the CPU."""
    import torch

    dice = np.random.default_rng([config.seed, step])
    chosen = pictures.take(dice.integers(len(pictures), size=config.batch_size))
    mirrored = dice.random(config.batch_size) < config.flip_share
    chosen = np.where(mirrored[:, None, None, None], chosen[:, :, ::-1], chosen)
    side = chosen.shape[1] // side_multiple(autoencoder)
    generator = torch.Generator().manual_seed(int(dice.integers(2**62)))
    noise = torch.randn((config.batch_size, autoencoder.config.latent_channels, side, side), generator=generator)
    return to_model_range(chosen).to(device), noise.to(device)


def _build_optimizer(parameters: "Mapping[str, Any]", config: AutoencoderConfig) -> "torch.optim.Optimizer":
    """AdamW (Loshchilov and Hutter 2019); matrices and kernels decay, norms and biases do not."""
    import torch

    groups = [
        {"params": [value for value in parameters.values() if value.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [value for value in parameters.values() if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _validate(
    autoencoder: Any, parameters: Any, average: Any, validation: np.ndarray, device: "torch.device", step: int
) -> float:
    with _averaged(parameters, average):
        try:
            return float(psnr(validation, reconstruct(autoencoder, validation, device)).mean())
        except FloatingPointError as error:
            raise AutoencoderDiverged(
                f"autoencoder, step {step}: {error}; nothing was saved. Lower autoencoder.learning_rate."
            ) from error


@contextlib.contextmanager
def _averaged(parameters: Any, average: Any) -> Iterator[None]:
    """The EMA weights in the autoencoder for a while; the training weights are put back."""
    import torch

    with torch.no_grad():
        kept = {name: value.detach().clone() for name, value in parameters.items()}
        for name, value in parameters.items():
            value.copy_(average[name])
        try:
            yield
        finally:
            for name, value in parameters.items():
                value.copy_(kept[name])


def _check_run(autoencoder: Any, pictures: Pictures, config: AutoencoderConfig, perceptual: FeatureMaps | None) -> None:
    if len(pictures) == 0:
        raise ValueError("there are no pictures to train the autoencoder on: the training split is empty")
    if config.perceptual_weight and perceptual is None:
        raise ValueError(
            f"perceptual_weight is {config.perceptual_weight}, but there is no feature network: "
            "hand one in, or set it to 0"
        )
    side, multiple = pictures.take(np.array([0])).shape[1], side_multiple(autoencoder)
    if side % multiple:
        raise ValueError(
            f"pictures of {side} px do not fit an autoencoder that halves them {multiple.bit_length() - 1} times: "
            f"their side must be a multiple of {multiple}"
        )
    smallest = smallest_side(config.discriminator_layers)
    if config.adversarial_weight and side < smallest:
        raise ValueError(
            f"a discriminator of {config.discriminator_layers} layers needs pictures of {smallest} px or more a side, "
            f"and these have {side}: set discriminator_layers lower, or adversarial_weight to 0"
        )


def _check_finite(step: int, losses: Mapping[str, float], norms: list[float]) -> None:
    if all(math.isfinite(value) for value in (*losses.values(), *norms)):
        return
    told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise AutoencoderDiverged(
        f"autoencoder, step {step}: {told}, gradient norms {', '.join(f'{norm:.4g}' for norm in norms)}; nothing was "
        "saved. Lower autoencoder.learning_rate, or look for broken weights in the base model."
    )


def _check_weights(step: int, networks: "Mapping[str, tuple[dict[str, Tensor], Any]]") -> None:
    for network, (parameters, _) in networks.items():
        for name, value in parameters.items():
            if not value.isfinite().all():
                raise AutoencoderDiverged(
                    f"autoencoder, step {step}: {network} weight {name} is not finite; nothing was saved of this step. "
                    "Lower autoencoder.learning_rate."
                )


def _check_checkpoint(facts: Mapping[str, Any], config: AutoencoderConfig) -> None:
    kept, wanted = facts.get("config", {}), config.model_dump(mode="json")
    odd = sorted(name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name))
    if odd:
        raise ValueError(
            f"the checkpoint is of another run: {', '.join(odd)} differ(s); remove its folder to start anew"
        )


def _state(networks: Any, average: "dict[str, Tensor]") -> "dict[str, Tensor]":
    state: dict[str, Any] = {f"average.{name}": value.cpu() for name, value in average.items()}
    for network, (parameters, optimizer) in networks.items():
        for name, value in parameters.items():
            state[f"{network}.weights.{name}"] = value.detach().cpu()
            for moment, tensor in optimizer.state[value].items():  # none before the discriminator's first step
                state[f"{network}.{moment}.{name}"] = tensor.detach().cpu()
    return state


def _restore(state: "dict[str, Tensor]", networks: Any, average: "dict[str, Tensor]") -> None:
    import torch

    with torch.no_grad():
        for network, (parameters, optimizer) in networks.items():
            for name, value in parameters.items():
                kept = state.get(f"{network}.weights.{name}")
                if kept is None or kept.shape != value.shape:
                    raise ValueError(
                        f"the checkpoint is of another autoencoder: its {name} differs; remove its folder to start anew"
                    )
                value.copy_(kept)
                if network == "autoencoder":
                    average[name].copy_(state[f"average.{name}"])
                moments = {moment: state.get(f"{network}.{moment}.{name}") for moment in _MOMENTS}
                if all(tensor is not None for tensor in moments.values()):
                    # All on the weights' device: there fused AdamW keeps its count of steps, too.
                    optimizer.state[value] = {
                        moment: tensor.to(value.device) for moment, tensor in moments.items() if tensor is not None
                    }
