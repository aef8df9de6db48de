"""A student that is also judged: the adversarial term of distillation.

Belongs here: the loss of student and discriminator as one module, so that the training loop, its checkpoints and its
averages serve both. The discriminator is the autoencoder's, and so are the hinge losses.

The student's last step gives a whole picture; the discriminator compares it with the house style's training pictures
(Sauer et al. 2023, "Adversarial Diffusion Distillation", with the simpler discriminator that is here). The student's
gradient from it is made as long as ``weight`` times that of the trajectories' loss, measured at the picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.autoencoder.discriminator import new_discriminator, smallest_side
from genai_assets.diffusion.autoencoder.losses import adaptive_weight, adversarial_loss, discriminator_loss
from genai_assets.diffusion.batches import Batch
from genai_assets.diffusion.compilation import Compiling, compile_denoiser
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.distillation.levels import CannotBeDistilled
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.learner import Learner

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WIDTH = 32
_LAYERS = 3


@dataclass(frozen=True)
class JudgedBatch(Batch):
    """Segments, and beside each a real picture.

    Attributes:
        real: training pictures in [-1, 1], float32 [B, 3, H, W].
        is_last: whether a segment ends in a picture, bool [B].
    """

    real: "Tensor"
    is_last: "Tensor"

    def _each(self, change: "Callable[[Tensor], Tensor]", prompts: list[str]) -> "JudgedBatch":
        plain = super()._each(change, prompts)
        return JudgedBatch(**vars(plain), real=change(self.real), is_last=change(self.is_last))


class AdversarialLearner(Learner):
    """A learner with a discriminator beside the denoiser: ``parameters`` has both, one optimizer moves both.

    Args:
        family: the student; it learns pixels.
        config: the run.
        device: where to train.
        weight: of the discriminator's verdict, relative to the trajectories' loss.

    Raises:
        CannotBeDistilled: the family learns latents, which the discriminator does not judge.
    """

    def __init__(
        self,
        family: Family,
        config: TrainingConfig,
        device: "torch.device",
        *,
        weight: float,
        compiled: Compiling | None = None,
        compiled_code: Path | None = None,
    ):
        if not family.learns_pixels:
            raise CannotBeDistilled(
                f"{family.name} learns latents, and the discriminator judges pixels: set "
                "distillation.adversarial_weight to 0"
            )
        super().__init__(family, config, device)
        layers = _LAYERS
        while layers > 1 and smallest_side(layers) > family.resolution:
            layers -= 1
        discriminator = new_discriminator(width=_WIDTH, layers=layers, seed=config.seed).to(device)
        self.parameters |= {f"discriminator.{name}": value for name, value in discriminator.named_parameters()}
        called = compile_denoiser(self._denoiser, compiled_code, compiled) if compiled else self._denoiser
        self.module = _judged_module(family, self.module, called, discriminator, config, weight)


def _judged_module(
    family: Family, unjudged: Any, called: Any, discriminator: Any, config: TrainingConfig, weight: float
) -> Any:
    """Both networks' losses as one module, as :class:`Learner` has the student's alone."""
    import torch
    from torch.func import functional_call

    class JudgedLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unjudged, self.discriminator = unjudged, discriminator
            self.parts = unjudged.parts

        def forward(self, batch: JudgedBatch, pictures: int) -> "Tensor":
            """The batch's share of the mean loss of both networks; without gradients the trajectories' alone."""
            if not torch.is_grad_enabled():
                return unjudged(batch, pictures)
            noisy = family.add_noise(batch.clean, batch.noise, batch.level)
            drawn = family.predict(called, noisy, batch.level, batch.conditions).float()
            error = (drawn - family.target(batch.clean, batch.noise, batch.level)).square().flatten(1).mean(dim=1)
            loss = (error * family.loss_weight(batch.level, config) * batch.weight).sum() / pictures
            if not batch.is_last.any():
                return loss
            share = len(batch) / pictures
            # Each term moves its own network only: the student's is judged by weights without gradient,
            # the discriminator's looks at pictures without one.
            frozen: Mapping[str, Any] = {name: value.detach() for name, value in discriminator.named_parameters()}
            verdict = adversarial_loss(functional_call(discriminator, dict(frozen), (drawn[batch.is_last],)))
            balance = adaptive_weight(loss, verdict, drawn)
            told_apart = discriminator_loss(
                discriminator(batch.real[batch.is_last]), discriminator(drawn[batch.is_last].detach())
            )
            return loss + weight * balance * verdict + share * told_apart

    return JudgedLoss()
