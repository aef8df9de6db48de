"""The feature extractor as other rooms need it: feature maps that gradients pass through, and a distance of pictures.

Belongs here: callables that carry no room's types but tensors and arrays, so that whoever trains needs to know neither
the extractor nor the metrics. Both can be sent to another process; the weights are read at the first use.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_assets.evaluation import metrics
from genai_assets.evaluation.features import PictureFeatures, picture_network

if TYPE_CHECKING:
    from torch import Tensor

_LAST_BLOCKS = (0, 2, 4, 10, 15)
"""The last blocks of EfficientNet-lite0 before each halving: maps of 1/2, 1/4, 1/8, 1/16 and 1/32 of the side."""
_SMALLEST_SIDE = 32


class PerceptualFeatures:
    """EfficientNet-lite0's feature maps at five depths, from lines and colours to parts of things.

    Its weights are frozen; gradients pass through to the pictures.
    """

    def __call__(self, pictures: "Tensor") -> "list[Tensor]":
        """Feature maps, on the device of the pictures.

        Args:
            pictures: float [N, 3, H, W] RGB in [-1, 1], 32 or more pixels a side.

        Returns:
            list: [N, 16, H/2, W/2], [N, 24, H/4, W/4], [N, 40, H/8, W/8], [N, 112, H/16, W/16], [N, 320, H/32, W/32].

        Raises:
            FeatureModelMissing: the packages with network and weights are not installed.
            ValueError: the pictures are too small.
        """
        if min(pictures.shape[2:]) < _SMALLEST_SIDE:
            raise ValueError(
                f"a perceptual loss needs pictures of {_SMALLEST_SIDE} px or more a side; they are smaller"
            )
        network = self._network.to(pictures.device)
        values = (pictures * 127.5 + 0.5) / 128  # (x − 127) / 128 of x = (p + 1) · 127.5, the values 0–255
        values = network._swish(network._bn0(network._conv_stem(values)))
        maps = []
        for number, block in enumerate(network._blocks):
            values = block(values)
            if number in _LAST_BLOCKS:
                maps.append(values)
        return maps

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _network(self) -> Any:
        return picture_network().requires_grad_(False)


class PictureKid:
    """KID of two sets of pictures, by the project's extractor.

    Args:
        features: the extractor.
    """

    def __init__(self, features: PictureFeatures):
        self.features = features

    def __call__(self, real: np.ndarray, drawn: np.ndarray) -> float:
        """KID (see :func:`metrics.kid`) of uint8 [N, H, W, 3] and [M, H, W, 3], of different pictures."""
        return metrics.kid(self.features.extract(real), self.features.extract(drawn)).mean
