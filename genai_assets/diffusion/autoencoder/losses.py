"""What the autoencoder is trained for, term by term, each with its source.

Belongs here: functions of tensors. Which terms a run uses, and when, is the loop's (``training``). All of them compute
in fp32, whatever they are given.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

FeatureMaps = Callable[["Tensor"], "list[Tensor]"]
"""Maps pictures, float [N, 3, H, W] in [-1, 1], to feature maps [N, C, h, w] of some depths; gradients pass through."""

_LARGEST_ADAPTIVE_WEIGHT = 1e4
_TINY = 1e-10


def reconstruction_loss(reconstructed: "Tensor", pictures: "Tensor", kind: Literal["l1", "l2"]) -> "Tensor":
    """Mean absolute (``l1``) or squared (``l2``) error over all values; scalar."""
    error = reconstructed.float() - pictures.float()
    return error.abs().mean() if kind == "l1" else error.square().mean()


def kl_divergence(mean: "Tensor", log_variance: "Tensor") -> "Tensor":
    """Divergence of N(mean, variance) from N(0, 1) in nats, summed over a picture's latents (Kingma and Welling 2013).

    ``½ Σ (mean² + variance − 1 − log variance)``

    Args:
        mean, log_variance: [B, ...].

    Returns:
        Tensor: float32 [B], each 0 or more.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)


def perceptual_distance(feature_maps: FeatureMaps, reconstructed: "Tensor", pictures: "Tensor") -> "Tensor":
    """How differently a feature network sees two batches of pictures: 0 for equal ones, at most 4.

    As LPIPS without its learned weights of channels (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep
    Features as a Perceptual Metric"): the features at each place are scaled to length 1, their squared distance is
    averaged over places and pictures, and then over the maps. Not to be called LPIPS beside published values.

    Args:
        feature_maps: the network.
        reconstructed: [B, 3, H, W] in about [-1, 1]; gradients flow to these.
        pictures: the originals, the same shape.

    Returns:
        Tensor: scalar.
    """
    import torch

    with torch.no_grad():
        wanted = feature_maps(pictures)
    distances = [
        (_to_length_one(found) - _to_length_one(original)).square().sum(dim=1).mean()
        for found, original in zip(feature_maps(reconstructed), wanted, strict=True)
    ]
    return torch.stack(distances).mean()


def discriminator_loss(scores_of_real: "Tensor", scores_of_rendered: "Tensor") -> "Tensor":
    """Hinge loss of the discriminator (Lim and Ye 2017, "Geometric GAN"): real above 1, rendered below −1; scalar."""
    import torch

    real = torch.relu(1 - scores_of_real.float()).mean()
    rendered = torch.relu(1 + scores_of_rendered.float()).mean()
    return 0.5 * (real + rendered)


def adversarial_loss(scores_of_rendered: "Tensor") -> "Tensor":
    """What the decoder gains by being taken for real: minus the mean score; scalar."""
    return -scores_of_rendered.float().mean()


def adaptive_weight(other_losses: "Tensor", adversarial: "Tensor", last_layer: "Tensor") -> "Tensor":
    """Weight that makes the adversarial gradient as long as that of the other losses at the decoder's last layer.

    The ratio of the two gradient norms, at most 10⁴ (Esser et al. 2021, "Taming Transformers for High-Resolution Image
    Synthesis", equation 7).

    Args:
        other_losses, adversarial: scalars that depend on ``last_layer``; their graphs are kept.
        last_layer: the weight of the last layer.

    Returns:
        Tensor: scalar without gradient.
    """
    import torch

    (wanted,) = torch.autograd.grad(other_losses, last_layer, retain_graph=True)
    (found,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = wanted.float().norm() / (found.float().norm() + _TINY)
    return ratio.clamp(max=_LARGEST_ADAPTIVE_WEIGHT).detach()


def _to_length_one(features: "Tensor") -> "Tensor":
    features = features.float()
    # Inside the root, so that the gradient at a place without features is zero and not infinite.
    return features / (features.square().sum(dim=1, keepdim=True) + _TINY).sqrt()
