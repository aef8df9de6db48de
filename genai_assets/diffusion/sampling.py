"""Drawing pictures: one ``Drawer`` used by the evaluation, the service and the command line.

Belongs here: many prompts, cut into batches. How a batch is drawn is the family's: it gives what the stock pipeline
gives for the same prompts and seeds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.base_model import MODEL_FACTS, load_pipeline, model_facts
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.families import family_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PIXELS_AT_ONCE = 1 << 22
"""Four pictures of 1,024 pixels a side: what fits beside a large model."""


def load(model_folder: Path, *, device: str = "auto", exact: bool = False, resolution: int | None = None) -> "Drawer":
    """Load a model folder for drawing.

    Args:
        model_folder: what stock diffusers loads.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        exact: fp32 instead of bf16; slower, and equal to the stock fp32 pipeline.
        resolution: pixels a side; not given: what the model was trained at.

    Raises:
        BaseModelError: the folder is incomplete or damaged, or of an unknown family.
    """
    import torch

    pipeline = load_pipeline(model_folder)
    if resolution is None and (model_folder / MODEL_FACTS).is_file():
        resolution = model_facts(model_folder)["resolution"]
    return Drawer(
        pipeline,
        choose_device(device),
        dtype=torch.float32 if exact else torch.bfloat16,
        resolution=resolution,
    )


class Drawer:
    """Draws pictures with one pipeline on one device. Not safe for several threads at once."""

    def __init__(self, pipeline: Any, device: "torch.device", *, dtype: "torch.dtype", resolution: int | None = None):
        """``pipeline`` is of a known family; it computes in ``dtype`` and draws its native resolution if not told."""
        self.family = family_of(pipeline)
        self.family.prepare_for_drawing(device, dtype)
        self.resolution = resolution or self.family.resolution

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
            batch_size: pictures at a time, at most; fewer when they are large.
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
        batch_size = min(batch_size, max(1, _PIXELS_AT_ONCE // self.resolution**2))
        pictures: list[Image.Image] = []
        batches = range(0, len(prompts), batch_size)
        for number, start in enumerate(batches):

            def told(step: int, passed: int = number) -> None:
                if on_step:
                    on_step(passed * steps + step, len(batches) * steps)

            part = slice(start, start + batch_size)
            pictures += self.family.draw(
                prompts[part],
                seeds=seeds[part],
                steps=steps,
                guidance_scale=guidance_scale,
                side=self.resolution,
                on_step=told,
            )
        return pictures
