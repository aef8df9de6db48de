"""Drawing pictures: one ``Drawer`` used by the evaluation, the service and the command line.

Belongs here: many prompts, cut into batches. How a batch is drawn is the family's: it gives what the stock pipeline
gives for the same prompts and seeds. How the denoiser computes meanwhile is the backend's, in ``drawing``.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.base_model import MODEL_FACTS, load_pipeline, model_facts
from genai_assets.diffusion.devices import choose_device
from genai_assets.diffusion.drawing.backends import BackendName, choose_backend
from genai_assets.diffusion.families import family_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PIXELS_AT_ONCE = 1 << 22
"""Four pictures of 1,024 pixels a side: what fits beside a large model."""


def load(
    model_folder: Path,
    *,
    device: str = "auto",
    exact: bool = False,
    resolution: int | None = None,
    backend: BackendName = "auto",
    cache: Path | None = None,
) -> "Drawer":
    """Load a model folder for drawing.

    Args:
        model_folder: what stock diffusers loads.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        exact: fp32 by eager torch, whatever the backend; slower, and equal to the stock fp32 pipeline.
        resolution: pixels a side; not given: what the model was trained at.
        backend: how the denoiser computes, as ``drawing.backends.choose_backend`` says.
        cache: folder of denoisers that OpenVINO converted; not given: they are converted for this process alone.

    Raises:
        BackendUnavailable: the backend was asked for by name and cannot be used.
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
        backend="eager" if exact else backend,
        cache=cache,
    )


class Drawer:
    """Draws pictures with one pipeline on one device. Not safe for several threads at once."""

    def __init__(
        self,
        pipeline: Any,
        device: "torch.device",
        *,
        dtype: "torch.dtype",
        resolution: int | None = None,
        backend: BackendName = "eager",
        cache: Path | None = None,
    ):
        """``pipeline`` is of a known family; it computes in ``dtype`` and draws its native resolution if not told.

        Its weights must not change from then on, unless ``backend`` is ``"eager"``. The rest is as for :func:`load`.
        """
        self.family = family_of(pipeline)
        self.family.prepare_for_drawing(device, dtype)
        self.resolution = resolution or self.family.resolution
        self._backend = choose_backend(backend, self.family.denoiser, cache)

    @property
    def computes(self) -> str:
        """How the denoiser computed last, in words: ``"OpenVINO bf16"``, ``"eager fp32"``."""
        return self._backend.computes

    def make_ready(self, pictures: int, *, guidance_scale: float) -> None:
        """Convert or compile now what drawing up to so many pictures at once needs, so that nobody waits for it later.

        With eager torch, nothing. The guidance scale matters by being 1 or more.
        """
        most = max(1, min(pictures, _PIXELS_AT_ONCE // self.resolution**2))
        for size in self._backend.batch_sizes:
            if size <= most:
                with self._backend.standing_in(rows=math.inf):
                    self.family.draw(
                        [""] * size,
                        seeds=[0] * size,
                        steps=2,
                        guidance_scale=guidance_scale,
                        side=self.resolution,
                        on_step=lambda _done: None,
                    )

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
        sizes = batches(len(prompts), batch_size, self._backend.batch_sizes)
        rows_a_picture = steps * (2 if guidance_scale > 1 else 1)
        shapes = Counter(filled for _, filled in sizes)
        pictures: list[Image.Image] = []
        for number, (count, filled) in enumerate(sizes):

            def told(step: int, passed: int = number) -> None:
                if on_step:
                    on_step(passed * steps + step, len(sizes) * steps)

            part = slice(len(pictures), len(pictures) + count)
            # What is drawn only to fill up a batch is thrown away.
            spare = filled - count
            with self._backend.standing_in(rows=shapes[filled] * filled * rows_a_picture):
                drawn = self.family.draw(
                    [*prompts[part], *[prompts[part.stop - 1]] * spare],
                    seeds=[*seeds[part], *[seeds[part.stop - 1]] * spare],
                    steps=steps,
                    guidance_scale=guidance_scale,
                    side=self.resolution,
                    on_step=told,
                )
            pictures += drawn[:count]
        return pictures


def batches(pictures: int, at_most: int, sizes: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Cut a number of pictures into batches.

    Args:
        pictures: how many, 0 or more.
        at_most: at a time.
        sizes: ascending, beginning with 1; batches are filled up to one of these. None: they are as large as they are.

    Returns:
        list: of each batch, how many pictures it is of, and how many it is filled up to. One that would be less than
        half full is cut into smaller ones.
    """
    sizes = [size for size in sizes if size <= at_most]
    found = []
    while pictures:
        if sizes:
            filled = next((size for size in sizes if size >= pictures and 2 * pictures > size), None)
            filled = filled or max(size for size in sizes if size <= pictures)
        else:
            filled = min(pictures, at_most)
        found.append((min(pictures, filled), filled))
        pictures -= found[-1][0]
    return found
