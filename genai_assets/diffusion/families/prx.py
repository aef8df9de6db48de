"""PRX in pixel space: the family of the embedded base. The denoiser predicts the clean picture."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.attention import ExplicitPRXAttention
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families.family import Conditions
from genai_assets.diffusion.families.flow import FlowFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

_SMALLEST_SIGMA_IN_LOSS = 0.1
# The stock pipeline divides by at least this much when it turns a picture into a velocity.
_SMALLEST_SIGMA_IN_DRAWING = 0.05


class PRXPixel(FlowFamily):
    """``PRXPixelPipeline``: a transformer on patches of the picture itself, with no autoencoder.

    The error of the velocity ``(noisy - clean) / sigma`` is the error of the picture divided by sigma, hence the weight
    (x-prediction with large patches: Li and He 2025, "Back to Basics: Let Denoising Generative Models Denoise").
    """

    name = "PRX pixel"
    pipeline_classes = ("PRXPixelPipeline",)
    lora_targets = ("img_qkv_proj", "txt_kv_proj", "to_out.0", "gate_proj", "up_proj", "down_proj")
    # Nearer to pure noise than most: there a prompt decides what is drawn, and small models learn that slowest.
    level_mean = 1.0
    level_std = 1.4

    @property
    def resolution(self) -> int:
        """As the pipeline's index says."""
        return self.pipeline.config.default_sample_size

    @property
    def side_multiple(self) -> int:
        """A patch."""
        return self.denoiser.config.patch_size

    @property
    def learns_pixels(self) -> bool:
        """Yes."""
        return True

    def encode_pictures(self, pictures: "Tensor") -> "Tensor":
        """The pictures themselves."""
        return pictures

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] and ``mask`` bool [N, T], true where a token is real."""
        device = self.pipeline.text_encoder.device
        tokens, mask = self.pipeline._tokenize_prompts(list(prompts), device)
        hidden = self.pipeline.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return {"embeddings": hidden, "mask": mask.bool()}

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The clean pictures."""
        return denoiser(
            hidden_states=noisy,
            timestep=level,
            encoder_hidden_states=conditions["embeddings"],
            attention_mask=conditions["mask"],
            return_dict=False,
        )[0]

    def target(self, clean: "Tensor", noise: "Tensor", level: "Tensor") -> "Tensor":
        """The clean pictures."""
        return clean

    def loss_weight(self, level: "Tensor", config: TrainingConfig) -> "Tensor":
        """One over sigma squared, bounded where there is hardly any noise."""
        weight = super().loss_weight(level, config)
        return weight if config.loss_weighting == "none" else weight / level.clamp(min=_SMALLEST_SIGMA_IN_LOSS).square()

    def use_fastest_for_training(self, device: "torch.device") -> None:
        """Explicit attention on a CPU; the stock one elsewhere."""
        if device.type == "cpu":
            self.denoiser.set_attn_processor(ExplicitPRXAttention())

    def fast_attention(self, device: "torch.device") -> AbstractContextManager[Any]:
        """Nothing more: its processor is explicit, and torch 2.13 cannot compile it inside the general way."""
        return nullcontext()

    def prepare_for_encoding(self, device: "torch.device") -> None:
        """The small text encoder in fp32, as drawing has it."""
        self.pipeline.text_encoder.to(device).eval()

    def prepare_for_drawing(self, device: "torch.device", dtype: "torch.dtype") -> None:
        """The denoiser in ``dtype``; the small text encoder stays in fp32, as its embeddings were made for training."""
        self.denoiser.to(device, dtype).eval()
        self.pipeline.text_encoder.to(device).eval()

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
        """Draw one batch. The stock pipeline draws the same, yet with guidance it takes one prompt at a time."""
        import copy

        import torch

        denoiser, guided = self.denoiser, guidance_scale > 1
        device, dtype = denoiser.device, denoiser.dtype
        with torch.inference_mode():
            told = self._encode_each_once([*([""] * len(prompts) if guided else []), *prompts])
            told["embeddings"] = told["embeddings"].to(dtype)
            noise_scheduler = copy.deepcopy(self.pipeline.scheduler)
            noise_scheduler.set_timesteps(steps, device=device)
            pictures = self._noise(seeds, side).to(device)
            for done, timestep in enumerate(noise_scheduler.timesteps, start=1):
                sigma = timestep.float() / noise_scheduler.config.num_train_timesteps
                noisy = pictures.to(dtype)
                noisy = torch.cat((noisy, noisy)) if guided else noisy
                clean = self.predict(denoiser, noisy, sigma.expand(len(noisy)), told).float()
                if guided:  # classifier-free guidance (Ho and Salimans 2022)
                    unprompted, prompted = clean.chunk(2)
                    clean = unprompted + guidance_scale * (prompted - unprompted)
                velocity = (pictures - clean) / sigma.clamp(min=_SMALLEST_SIGMA_IN_DRAWING)
                pictures = noise_scheduler.step(velocity, timestep, pictures).prev_sample
                on_step(min(done, steps))  # some noise schedulers call the denoiser more often than they were asked to
            return self.pipeline.image_processor.postprocess(pictures.float().cpu(), output_type="pil")

    def _encode_each_once(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of prompts of which many are the same, the empty one above all."""
        places = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        told = self.encode_prompts(list(places))
        rows = [places[prompt] for prompt in prompts]
        return {name: value[rows] for name, value in told.items()}

    def _noise(self, seeds: Sequence[int], side: int) -> "Tensor":
        """Initial noise, drawn picture by picture on the CPU so that batch and device do not matter."""
        import torch

        shape = (1, self.denoiser.config.in_channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(noise) * self.pipeline.config.noise_scale

    def save_lora(self, layers: "Mapping[str, Tensor]", out: Path) -> None:
        """Write adapters as PEFT keeps them, for ``PeftModel.from_pretrained(pipeline.transformer, out)``.

        The stock pixel pipeline has no ``load_lora_weights``.
        """
        from peft import LoraConfig
        from safetensors.torch import save_file

        rank = next(len(value) for name, value in layers.items() if ".lora_A." in name)
        out.mkdir(parents=True, exist_ok=True)
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(self.lora_targets)).save_pretrained(str(out))
        save_file(
            {f"base_model.model.{name}": value for name, value in layers.items()}, out / "adapter_model.safetensors"
        )
