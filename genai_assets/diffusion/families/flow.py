"""Flow matching: the mathematics that most of today's families share, and what those of them that learn latents share.

Belongs here: what is the same from family to family. What is peculiar to one is in its own module.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TIMESTEPS_PER_SIGMA = 1000
"""Stock noise schedulers of flow matching call sigma 1 timestep 1000."""


class FlowFamily(Family):
    """A family trained by flow matching (Lipman et al. 2023), the denoiser predicting the velocity ``noise - clean``.

    ``noisy = (1 - sigma) clean + sigma noise``. Levels are sigmas, logit-normal (Esser et al. 2024, SD3), and carry the
    shift of the pipeline's noise scheduler, so that training sees the levels that drawing uses.
    """

    def level_shift(self, shape: Sequence[int] | None = None) -> float:
        """Shift of sigmas towards noise: ``shift s / (1 + (shift - 1) s)``; 1 leaves them alone.

        Args:
            shape: of one clean picture; not given: as drawn by default.
        """
        return 1.0

    def random_levels(
        self,
        count: int,
        config: TrainingConfig,
        generator: "torch.Generator",
        shape: Sequence[int] | None = None,
    ) -> "Tensor":
        """Sigmas in (0, 1), float32 [count]; for clean pictures of this ``shape``, as :meth:`level_shift`."""
        import torch

        mean = self.level_mean if config.level_mean is None else config.level_mean
        std = self.level_std if config.level_std is None else config.level_std
        sigma = torch.sigmoid(torch.randn(count, generator=generator) * std + mean)
        shift = self.level_shift(shape)
        return shift * sigma / (1 + (shift - 1) * sigma)

    def even_levels(self, count: int) -> "Tensor":
        """Sigmas in (0, 1), float32 [count]."""
        import torch

        return (torch.arange(count) + 0.5) / count

    def add_noise(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """``(1 - sigma) clean + sigma noise``."""
        sigma = level.view(-1, *[1] * (clean.ndim - 1)).to(clean.dtype)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """The velocity."""
        return noise - clean

    def loss_weight(self, level: "Tensor", config: TrainingConfig) -> "Tensor":
        """One at every level; min-SNR is not defined for a velocity of flow matching.

        Raises:
            ValueError: ``loss_weighting`` is ``"min_snr"``.
        """
        import torch

        if config.loss_weighting == "min_snr":
            raise ValueError(
                f"loss_weighting is 'min_snr', which weighs timesteps of a noise schedule; {self.name} is trained by "
                "flow matching: set it to 'family' or 'none'"
            )
        return torch.ones_like(level, dtype=torch.float32)


def pack(latents: "Tensor") -> "Tensor":
    """Latents [N, C, h, w] as tokens [N, h/2 w/2, 4C], row by row: for transformers that take squares of two a side."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: "Tensor", height: int, width: int) -> "Tensor":
    """Tokens of :func:`pack` as latents [N, C, height, width] again."""
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


class LatentFlowFamily(FlowFamily):
    """A flow family whose clean pictures are latents [N, C, h, w], and which its stock pipeline draws with.

    Prompts are always encoded to the same number of tokens. The stock pipelines allow more than is done here, but every
    token of every prompt is kept in the training cache, and captions rarely need them.

    Attributes:
        prompt_tokens: of the encoder that reads the longest prompts; the rest is cut off, in training and drawing.
        latents_a_token: side of the square of latents that is one token of the transformer.
    """

    prompt_tokens: ClassVar[int] = 77
    latents_a_token: ClassVar[int] = 2

    @property
    def resolution(self) -> int:
        """As the transformer was made for, if its config says so."""
        return self.denoiser.config.get("sample_size", self.latent_side) * self.pipeline.vae_scale_factor

    @property
    def side_multiple(self) -> int:
        """A token of latents."""
        return self.latents_a_token * self.pipeline.vae_scale_factor

    def level_shift(self, shape: Sequence[int] | None = None) -> float:
        """As the pipeline's noise scheduler shifts: by a constant, or by one that grows with the number of tokens.

        A terminal stretch, Karras sigmas and the like are of drawing only: they place few steps well.
        """
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting") or "base_image_seq_len" not in config:
            return config.get("flow_shift") or config.get("shift") or 1.0
        height, width = shape[-2:] if shape else [self.resolution // self.pipeline.vae_scale_factor] * 2
        tokens = (height // self.latents_a_token) * (width // self.latents_a_token)
        few, many = config["base_image_seq_len"], config["max_image_seq_len"]
        shift = config["base_shift"] + (config["max_shift"] - config["base_shift"]) * (tokens - few) / (many - few)
        return shift if config.get("time_shift_type") == "linear" else math.exp(shift)

    def encode_pictures(self, pictures: "Tensor") -> "Tensor":
        """Latents: of a KL autoencoder the posterior's mean, shifted and scaled as its config says."""
        import torch

        autoencoder = self.pipeline.vae
        with torch.no_grad():
            encoded = autoencoder.encode(pictures.to(autoencoder.device, autoencoder.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return (latents.float() - (autoencoder.config.get("shift_factor") or 0.0)) * autoencoder.config.scaling_factor

    def drawing_arguments(self, count: int, guidance_scale: float) -> dict[str, Any]:
        """Prompts as long as in training, too."""
        return {**super().drawing_arguments(count, guidance_scale), "max_sequence_length": self.prompt_tokens}
