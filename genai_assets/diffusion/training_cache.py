"""The training cache: pictures at the training resolution and encoded prompts, as memory-mapped arrays.

Belongs here: making the cache and reading it. A cache is one artifact folder, so it is never half-written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets.datasets.captions import prompt_variants

if TYPE_CHECKING:
    from torch import Tensor

_VARIANT_WEIGHT = 0.15


PictureReader = Callable[[str], np.ndarray]
"""Gives the picture of a record id as uint8 [S, S, 3] RGB."""


@dataclass(frozen=True)
class TrainingCache:
    """A cache opened for reading; arrays are memory maps.

    Attributes:
        rows: one row a picture: id, caption, concept, style, split, weight, prompts (list of prompt numbers).
        pictures: uint8 [N, S, S, 3].
        embeddings: fp16 [P, T, D]; prompt 0 is the empty prompt.
        mask: bool [P, T].
    """

    rows: pd.DataFrame
    pictures: np.ndarray
    embeddings: np.ndarray
    mask: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "TrainingCache":
        """Open the cache in an artifact's folder."""
        return cls(
            rows=pd.read_parquet(folder / "rows.parquet"),
            pictures=np.load(folder / "pictures.npy", mmap_mode="r"),
            embeddings=np.load(folder / "embeddings.npy", mmap_mode="r"),
            mask=np.load(folder / "mask.npy", mmap_mode="r"),
        )

    def select(self, split: str, style: str | None = None) -> np.ndarray:
        """Row numbers of a split, of one style when ``style`` is given."""
        chosen = self.rows["split"] == split
        if style is not None:
            chosen &= self.rows["style"] == style
        return np.flatnonzero(chosen.to_numpy())


def build_training_cache(
    rows: pd.DataFrame,
    read_picture: PictureReader,
    pipeline: Any,
    out: Path,
    *,
    resolution: int,
    prompt_template: str,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fill ``out`` with the cache of ``rows``.

    Args:
        rows: table with id, caption, keywords, concept, style, variant, split.
        read_picture: gives the RGB picture of an id at ``resolution``.
        pipeline: its text encoder encodes the prompts.
        out: an empty folder.
        resolution: pixels a side.
        prompt_template: with ``{caption}`` and ``{style}``.
        on_progress: told (stage, done, total).

    Returns:
        dict: ``pictures``, ``prompts``, ``megabytes``.
    """
    from genai_assets.diffusion.prompts import encode_prompts

    told = on_progress or (lambda stage, done, total: None)
    rows = rows.reset_index(drop=True)
    pictures = np.lib.format.open_memmap(
        out / "pictures.npy", mode="w+", dtype=np.uint8, shape=(len(rows), resolution, resolution, 3)
    )
    for number, record_id in enumerate(rows["id"]):
        pictures[number] = read_picture(record_id)
        if number % 500 == 0 or number + 1 == len(rows):
            told("pictures", number + 1, len(rows))
    pictures.flush()

    prompts, numbers = _number_prompts(rows, prompt_template)
    embeddings, mask = encode_prompts(pipeline, prompts, on_batch=lambda done: told("prompts", done, len(prompts)))
    np.save(out / "embeddings.npy", embeddings.numpy())
    np.save(out / "mask.npy", mask.numpy())
    table = rows[["id", "caption", "concept", "style", "split"]].copy()
    table["weight"] = np.where(rows["variant"], _VARIANT_WEIGHT, 1.0)
    table["prompts"] = numbers
    table.to_parquet(out / "rows.parquet", index=False)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"pictures": len(rows), "prompts": len(prompts), "megabytes": round(size / 1e6, 1)}


def _number_prompts(rows: pd.DataFrame, template: str) -> tuple[list[str], list[list[int]]]:
    """All distinct prompts, the empty one first, and for each row the numbers of its own."""
    number_of: dict[str, int] = {"": 0}
    numbers: list[list[int]] = []
    columns = zip(rows["caption"], rows["keywords"], rows["style"], strict=True)
    for caption, keywords, style in columns:
        variants: Sequence[str] = prompt_variants(caption, keywords, style, template)
        numbers.append([number_of.setdefault(prompt, len(number_of)) for prompt in variants])
    return list(number_of), numbers


def to_model_range(pictures: np.ndarray) -> "Tensor":
    """uint8 [N, S, S, 3] RGB to float32 [N, 3, S, S] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
