"""The real extractors, loaded once."""

import pytest

from genai_assets.evaluation.features import PictureFeatures, TextFeatures


@pytest.fixture(scope="session")
def picture_features() -> PictureFeatures:
    return PictureFeatures(resolution=64)


@pytest.fixture(scope="session")
def text_features() -> TextFeatures:
    return TextFeatures()
