"""The adversary: a small network that judges patches of a picture, real or rendered.

Belongs here: its shape and its first weights. What its verdict is worth belongs to ``losses``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_MOST_WIDENING = 8
_GROUP = 8


def new_discriminator(*, width: int, layers: int, seed: int) -> "nn.Sequential":
    """A PatchGAN (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks").

    ``layers`` strided convolutions of 4 × 4, each twice as wide as the one before (up to eight times the first), one
    more without stride, and one that gives a score for every patch. The paper's batch norm is a group norm here, which
    keeps no running figures (its state is its weights) and does not mind a batch of one.

    Args:
        width: channels of the first layer, a multiple of 8.
        layers: strided layers, 1 or more; see :func:`patch_side`.
        seed: of the first weights, normal with a deviation of 0.02.

    Returns:
        nn.Sequential: maps pictures [N, 3, H, W] to scores [N, 1, h, w]; higher is more real.
    """
    import torch
    from torch import nn

    def block(inside: int, outside: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 4, stride=stride, padding=1, bias=False)
        return [convolution, nn.GroupNorm(outside // _GROUP, outside), nn.LeakyReLU(0.2)]

    widths = [width * min(2**layer, _MOST_WIDENING) for layer in range(layers + 1)]
    parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for layer in range(1, layers):
        parts += block(widths[layer - 1], widths[layer], stride=2)
    parts += [*block(widths[-2], widths[-1], stride=1), nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)]
    network = nn.Sequential(*parts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in network:
            if isinstance(part, nn.Conv2d):
                part.weight.normal_(0, 0.02, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
    return network


def patch_side(layers: int) -> int:
    """Pixels a side of the patch that one score looks at."""
    side = 4 + 3  # the score, and the layer without stride before it
    for _ in range(layers):
        side = 2 * side + 2
    return side


def smallest_side(layers: int) -> int:
    """Pixels a side of the smallest picture that gets a score: the two last layers take one off each."""
    return 3 * 2**layers
