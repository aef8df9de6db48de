"""Prior preservation: pictures that the base model draws itself, so that a fine-tuned one keeps what it knew.

Belongs here: drawing them, and handing them to a training cache. Trained along with generic prompts, they hold the
model to what these meant before (DreamBooth: Ruiz et al. 2023). Their share of a batch and their weight are
``batches``.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from genai_assets import durable
from genai_assets.datasets.decoding import decode
from genai_assets.diffusion.aspect_buckets import to_bucket
from genai_assets.diffusion.training_cache import PRIOR_SPLIT, PictureReader

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Draws a picture of each prompt with the seed in the same place; a ``sampling.Drawer`` with steps and guidance set."""

_MANIFEST = "prior.json"
_AT_ONCE = 16
_MOST_PIXELS = 1 << 26


def draw_prior_pictures(
    draw: Draw,
    class_prompts: Sequence[str],
    count: int,
    seed: int,
    out: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw ``count`` pictures of generic prompts, taking turns, and save them as PNG with a list of them.

    Args:
        draw: draws with the base model.
        class_prompts: what the base should go on meaning by these words ("a dog"), as they are: no style, no template.
        count: pictures in all.
        seed: the seed of picture k derives from it and k.
        out: an empty folder.
        on_progress: told (pictures done, in all).

    Returns:
        dict: ``pictures``, ``prompts``.

    Raises:
        ValueError: no prompt, or an empty one, or ``count`` is not positive.
    """
    if not class_prompts or not all(prompt.strip() for prompt in class_prompts):
        raise ValueError(
            "prior pictures need generic prompts, none of them empty: for example 'a picture of an animal'"
        )
    if count < 1:
        raise ValueError(f"at least one prior picture must be drawn, not {count}")
    prompts = [class_prompts[number % len(class_prompts)] for number in range(count)]
    seeds = [int(durable.digest_json([seed, number])[:8], 16) for number in range(count)]
    manifest = []
    for start in range(0, count, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        pictures = draw(prompts[part], seeds[part])
        for picture, prompt, own_seed in zip(pictures, prompts[part], seeds[part], strict=True):
            manifest.append({"id": _save(picture, out), "prompt": prompt, "seed": own_seed, "size": picture.size})
        if on_progress:
            on_progress(len(manifest), count)
    durable.write_json(out / _MANIFEST, manifest)
    return {"pictures": count, "prompts": len(set(prompts))}


def prior_rows(folder: Path) -> pd.DataFrame:
    """Rows of the pictures in ``folder`` for :func:`~genai_assets.diffusion.training_cache.build_training_cache`.

    Columns as a manifest has them, as far as a cache asks for them: id, caption (the generic prompt), keywords (none),
    concept, category, style ("prior"), variant, split ("prior"), width, height.

    Raises:
        FileNotFoundError: no prior pictures were drawn there.
    """
    drawn = json.loads((folder / _MANIFEST).read_text())
    return pd.DataFrame(
        [
            {
                "id": one["id"],
                "caption": one["prompt"],
                "keywords": [],
                "concept": one["prompt"],
                "category": "",
                "style": PRIOR_SPLIT,
                "variant": False,
                "split": PRIOR_SPLIT,
                "width": one["size"][0],
                "height": one["size"][1],
            }
            for one in drawn
        ]
    )


def prior_reader(folder: Path, otherwise: PictureReader) -> PictureReader:
    """Reads the prior pictures of ``folder``, and every other picture as ``otherwise`` does."""
    drawn = set(prior_rows(folder)["id"])

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        if record_id not in drawn:
            return otherwise(record_id, size)
        data = (folder / f"{record_id}.png").read_bytes()
        if durable.digest_bytes(data) != record_id:
            raise ValueError(f"the prior picture {record_id} in {folder} was changed: remove the folder, draw anew")
        return to_bucket(decode(data, max_pixels=_MOST_PIXELS), *size)

    return read


def _save(picture: Image.Image, folder: Path) -> str:
    """Save a picture as PNG under the digest of its bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    record_id = durable.digest_bytes(buffer.getvalue())
    (folder / f"{record_id}.png").write_bytes(buffer.getvalue())
    return record_id
