"""The extractor as a perceptual loss and a distance: the same network, open to gradients, fit to be sent."""

import pickle

import numpy as np
import pytest
import torch

from genai_assets.evaluation import metrics
from genai_assets.evaluation.features import PictureFeatures
from genai_assets.evaluation.perceptual import PerceptualFeatures, PictureKid
from genai_assets_tests.evaluation.drawings import SIZE, draw_all


@pytest.fixture(scope="module")
def perceptual() -> PerceptualFeatures:
    return PerceptualFeatures()


def test_the_last_map_leads_to_the_very_features_that_the_extractor_gives(perceptual):
    pictures = draw_all()[:16]
    model_range = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    network = perceptual._network
    with torch.no_grad():
        head = network._swish(network._bn1(network._conv_head(perceptual(model_range)[-1])))
    found = head.mean((2, 3)).numpy()
    np.testing.assert_allclose(found, PictureFeatures(resolution=SIZE).extract(pictures), atol=1e-3)


def test_maps_are_of_five_depths_and_let_gradients_through(perceptual):
    pictures = torch.zeros(2, 3, 64, 64, requires_grad=True)
    maps = perceptual(pictures)
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)
    ]  # fmt: skip
    for found in maps:
        (gradient,) = torch.autograd.grad(found.sum(), pictures, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert not any(weight.requires_grad for weight in perceptual._network.parameters())


def test_pictures_too_small_for_the_network_are_refused(perceptual):
    with pytest.raises(ValueError, match="32 px or more"):
        perceptual(torch.zeros(1, 3, 31, 64))


def test_both_can_be_sent_to_another_process_after_use_without_their_weights(perceptual):
    perceptual(torch.zeros(1, 3, 32, 32))
    assert len(pickle.dumps(perceptual)) < 1000
    assert len(pickle.loads(pickle.dumps(perceptual))(torch.zeros(1, 3, 32, 32))) == 5
    assert pickle.loads(pickle.dumps(PictureKid(PictureFeatures(resolution=64)))).features.resolution == 64


def test_the_distance_is_kid_of_the_extractors_features(picture_features):
    pictures = draw_all()
    one, other = pictures[:12], pictures[12:]
    expected = metrics.kid(picture_features.extract(one), picture_features.extract(other)).mean
    assert PictureKid(picture_features)(one, other) == expected
