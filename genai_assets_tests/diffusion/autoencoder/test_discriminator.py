"""The discriminator: the size of its patches, its weights from its seed, and whether it learns to tell."""

import pytest
import torch

from genai_assets.diffusion.autoencoder.discriminator import new_discriminator, patch_side, smallest_side
from genai_assets.diffusion.autoencoder.losses import discriminator_loss
from genai_assets.diffusion.autoencoder.pictures import to_model_range
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import drawn_pictures


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_looks_at_a_patch_of_the_promised_side(layers, side):
    assert patch_side(layers) == side
    network = new_discriminator(width=8, layers=layers, seed=0)
    # Group norm looks at the whole picture by its mean and deviation; what is asked here is the convolutions' reach.
    convolutions = torch.nn.Sequential(*[part for part in network if isinstance(part, torch.nn.Conv2d)])
    pictures = torch.zeros(1, 3, 128, 128, requires_grad=True)
    scores = convolutions(pictures)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert pictures.grad is not None
    seen = pictures.grad[0].abs().sum(dim=(0, 1)).nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == side


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_gets_one_score_and_a_smaller_one_none(layers):
    network, side = new_discriminator(width=8, layers=layers, seed=0), smallest_side(layers)
    assert network(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 2**layers, side - 2**layers))


def test_its_weights_come_from_its_seed_alone():
    torch.manual_seed(1)
    one = new_discriminator(width=8, layers=2, seed=3).state_dict()
    torch.manual_seed(2)
    same, other = (new_discriminator(width=8, layers=2, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_it_keeps_nothing_but_weights():
    assert list(new_discriminator(width=8, layers=2, seed=0).buffers()) == []


def test_it_learns_to_tell_real_pictures_from_blurred_ones_that_it_never_saw():
    def blurred(pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)

    network = new_discriminator(width=16, layers=2, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.5, 0.9))
    real, unseen = (to_model_range(drawn_pictures(split)) for split in ("train", "validation"))
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator_loss(network(real), network(blurred(real)))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5, "1 is what guessing costs"
    with torch.no_grad():
        assert discriminator_loss(network(unseen), network(blurred(unseen))) < 0.5
