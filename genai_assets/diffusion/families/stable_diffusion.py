"""Stable Diffusion 1, 2 and XL: a UNet on latents, trained on the timesteps of a noise schedule (DDPM).

Belongs here: the mathematics of those timesteps, and what the two pipelines tell their UNets. Stable Diffusion 3 is of
another kind: ``stable_diffusion_3``.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Conditions, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PREDICTION_TYPES = ("epsilon", "v_prediction")


class StableDiffusion(Family):
    """``StableDiffusionPipeline``: a UNet on the latents of an autoencoder (Rombach et al. 2022).

    A level is a timestep t of the noise schedule, int64 from 0, with alpha_t the schedule's running product:
    ``noisy = sqrt(alpha_t) clean + sqrt(1 - alpha_t) noise`` (Ho et al. 2020). The UNet predicts the noise (epsilon) or
    ``sqrt(alpha_t) noise - sqrt(1 - alpha_t) clean`` (v_prediction, Salimans and Ho 2022), as the pipeline's noise
    scheduler says, which also has the schedule.
    """

    name = "Stable Diffusion"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_part = "unet"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @cached_property
    def noise_schedule(self) -> Any:
        """The schedule that the model was trained on, as a stock ``DDPMScheduler``, whatever the pipeline draws with.

        Raises:
            ValueError: the model was trained in another way than this family is.
        """
        from diffusers import DDPMScheduler

        drawn_with = self.pipeline.scheduler
        if type(drawn_with).__name__.startswith("EDM"):
            raise ValueError(
                f"the model is drawn with {type(drawn_with).__name__}: it was trained on continuous noise levels, "
                "which cannot be done here; choose a base model with a noise schedule of timesteps"
            )
        # Not ``from_config``: where the pipeline's class has another default, as some have, that would take DDPM's.
        known = inspect.signature(DDPMScheduler).parameters
        schedule = DDPMScheduler(**{name: value for name, value in drawn_with.config.items() if name in known})
        if schedule.config["prediction_type"] not in _PREDICTION_TYPES:
            raise ValueError(
                f"the noise scheduler's prediction_type is {schedule.config['prediction_type']!r}; "
                f"{self.name} can be trained with {' and '.join(_PREDICTION_TYPES)}"
            )
        return schedule

    @property
    def timesteps(self) -> int:
        """How many there are."""
        return self.noise_schedule.config["num_train_timesteps"]

    @property
    def resolution(self) -> int:
        """As the UNet was trained."""
        size = self.denoiser.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.pipeline.vae_scale_factor

    @property
    def side_multiple(self) -> int:
        """What every level of the UNet can halve."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def encode_pictures(self, pictures: "Tensor") -> "Tensor":
        """Latents [N, C, h, w]: the posterior's mean, scaled as the stock pipeline unscales when it decodes."""
        import torch

        autoencoder = self.pipeline.vae
        dtype = autoencoder.dtype
        # Some autoencoders overflow in fp16, and say so.
        overflows = dtype == torch.float16 and autoencoder.config.get("force_upcast", False)
        with torch.no_grad():
            if overflows:
                autoencoder.to(dtype=torch.float32)
            try:
                encoded = autoencoder.encode(pictures.to(autoencoder.device, autoencoder.dtype))
            finally:
                autoencoder.to(dtype=dtype)
            return self._scale(encoded.latent_dist.mode().float())

    def _scale(self, latents: "Tensor") -> "Tensor":
        return latents * self.pipeline.vae.config.scaling_factor

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D]; T is the tokenizer's longest prompt."""
        embeddings, _ = self.pipeline.encode_prompt(
            list(prompts), self.pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"embeddings": embeddings}

    # The mathematics of a step

    def random_levels(
        self, count: int, config: TrainingConfig, generator: "torch.Generator", shape: Sequence[int] | None = None
    ) -> "Tensor":
        """Timesteps, each as likely as any other; logit-normal over the whole range if the config says how."""
        import torch

        if config.level_mean is None and config.level_std is None:
            return torch.randint(self.timesteps, (count,), generator=generator)
        mean = self.level_mean if config.level_mean is None else config.level_mean
        std = self.level_std if config.level_std is None else config.level_std
        share = torch.sigmoid(torch.randn(count, generator=generator) * std + mean)
        return (share * self.timesteps).long().clamp(max=self.timesteps - 1)

    def even_levels(self, count: int) -> "Tensor":
        """Timesteps, int64 [count]."""
        import torch

        return ((torch.arange(count) + 0.5) / count * self.timesteps).long()

    def add_noise(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """As the schedule does."""
        return self.noise_schedule.add_noise(clean, noise, level)

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The noise or the velocity."""
        return denoiser(noisy, level, encoder_hidden_states=conditions["embeddings"], return_dict=False)[0]

    def target(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """What the prediction type says."""
        if self._predicts_velocity:
            return self.noise_schedule.get_velocity(clean, noise, level)
        return noise

    def loss_weight(self, level: "Tensor", config: TrainingConfig) -> "Tensor":
        """One; or min-SNR (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").

        With ``SNR = alpha / (1 - alpha)`` the squared error of the clean picture weighs ``min(SNR, gamma)``. That of
        epsilon is SNR times, that of the velocity SNR + 1 times as large: their weight is divided by it.
        """
        import torch

        if config.loss_weighting != "min_snr":
            return torch.ones_like(level, dtype=torch.float32)
        alpha = self.noise_schedule.alphas_cumprod.to(level.device)[level].float()
        ratio = alpha / (1 - alpha)
        if self._predicts_velocity:
            return ratio.clamp(max=config.min_snr_gamma) / (ratio + 1)
        # min(SNR, gamma) / SNR, and one, its limit, where nothing of the picture is left and SNR is zero.
        return (config.min_snr_gamma / ratio).clamp(max=1.0)

    @property
    def _predicts_velocity(self) -> bool:
        return self.noise_schedule.config["prediction_type"] == "v_prediction"


class StableDiffusionXL(StableDiffusion):
    """``StableDiffusionXLPipeline`` (Podell et al. 2023, "SDXL: Improving Latent Diffusion Models").

    Two text encoders read the prompt; the UNet is also told the second one's pooled embedding and the picture's size.
    """

    name = "Stable Diffusion XL"
    pipeline_classes = ("StableDiffusionXLPipeline",)
    text_encoder_parts = ("text_encoder", "text_encoder_2")

    def _scale(self, latents: "Tensor") -> "Tensor":
        """Some models of this family also have a mean and a spread for each channel."""
        config = self.pipeline.vae.config
        mean, spread = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and spread is not None:
            latents = (latents - latents.new_tensor(mean).view(1, -1, 1, 1)) / latents.new_tensor(spread).view(
                1, -1, 1, 1
            )
        return super()._scale(latents)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] of both encoders, and ``pooled`` [N, P] of the second.

        The empty prompt is what drawing is guided away from: zeros, if the pipeline's ``force_zeros_for_empty_prompt``.
        """
        import torch

        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            told = torch.tensor([prompt != "" for prompt in prompts], device=embeddings.device)
            embeddings = embeddings * told[:, None, None].to(embeddings.dtype)
            pooled = pooled * told[:, None].to(pooled.dtype)
        return {"embeddings": embeddings, "pooled": pooled}

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The noise or the velocity. The size told is that of the noisy latents, and nothing is said to be cropped."""
        height, width = (side * self.pipeline.vae_scale_factor for side in noisy.shape[-2:])
        size = conditions["pooled"].new_tensor([height, width, 0, 0, height, width])
        return denoiser(
            noisy,
            level,
            encoder_hidden_states=conditions["embeddings"],
            added_cond_kwargs={"text_embeds": conditions["pooled"], "time_ids": size.expand(len(noisy), -1)},
            return_dict=False,
        )[0]
