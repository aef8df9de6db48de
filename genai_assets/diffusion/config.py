"""How a training run goes: its numbers, their ranges and their meaning. No torch here."""

import math
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
    mlp_ratio: float = Field(default=2.667, gt=0)  # 1,024 at the default width: matrices of round sizes multiply faster
    patch_size: int = Field(default=8, ge=1)
    bottleneck_size: int = Field(default=128, ge=1)
    axes_dim: tuple[int, int] = (32, 32)


class Augmentation(BaseModel):
    """How a training picture may be changed before it is learnt from. Zero leaves it alone.

    Attributes:
        flip: share of pictures mirrored left to right; a picture whose caption speaks of sides or of writing never is.
        crop: the most that is cut off, as a share of each side.
        colour: the most that brightness, contrast and saturation move, as a share.
        rotation: the largest angle either way, degrees; corners become white.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(default=0.5, ge=0, le=1)
    crop: float = Field(default=0.0, ge=0, le=0.3)
    colour: float = Field(default=0.0, ge=0, le=0.5)
    rotation: float = Field(default=0.0, ge=0, le=30)


class TrainingConfig(BaseModel):
    """One training run. Everything that changes its result is here; nothing else does.

    Attributes:
        steps: optimizer steps in all.
        batch_size: pictures a step, over all processes.
        micro_batch_size: pictures that one process works on at a time; gradients of the parts are added up. None: all.
        optimizer: AdamW; or Muon for the matrices of attention and feed-forward layers and AdamW for the rest.
        learning_rate: peak, after the warm-up.
        warmup_steps: linear warm-up from zero.
        schedule: after the warm-up constant and then, over the last ``decay_share``, linear to zero; or half a cosine.
        decay_share: the last share of steps over which the rate falls linearly to zero.
        weight_decay: decoupled; norms, biases and vectors are exempt.
        betas: AdamW's moment decays.
        gradient_clip: global norm.
        ema_decay: cap of the moving average's decay; early steps use ``(1 + step) / (10 + step)``.
        prompt_dropout: share of pictures trained with the empty prompt, for classifier-free guidance.
        augmentation: how pictures are changed.
        class_balance: from 0 (pictures are drawn as often as they are) to 1 (each class as often as any other).
        prior_share: share of a batch that is drawn from the prior pictures (prior preservation), when there are some.
        prior_weight: weight of their loss.
        level_mean, level_std: noise levels are logit-normal with these; None: the family's own.
        loss_weighting: the family's own weight of a noise level, none at all, or min-SNR (Hang et al. 2023).
        min_snr_gamma: where min-SNR cuts off.
        method: train every weight, or a LoRA of rank ``lora_rank``.
        train_text_encoder: train the text encoder along; prompts are then encoded anew in each step.
        gradient_checkpointing: save memory, spend time: activations are computed twice.
        seed: root of every random choice; choice k of step s derives from (seed, s, k).
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations on fixed noise and timesteps; 0 for none.
        keep: the weights that a run ends with: of its last step, or of the best validation.
        early_stop_after: end after so many validations without a new best; 0 for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=8e-4, gt=0, le=1)
    warmup_steps: int = Field(default=200, ge=0)
    schedule: Literal["constant_then_decay", "cosine"] = "constant_then_decay"
    decay_share: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1)
    augmentation: Augmentation = Augmentation()
    class_balance: float = Field(default=0.0, ge=0, le=1)
    prior_share: float = Field(default=0.25, ge=0, lt=1)
    prior_weight: float = Field(default=1.0, ge=0)
    level_mean: float | None = None
    level_std: float | None = Field(default=None, gt=0)
    loss_weighting: Literal["family", "none", "min_snr"] = "family"
    min_snr_gamma: float = Field(default=5.0, gt=0)
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    train_text_encoder: bool = False
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=50, ge=0)
    keep: Literal["last", "best"] = "last"
    early_stop_after: int = Field(default=0, ge=0)

    def learning_rate_at(self, step: int) -> float:
        """The rate of a step: linear warm-up, then as ``schedule`` says; it reaches zero after the last step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            position = max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * position))
        remaining = (self.steps - step) / max(1.0, self.steps * self.decay_share) if self.decay_share else 1.0
        return self.learning_rate * warm * min(1.0, remaining)

    def ema_decay_at(self, step: int) -> float:
        """The moving average's decay of a step."""
        return min(self.ema_decay, (1 + step) / (10 + step))
