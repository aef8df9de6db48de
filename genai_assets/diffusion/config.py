"""How a training run goes: its numbers, their ranges and their meaning. No torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DenoiserConfig(BaseModel):
    """Shape of a pixel-space PRX denoiser trained from nothing.

    Attributes:
        hidden_size: width of a token; ``hidden_size / num_heads`` must equal ``sum(axes_dim)``.
        depth: transformer blocks.
        patch_size: pixels a side of one token.
        bottleneck_size: width of the narrow layer that patches pass on their way in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(default=384, ge=16)
    depth: int = Field(default=6, ge=1)
    num_heads: int = Field(default=6, ge=1)
    mlp_ratio: float = Field(default=2.67, gt=0)
    patch_size: int = Field(default=8, ge=1)
    bottleneck_size: int = Field(default=128, ge=1)
    axes_dim: tuple[int, int] = (32, 32)


class TrainingConfig(BaseModel):
    """One training run. Everything that changes its result is here; nothing else does.

    Attributes:
        steps: optimizer steps in all.
        batch_size: pictures a step.
        learning_rate: peak, after the warm-up.
        warmup_steps: linear warm-up from zero.
        decay_share: the last share of steps over which the rate falls linearly to zero.
        weight_decay: decoupled (AdamW); norms, biases and vectors are exempt.
        betas: AdamW's moment decays.
        gradient_clip: global norm.
        ema_decay: cap of the moving average's decay; early steps use ``(1 + step) / (10 + step)``.
        prompt_dropout: share of pictures trained with the empty prompt, for classifier-free guidance.
        flip_share: share of pictures mirrored left to right.
        sigma_mean, sigma_std: ``sigma = 1 - sigmoid(N(mean, std))``, the noise level of a picture.
        method: train every weight, or a LoRA of rank ``lora_rank``.
        seed: root of every random choice; choice k of step s derives from (seed, s, k).
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations on fixed noise and timesteps; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=8e-4, gt=0, le=1)
    warmup_steps: int = Field(default=200, ge=0)
    decay_share: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)
    flip_share: float = Field(default=0.5, ge=0, le=1)
    sigma_mean: float = -0.6
    sigma_std: float = Field(default=0.9, gt=0)
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    seed: int = 0
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=50, ge=0)

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step: warm-up, then constant, then linear decay to zero in the last ``decay_share``."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        remaining = (self.steps - step) / max(1.0, self.steps * self.decay_share) if self.decay_share else 1.0
        return self.learning_rate * warm * min(1.0, remaining)

    def ema_decay_at(self, step: int) -> float:
        """The moving average's decay of a step."""
        return min(self.ema_decay, (1 + step) / (10 + step))
