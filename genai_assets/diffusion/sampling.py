"""Drawing pictures: one ``Drawer`` used by the evaluation, the service and the command line.

Belongs here: the sampling loop. It gives what the stock pipeline gives for the same prompt and seed, and takes many
prompts at once, which the stock pixel pipeline does not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.prompts import encode_prompts

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

# The stock pipeline divides by at least this much when it turns a picture into a velocity.
_SMALLEST_SIGMA = 0.05


def load(model_folder: Path, *, device: str = "auto", exact: bool = False) -> "Drawer":
    """Load a model folder for drawing.

    Args:
        model_folder: what stock diffusers loads.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        exact: fp32 instead of bf16; slower, and equal to the stock fp32 pipeline.

    Raises:
        BaseModelError: the folder is incomplete or damaged.
    """
    import torch

    pipeline = load_pipeline(model_folder)
    return Drawer(pipeline, choose_device(device), dtype=torch.float32 if exact else torch.bfloat16)


class Drawer:
    """Draws pictures with one pipeline on one device. Not safe for several threads at once."""

    def __init__(self, pipeline: Any, device: "torch.device", *, dtype: "torch.dtype"):
        """``pipeline`` is a ``PRXPixelPipeline``; its denoiser runs in ``dtype``, its text encoder in fp32."""
        self.pipeline = pipeline
        self.device = device
        self.dtype = dtype
        self.resolution: int = pipeline.config.default_sample_size
        self._denoiser = pipeline.transformer.to(device, dtype).eval()
        pipeline.text_encoder.to(device).eval()

    def draw(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        batch_size: int = 32,
        on_step: Callable[[int, int], None] | None = None,
    ) -> "list[Image.Image]":
        """Draw one picture for each prompt.

        A picture depends on its prompt, seed, steps and guidance alone (in bf16, up to the rounding that another batch
        size brings).

        Args:
            prompts: what to draw.
            seeds: one a prompt; the initial noise of a picture derives from its seed.
            steps: denoising steps, at least 1.
            guidance_scale: classifier-free guidance (Ho and Salimans 2022); 1 turns it off.
            batch_size: pictures at a time.
            on_step: told (denoising steps done, in all) over all batches.

        Returns:
            list: RGB pictures of ``resolution`` pixels a side, in the order of the prompts.

        Raises:
            ValueError: another number of seeds than prompts, or ``steps`` below 1.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        pictures: list[Image.Image] = []
        batches = range(0, len(prompts), batch_size)
        for number, start in enumerate(batches):

            def told(step: int, passed: int = number) -> None:
                if on_step:
                    on_step(passed * steps + step, len(batches) * steps)

            part = slice(start, start + batch_size)
            pictures += self._draw_batch(list(prompts[part]), list(seeds[part]), steps, guidance_scale, told)
        return pictures

    def _draw_batch(
        self, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float, on_step: Callable[[int], None]
    ) -> "list[Image.Image]":
        import copy

        import torch

        guided = guidance_scale > 1
        embeddings, mask = encode_prompts(self.pipeline, [*([""] if guided else []), *prompts], dtype=self.dtype)
        if guided:
            # One empty prompt serves the whole batch.
            embeddings = torch.cat((embeddings[:1].expand(len(prompts), -1, -1), embeddings[1:]))
            mask = torch.cat((mask[:1].expand(len(prompts), -1), mask[1:]))
        embeddings, mask = embeddings.to(self.device), mask.to(self.device)

        noise_scheduler = copy.deepcopy(self.pipeline.scheduler)
        noise_scheduler.set_timesteps(steps, device=self.device)
        pictures = self._noise(seeds)
        with torch.inference_mode():
            for done, timestep in enumerate(noise_scheduler.timesteps, start=1):
                sigma = timestep.float() / noise_scheduler.config.num_train_timesteps
                clean = self._predict(pictures, sigma, embeddings, mask, guidance_scale if guided else None)
                velocity = (pictures - clean) / sigma.clamp(min=_SMALLEST_SIGMA)
                pictures = noise_scheduler.step(velocity, timestep, pictures).prev_sample
                on_step(done)
            return self.pipeline.image_processor.postprocess(pictures.float().cpu(), output_type="pil")

    def _predict(
        self, noisy: "Tensor", sigma: "Tensor", embeddings: "Tensor", mask: "Tensor", guidance_scale: float | None
    ) -> "Tensor":
        """The clean pictures that the denoiser sees in the noisy ones, moved away from the empty prompt's."""
        import torch

        repeated = torch.cat((noisy, noisy)) if guidance_scale is not None else noisy
        predicted = self._denoiser(
            hidden_states=repeated.to(self.dtype),
            timestep=sigma.expand(len(repeated)),
            encoder_hidden_states=embeddings,
            attention_mask=mask,
            return_dict=False,
        )[0].float()
        if guidance_scale is None:
            return predicted
        unprompted, prompted = predicted.chunk(2)
        return unprompted + guidance_scale * (prompted - unprompted)

    def _noise(self, seeds: list[int]) -> "Tensor":
        """Initial noise, drawn picture by picture on the CPU so that batch and device do not matter."""
        import torch

        shape = (1, self._denoiser.config.in_channels, self.resolution, self.resolution)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(noise).to(self.device) * self.pipeline.config.noise_scale
