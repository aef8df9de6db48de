"""What differs from one family of text-to-image models to the next, and nothing else.

Belongs here: the interface that the training loop, the training cache and the drawing know. Each family is a module
beside this one; it works on the pipeline's stock parts, so what was trained is what stock diffusers loads.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genai_assets.diffusion.attention import training_attention
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import frozen_dtype

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

Conditions = dict[str, "Tensor"]
"""What the denoiser is told of prompts, by name; every tensor is [N, ...], of the same shape for every prompt."""


class Family(ABC):
    """One model of a family: its pipeline, and how to train and draw with it.

    A *noise level* is what the denoiser is told of the noise: sigma in [0, 1] for flow matching, an integer timestep
    for the others. *Clean* pictures are what noise is added to: pictures, or their latents.

    Attributes:
        name: as people write it.
        pipeline_classes: names of the diffusers pipelines of this family, as ``model_index.json`` has them.
        denoiser_part: the pipeline's part that is trained.
        text_encoder_parts: the parts that encode prompts.
        lora_targets: layers that get an adapter: endings of module names.
        latent_side: side of the latents, where the denoiser's config does not say it.
        level_mean, level_std: the logit-normal distribution of noise levels, unless the run's config has its own.
    """

    name: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    denoiser_part: ClassVar[str] = "transformer"
    text_encoder_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    lora_targets: ClassVar[tuple[str, ...]]
    latent_side: ClassVar[int] = 128
    level_mean: ClassVar[float] = 0.0
    level_std: ClassVar[float] = 1.0

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return getattr(self.pipeline, self.denoiser_part)

    # What pictures and prompts become

    @classmethod
    def resolution_of(cls, folder: Path) -> int:
        """What :attr:`resolution` of the model in a folder is, read from its configs alone."""

        def config(part: str) -> dict[str, Any]:
            path = folder / part / "config.json"
            return json.loads(path.read_text()) if path.is_file() else {}

        index = json.loads((folder / "model_index.json").read_text())
        if "default_sample_size" in index:
            return index["default_sample_size"]
        autoencoder = config("vae")
        channels = autoencoder.get("block_out_channels") or autoencoder.get("encoder_block_out_channels") or []
        size = config(cls.denoiser_part).get("sample_size") or cls.latent_side
        return (size if isinstance(size, int) else size[0]) * 2 ** max(0, len(channels) - 1)

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Pixels a side of the square picture that the model draws by default."""

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Sides of pictures must be multiples of this, pixels."""

    @property
    def learns_pixels(self) -> bool:
        """Whether clean pictures are the pictures themselves: then they are cached as uint8, and changed on the fly."""
        return False

    @abstractmethod
    def encode_pictures(self, pictures: "Tensor") -> "Tensor":
        """Clean pictures: the scaled latents' mean, or the pictures themselves.

        Args:
            pictures: float32 [N, 3, H, W] in [-1, 1].

        Returns:
            Tensor: float32 [N, ...], on the pipeline's device; without gradient.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """What the denoiser is told, as the stock pipeline encodes it. Gradients flow when they are enabled."""

    def prepare_for_encoding(self, device: "torch.device") -> None:
        """Bring what encodes to a device: text encoders in the dtype of frozen weights, the autoencoder fp32."""
        for name in self.text_encoder_parts:
            getattr(self.pipeline, name).to(device, frozen_dtype(device)).eval()
        if not self.learns_pixels:
            self.pipeline.vae.to(device).eval()

    # The mathematics of a step

    @abstractmethod
    def random_levels(
        self, count: int, config: TrainingConfig, generator: "torch.Generator", shape: Sequence[int] | None = None
    ) -> "Tensor":
        """Noise levels for training, float32 or int64 [count]; drawn on the CPU from ``generator`` alone.

        Args:
            count: how many.
            config: its ``level_mean`` and ``level_std`` come before the family's own.
            generator: of the step.
            shape: of one clean picture; some noise schedulers shift levels by its size.
        """

    @abstractmethod
    def even_levels(self, count: int) -> "Tensor":
        """Noise levels spread evenly from little noise to much, for validation; as :meth:`random_levels`."""

    @abstractmethod
    def add_noise(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """Clean pictures with noise of a level each."""

    @abstractmethod
    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """What the denoiser makes of noisy pictures, to be compared with :meth:`target`.

        Args:
            denoiser: the family's denoiser; compiled, wrapped or with adapters, called the same.
            noisy: as :meth:`add_noise` gives them.
            level: [B].
            conditions: of these pictures.
        """

    @abstractmethod
    def target(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """What the denoiser should have predicted."""

    @abstractmethod
    def loss_weight(self, level: "Tensor", config: TrainingConfig) -> "Tensor":
        """Weight of the squared error at a level, float32 [B], as ``config.loss_weighting`` asks.

        Raises:
            ValueError: this family has no such weighting.
        """

    def losses(
        self,
        denoiser: Any,
        clean: "Tensor",
        noise: "Tensor",
        level: "Tensor",
        conditions: Mapping[str, "Tensor"],
        config: TrainingConfig,
    ) -> "Tensor":
        """Weighted squared error of each picture's prediction, float32 [B]."""
        predicted = self.predict(denoiser, self.add_noise(clean, noise, level), level, conditions)
        error = (predicted.float() - self.target(clean, noise, level).float()).square().flatten(1).mean(dim=1)
        return error * self.loss_weight(level, config)

    def use_fastest_for_training(self, device: "torch.device") -> None:  # noqa: B027 - most have nothing to change
        """Change how the denoiser computes, not what, to what trains fastest on ``device``. By default: nothing."""

    def fast_attention(self, device: "torch.device") -> AbstractContextManager[Any]:
        """Entered around each forward and backward pass: how attention is computed meanwhile, not what."""
        return training_attention(device)

    # Drawing

    def prepare_for_drawing(self, device: "torch.device", dtype: "torch.dtype") -> None:
        """Bring the whole pipeline to a device and into a dtype. A family keeps parts in fp32 that need it."""
        self.pipeline.to(device, dtype)

    def drawing_arguments(self, count: int, guidance_scale: float) -> dict[str, Any]:
        """What the stock pipeline must be told to draw ``count`` pictures with this guidance, 1 being none.

        A family overrides this where its pipeline's words or defaults differ.
        """
        return {"guidance_scale": guidance_scale}

    def draw(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        side: int,
        on_step: Callable[[int], None],
    ) -> "list[Image.Image]":
        """Draw one batch with the stock pipeline, as :meth:`drawing_arguments` says.

        Args:
            prompts: one batch.
            seeds: one a prompt; the initial noise of a picture is drawn from its seed on the CPU.
            steps: denoising steps.
            guidance_scale: 1 turns guidance off.
            side: of the pictures, pixels; a multiple of ``side_multiple``.
            on_step: told how many denoising steps are done.

        Returns:
            list: RGB pictures.
        """
        import torch

        def step_ended(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(min(step + 1, steps))  # some noise schedulers call the denoiser more often than they were asked to
            return tensors

        self.pipeline.set_progress_bar_config(disable=True)
        return self.pipeline(
            list(prompts),
            height=side,
            width=side,
            num_inference_steps=steps,
            # On the CPU, one a picture: neither the device nor the batch changes what a seed draws.
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_step_end=step_ended,
            **self.drawing_arguments(len(prompts), guidance_scale),
        ).images

    # Saving

    def save_lora(self, layers: "Mapping[str, Tensor]", out: Path) -> None:
        """Write adapters of the denoiser for the stock pipeline's ``load_lora_weights``.

        Args:
            layers: by name inside the denoiser, ``BLOCK.lora_A.weight`` and ``BLOCK.lora_B.weight``.
            out: the folder; gets ``pytorch_lora_weights.safetensors``.
        """
        saved = {f"{self.denoiser_part}_lora_layers": dict(layers)}
        self.pipeline.save_lora_weights(out, safe_serialization=True, **saved)
