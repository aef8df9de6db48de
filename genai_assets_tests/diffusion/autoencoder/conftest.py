"""The tiny pipeline and the feature network, made once."""

from pathlib import Path

import pytest

from genai_assets.evaluation.perceptual import PerceptualFeatures
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import save_stable_diffusion


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete pipeline folder with an ``AutoencoderKL``, 32 px."""
    folder = tmp_path_factory.mktemp("stable-diffusion") / "model"
    save_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def perceptual() -> PerceptualFeatures:
    """The real feature network."""
    return PerceptualFeatures()
