"""The training cache: what pictures and prompts become before training, as memory-mapped arrays.

Belongs here: making the cache and reading it. A cache is one artifact folder, so it is never half-written; arrays are
filled and read through memory maps, so a dataset may be larger than memory. What was encoded outlives a build that is
killed in ``encoding_store``; what a step makes of the cache is ``batches``.

Files of the folder:

    rows.parquet             one row a picture, see :class:`TrainingCache`
    prompts.parquet          number and text of every prompt
    codes-HEIGHTxWIDTH.npy   the pictures of one bucket: uint8 [n, H, W, 3], or latents fp16 [n, V, ...]
    condition-NAME.npy       what the denoiser is told of each prompt: [P, ...], fp16, bool or int64
    cache.json               the resolution, and how the latents' V variants were made
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets.captions import prompt_variants
from genai_assets.datasets.splits import VARIANT_WEIGHT
from genai_assets.diffusion import augmentation as augmenting
from genai_assets.diffusion.aspect_buckets import bucket_sizes, choose_bucket
from genai_assets.diffusion.config import Augmentation

if TYPE_CHECKING:
    from torch import Tensor

    from genai_assets.diffusion.encoding_store import Encoding, EncodingStore, Kind
    from genai_assets.diffusion.families.family import Family

PRIOR_SPLIT = "prior"
"""Split of pictures that the base drew of generic prompts, for prior preservation."""

_FACTS = "cache.json"
_KEPT_COLUMNS = ("id", "caption", "concept", "category", "style", "split")
# Part of what encodings are kept by: raise it when code makes something else of the same picture or prompt (a variant,
# the way that pictures are brought to a size, a family's number of tokens).
_ENCODINGS_VERSION = 1
# What is worked on at a time: bounds memory, whatever the size of the dataset.
_PIXELS_AT_ONCE = 1 << 22
_MOST_PICTURES_AT_ONCE = 64
_PROMPTS_AT_ONCE = 64

PictureReader = Callable[[str, tuple[int, int]], np.ndarray]
"""Gives the picture of a record id at a size (height, width), as uint8 [height, width, 3] RGB."""


class DataNotFinite(ValueError):
    """An encoded picture or prompt has values that are not finite; the message names it."""


@dataclass(frozen=True)
class TrainingCache:
    """A cache opened for reading; arrays are memory maps.

    Attributes:
        rows: one row a picture: id, caption, concept, category (if known), style, split, weight, prompts (numbers, the
            plain one first), texts (of these prompts), bucket, slot (place in the bucket's codes), may_flip.
        texts: prompts by number; number 0 is the empty one.
        codes: by bucket ("HEIGHTxWIDTH"): uint8 [n, H, W, 3] for pixels, else latents fp16 [n, V, ...].
        conditions: what the denoiser is told, by name: [P, ...], fp16, bool or int64.
        resolution: pixels a side of the square bucket.
        augmentation: how the latents' variants were made; None for pixels, which are changed as they are drawn. Variant
            0 is the plain picture; with flips every odd variant mirrors the one before.
    """

    rows: pd.DataFrame
    texts: list[str]
    codes: Mapping[str, np.ndarray]
    conditions: Mapping[str, np.ndarray]
    resolution: int
    augmentation: Augmentation | None

    @classmethod
    def open(cls, folder: Path) -> "TrainingCache":
        """Open the cache in an artifact's folder.

        Raises:
            FileNotFoundError: this is no cache, or one of an earlier version.
        """
        if not (folder / _FACTS).exists():
            raise FileNotFoundError(f"{folder} has no {_FACTS}: it is no training cache of this version; build it anew")
        facts = json.loads((folder / _FACTS).read_text())
        made = facts["augmentation"]
        return cls(
            rows=pd.read_parquet(folder / "rows.parquet"),
            texts=pd.read_parquet(folder / "prompts.parquet")["text"].tolist(),
            codes=_open_arrays(folder, "codes-"),
            conditions=_open_arrays(folder, "condition-"),
            resolution=facts["resolution"],
            augmentation=None if made is None else Augmentation.model_validate(made),
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
    family: "Family",
    out: Path,
    *,
    resolution: int,
    prompt_template: str,
    templates: Sequence[str] = (),
    augmentation: Augmentation | None = None,
    buckets: bool = False,
    latent_variants: int = 4,
    prompts_a_picture: int = 4,
    seed: int = 0,
    encodings: "EncodingStore | None" = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fill ``out`` with the cache of ``rows``.

    Args:
        rows: table with id, caption, keywords, concept, style, variant, split; perhaps category; with ``buckets`` also
            width and height. Rows of the split "prior" are described by their caption alone, without the template.
        read_picture: gives the RGB picture of an id at a size.
        family: encodes pictures and prompts.
        out: an empty folder.
        resolution: pixels a side of the square bucket; no bucket has more pixels.
        prompt_template: with ``{caption}`` and ``{style}``.
        templates: further prompts of each picture, as ``captions.prompt_variants`` fills them; not for the split
            "prior".
        augmentation: how latents are varied; the default one when None. Pixels are kept as they are.
        buckets: keep pictures near their own shape, instead of all square.
        latent_variants: latents of each picture, the plain one among them, when pictures are cropped, recoloured or
            rotated; with flips, each also mirrored.
        prompts_a_picture: the most prompts that a picture has.
        seed: of the variants; each derives from it, the record's id and the variant's number.
        encodings: where what was encoded is kept, to be encoded once; None encodes all anew.
        on_progress: told (stage, done, total); the stages are ``pictures`` and ``prompts``.

    Returns:
        dict: ``pictures``, ``prompts``, ``buckets`` (pictures by bucket), ``megabytes``.

    Raises:
        ValueError: no rows; a resolution that does not fit the family; a picture of another size than asked for.
        DataNotFinite: an encoder gave a value that is not finite in half precision.
        EncodingStoreUnreadable: the store of encodings cannot be used.
    """
    if rows.empty:
        raise ValueError("there are no pictures to make a training cache of")
    if latent_variants < 1:
        raise ValueError(f"a picture needs at least one latent, not {latent_variants}")
    told = on_progress or (lambda stage, done, total: None)
    augmentation = Augmentation() if augmentation is None else augmentation
    rows = rows.reset_index(drop=True)
    texts, numbers = _number_prompts(rows, prompt_template, prompts_a_picture, templates)
    table = rows[[name for name in _KEPT_COLUMNS if name in rows]].copy()
    table["weight"] = np.where(rows["variant"], VARIANT_WEIGHT, 1.0)
    table["prompts"] = numbers
    table["texts"] = [[texts[number] for number in own] for own in numbers]
    table["bucket"] = _choose_buckets(rows, family, resolution, buckets)
    table["slot"] = table.groupby("bucket").cumcount()
    table["may_flip"] = [augmenting.may_flip(caption) for caption in rows["caption"]]

    encoder = _PictureEncoder(read_picture, family, augmentation, latent_variants, seed, encodings)
    done = 0
    for bucket, members in table.groupby("bucket"):
        path = out / f"codes-{bucket}.npy"
        for filled in _fill(lambda name, path=path: path, len(members), encoder.chunks(members, _size(str(bucket)))):
            told("pictures", done + filled, len(table))
        done += len(members)
    for filled in _fill(lambda name: out / f"condition-{name}.npy", len(texts), _conditions(texts, family, encodings)):
        told("prompts", filled, len(texts))
    table.to_parquet(out / "rows.parquet", index=False)
    pd.DataFrame({"number": range(len(texts)), "text": texts}).to_parquet(out / "prompts.parquet", index=False)
    varied = None if family.learns_pixels else augmentation.model_dump(mode="json")
    durable.write_json(out / _FACTS, {"resolution": resolution, "augmentation": varied})
    return {
        "pictures": len(table),
        "prompts": len(texts),
        "buckets": {str(name): int(count) for name, count in table["bucket"].value_counts(sort=False).items()},
        "megabytes": round(sum(path.stat().st_size for path in out.iterdir()) / 1e6, 1),
    }


def to_model_range(pictures: np.ndarray) -> "Tensor":
    """uint8 [N, H, W, 3] RGB to float32 [N, 3, H, W] in [-1, 1]."""
    import torch

    channels_first = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return channels_first.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class _PictureEncoder:
    """Makes the codes of pictures, a bounded number at a time."""

    read_picture: PictureReader
    family: "Family"
    augmentation: Augmentation
    latent_variants: int
    seed: int
    encodings: "EncodingStore | None"

    def chunks(self, members: pd.DataFrame, size: tuple[int, int]) -> "Iterator[Encoding]":
        """``codes`` of pictures of one size, in the order of ``members``."""
        variants = 1 if self.family.learns_pixels else variant_count(self.augmentation, self.latent_variants)
        at_once = min(_MOST_PICTURES_AT_ONCE, max(1, _PIXELS_AT_ONCE // (size[0] * size[1] * variants)))
        for start in range(0, len(members), at_once):
            part = members.iloc[start : start + at_once]
            if self.family.learns_pixels:
                yield {"codes": np.stack([self._read(record_id, size) for record_id in part["id"]])}
            else:
                yield {"codes": self._latents(part["id"].tolist(), part["may_flip"].tolist(), variants, size)}

    def _latents(self, ids: list[str], may_flip: list[bool], variants: int, size: tuple[int, int]) -> np.ndarray:
        """fp16 [n, V, ...]; a picture that must not be mirrored has its plain variants in the mirrored ones' places."""
        asked = [
            (record_id, variant if mirrors else variant - self._change_and_side(variant)[1])
            for record_id, mirrors in zip(ids, may_flip, strict=True)
            for variant in range(variants)
        ]
        wanted = list(dict.fromkeys(asked))

        def encode(places: Sequence[int]) -> "Encoding":
            import torch

            pictures = {record_id: self._read(record_id, size) for record_id in {wanted[place][0] for place in places}}
            batch = np.stack([self._vary(*wanted[place], pictures) for place in places])
            with torch.no_grad():
                # However many variants there are, the autoencoder sees few pictures at a time.
                cut = max(1, _PIXELS_AT_ONCE // (4 * size[0] * size[1]))
                parts = (to_model_range(batch[start : start + cut]) for start in range(0, len(batch), cut))
                encoded = [self.family.encode_pictures(part).to("cpu", torch.float16) for part in parts]
            latents = torch.cat(encoded).numpy()
            _refuse_infinite(latents, [f"the picture {wanted[place][0]}" for place in places])
            return {"latents": latents}

        latents = _encoded(self.encodings, "pictures", [self._item(*one, size) for one in wanted], encode)["latents"]
        places = {one: place for place, one in enumerate(wanted)}
        return latents[[places[one] for one in asked]].reshape(len(ids), variants, *latents.shape[1:])

    def _change_and_side(self, variant: int) -> tuple[int, int]:
        """Number of a variant's change, 0 being none, and whether it is mirrored."""
        return divmod(variant, 2) if self.augmentation.flip else (variant, 0)

    def _vary(self, record_id: str, variant: int, pictures: Mapping[str, np.ndarray]) -> np.ndarray:
        number, mirrored = self._change_and_side(variant)
        picture = pictures[record_id]
        if number:
            name = int(durable.digest_bytes(record_id.encode())[:16], 16)
            picture = augmenting.change(picture, self.augmentation, np.random.default_rng([self.seed, name, number]))
        return augmenting.mirror(picture) if mirrored else picture

    def _item(self, record_id: str, variant: int, size: tuple[int, int]) -> list[Any]:
        """All that a latent depends on, besides the encoder: a plain picture neither on the seed nor on changes."""
        number, mirrored = self._change_and_side(variant)
        made = self.augmentation
        change = [number, made.crop, made.colour, made.rotation, self.seed] if number else []
        return [_ENCODINGS_VERSION, self.family.name, record_id, *size, mirrored, *change]

    def _read(self, record_id: str, size: tuple[int, int]) -> np.ndarray:
        picture = self.read_picture(record_id, size)
        if picture.shape != (*size, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"the picture {record_id} was read as {picture.dtype} {list(picture.shape)}; "
                f"uint8 {[*size, 3]} was asked for"
            )
        return picture


def variant_count(augmentation: Augmentation, latent_variants: int) -> int:
    """How many latents of each picture there are: ``latent_variants`` if it is changed, twice as many with flips."""
    return (latent_variants if augmenting.changes(augmentation) else 1) * (2 if augmentation.flip else 1)


def _conditions(texts: Sequence[str], family: "Family", encodings: "EncodingStore | None") -> "Iterator[Encoding]":
    """What the denoiser is told of prompts, a bounded number at a time."""
    import torch

    for start in range(0, len(texts), _PROMPTS_AT_ONCE):
        part = texts[start : start + _PROMPTS_AT_ONCE]

        def encode(places: Sequence[int], part: Sequence[str] = part) -> "Encoding":
            prompts = [part[place] for place in places]
            with torch.no_grad():
                told = {name: _compact(value) for name, value in family.encode_prompts(prompts).items()}
            for value in told.values():
                _refuse_infinite(value, [f"the prompt {prompt!r}" for prompt in prompts])
            return told

        yield _encoded(encodings, "prompts", [[_ENCODINGS_VERSION, family.name, text] for text in part], encode)


def _encoded(
    encodings: "EncodingStore | None", kind: "Kind", items: Sequence[Any], encode: "Callable[[Sequence[int]], Encoding]"
) -> "Encoding":
    return encodings.encoded(kind, items, encode) if encodings else encode(range(len(items)))


def _compact(value: "Tensor") -> np.ndarray:
    """Floats in half precision, numbers as int64, masks as they are; on the CPU."""
    import torch

    if value.is_floating_point():
        return value.to("cpu", torch.float16).numpy()
    return value.cpu().numpy() if value.dtype == torch.bool else value.to("cpu", torch.int64).numpy()


def _refuse_infinite(values: np.ndarray, names: Sequence[str]) -> None:
    if values.dtype != np.float16 or np.isfinite(values).all():
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise DataNotFinite(
        f"{names[int(np.argmin(finite))]} was encoded to values that are not finite in half precision (its largest is "
        "65,504). Look at it, and at the encoder: some autoencoders overflow unless they compute in fp32"
    )


def _fill(path_of: Callable[[str], Path], total: int, chunks: "Iterable[Encoding]") -> Iterator[int]:
    """Write arrays that come in chunks of rows to one memory-mapped file each; gives how many rows are there."""
    files: dict[str, np.memmap] = {}
    filled = 0
    for chunk in chunks:
        count = 0
        for name, values in chunk.items():
            if name not in files:
                shape = (total, *values.shape[1:])
                files[name] = np.lib.format.open_memmap(path_of(name), mode="w+", dtype=values.dtype, shape=shape)
            if values.shape[1:] != files[name].shape[1:]:
                raise ValueError(f"{name} is {values.shape[1:]} and was {files[name].shape[1:]} before: must be alike")
            count = len(values)
            files[name][filled : filled + count] = values
        filled += count
        yield filled
    for file in files.values():
        file.flush()


def _open_arrays(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of files ``PREFIXname.npy``, by name, as memory maps."""
    paths = sorted(folder.glob(f"{prefix}*.npy"))
    return {path.stem.removeprefix(prefix): np.load(path, mmap_mode="r") for path in paths}


def _size(bucket: str) -> tuple[int, int]:
    height, width = bucket.split("x")
    return int(height), int(width)


def _choose_buckets(rows: pd.DataFrame, family: "Family", resolution: int, buckets: bool) -> list[str]:
    multiple = family.side_multiple
    square = bucket_sizes(resolution, multiple)[0]
    if not buckets:
        sizes = [square] * len(rows)
    elif {"width", "height"} <= set(rows.columns):
        columns = zip(rows["width"], rows["height"], strict=True)
        sizes = [choose_bucket(width, height, resolution, multiple) for width, height in columns]
    else:
        raise ValueError("to choose buckets, the rows need the columns width and height")
    return [f"{height}x{width}" for height, width in sizes]


def _number_prompts(
    rows: pd.DataFrame, template: str, most: int, templates: Sequence[str] = ()
) -> tuple[list[str], list[list[int]]]:
    """All distinct prompts, the empty one first, and for each row the numbers of its own."""
    number_of: dict[str, int] = {"": 0}
    numbers: list[list[int]] = []
    known = (rows[name].fillna("") if name in rows else [""] * len(rows) for name in ("category", "concept"))
    columns = zip(rows["caption"], rows["keywords"], rows["style"], rows["split"], *known, strict=True)
    for caption, keywords, style, split, category, concept in columns:
        own, more = ("{caption}", ()) if split == PRIOR_SPLIT else (template, templates)
        variants = prompt_variants(caption, keywords, style, own, most, more=more, category=category, concept=concept)
        numbers.append([number_of.setdefault(prompt, len(number_of)) for prompt in variants])
    return list(number_of), numbers
