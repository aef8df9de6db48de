"""How a training of the autoencoder goes: its numbers, their ranges and their meaning. No torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AutoencoderConfig(BaseModel):
    """One run. Everything that changes its result is here; nothing else does.

    Attributes:
        steps: optimizer steps in all.
        batch_size: pictures a step.
        learning_rate: peak of both optimizers, after the warm-up.
        warmup_steps: linear warm-up from zero.
        decay_share: the last share of steps over which the rate falls linearly to zero.
        weight_decay: decoupled (AdamW), of matrices and kernels; norms and biases are exempt.
        betas: AdamW's moment decays; the first is low because the adversary keeps moving the goal.
        gradient_clip: global norm, of each of the two networks.
        ema_decay: cap of the moving average's decay; early steps use ``(1 + step) / (10 + step)``.
        flip_share: share of pictures mirrored left to right.
        train_encoder: train the encoder, too. The base's denoiser knows the latents of the encoder as it was: with a
            changed one it must be trained anew, so only the decoder is trained unless asked.
        reconstruction: absolute (``l1``) or squared (``l2``) error of pixels; the first keeps edges sharper.
        kl_weight: weight of the latents' divergence from a standard normal distribution; without effect on a frozen
            encoder.
        perceptual_weight: weight of the distance between feature maps; 0 for none.
        adversarial_weight: weight of the discriminator's verdict, on top of the adaptive one; 0 for none.
        adversarial_start: steps before discriminator and adversarial loss set in.
        discriminator_width: channels of the discriminator's first layer.
        discriminator_layers: its strided layers; 1, 2 and 3 judge patches of 16, 34 and 70 pixels a side.
        gradient_checkpointing: save memory, spend time: activations are computed twice.
        seed: root of every random choice; those of step s derive from (seed, s).
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    warmup_steps: int = Field(default=50, ge=0)
    decay_share: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    flip_share: float = Field(default=0.5, ge=0, le=1)
    train_encoder: bool = False
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(default=1e-6, ge=0)
    perceptual_weight: float = Field(default=0.1, ge=0)
    adversarial_weight: float = Field(default=0.5, ge=0)
    adversarial_start: int = Field(default=200, ge=0)
    discriminator_width: int = Field(default=64, ge=8, multiple_of=8)
    discriminator_layers: int = Field(default=3, ge=1, le=5)
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=200, ge=0)

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step: linear warm-up, constant, then linear to zero after the last step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        remaining = (self.steps - step) / max(1.0, self.steps * self.decay_share) if self.decay_share else 1.0
        return self.learning_rate * warm * min(1.0, remaining)

    def ema_decay_at(self, step: int) -> float:
        """The moving average's decay of a step."""
        return min(self.ema_decay, (1 + step) / (10 + step))
