"""Each term of the loss does what it says."""

import pytest
import torch
from torch.distributions import Normal

from genai_assets.diffusion.autoencoder.discriminator import new_discriminator
from genai_assets.diffusion.autoencoder.losses import (
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    kl_divergence,
    perceptual_distance,
    reconstruction_loss,
)
from genai_assets.diffusion.autoencoder.pictures import to_model_range
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import drawn_pictures


def test_reconstruction_is_the_mean_absolute_or_squared_error():
    pictures = torch.zeros(2, 3, 4, 4)
    assert reconstruction_loss(pictures + 0.5, pictures, "l1").item() == 0.5
    assert reconstruction_loss(pictures + 0.5, pictures, "l2").item() == 0.25
    assert reconstruction_loss(pictures, pictures, "l1").item() == 0


def test_kl_is_the_closed_form_and_zero_for_a_standard_normal():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    expected = torch.distributions.kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(kl_divergence(mean, log_variance), expected.sum(dim=(1, 2, 3)), rtol=1e-5)
    assert kl_divergence(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)).tolist() == [0, 0]


def test_kl_agrees_with_the_stock_autoencoders_own():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    torch.manual_seed(0)
    latents = DiagonalGaussianDistribution(torch.randn(3, 8, 2, 2))
    assert torch.allclose(kl_divergence(latents.mean, latents.logvar), latents.kl(), rtol=1e-5)


def test_perceptual_distance_is_zero_for_equal_pictures_and_grows_with_blur(perceptual):
    pictures = to_model_range(drawn_pictures("train"))
    distances = [
        perceptual_distance(perceptual, torch.nn.functional.avg_pool2d(pictures, size, 1, size // 2), pictures).item()
        for size in (1, 3, 5)
    ]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2] < 4


def test_the_gradient_of_the_perceptual_distance_reaches_the_pictures_and_no_weight(perceptual):
    pictures = to_model_range(drawn_pictures("train"))
    guess = (pictures * 0.9).requires_grad_()
    distance = perceptual_distance(perceptual, guess, pictures)
    distance.backward()
    assert guess.grad is not None and guess.grad.isfinite().all() and guess.grad.abs().sum() > 0
    with torch.no_grad():
        better = perceptual_distance(perceptual, guess - 1e-3 * guess.grad / guess.grad.abs().max(), pictures)
    assert better < distance
    assert all(weight.grad is None for weight in perceptual._network.parameters())


def test_places_without_any_feature_do_not_break_the_gradient():
    guess = torch.zeros(1, 3, 4, 4, requires_grad=True)
    perceptual_distance(lambda pictures: [pictures * 1.0], guess, torch.ones(1, 3, 4, 4)).backward()
    assert guess.grad is not None and guess.grad.isfinite().all()


def test_hinge_losses_are_as_computed_by_hand():
    real, rendered = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss(real, rendered).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 2) / 2))
    assert adversarial_loss(rendered).item() == pytest.approx(1.0)
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == 1, "it cannot tell"


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 3, 3, padding=1)
    features, wanted = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 16, 16)
    discriminator = new_discriminator(width=8, layers=1, seed=0)

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        rendered = layer(features)
        return (rendered - wanted).square().mean(), adversarial_loss(discriminator(rendered))

    norms = []
    for number in (0, 1):
        layer.zero_grad()
        losses()[number].backward()
        assert layer.weight.grad is not None
        norms.append(layer.weight.grad.norm().item())
    layer.zero_grad()
    other, adversarial = losses()
    weight = adaptive_weight(other, adversarial, layer.weight)
    assert weight.item() == pytest.approx(norms[0] / norms[1], rel=1e-5)
    assert not weight.requires_grad and layer.weight.grad is None
    (weight * adversarial).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.norm().item() == pytest.approx(norms[0], rel=1e-4), "as long as the other losses' gradient"


def test_the_adaptive_weight_of_an_adversary_without_gradient_is_bounded():
    last = torch.ones(3, requires_grad=True)
    assert adaptive_weight(last.sum(), (last * 0).sum(), last).item() == 1e4
