"""The agreement proxy and the style test, on real features of drawn pictures."""

import numpy as np
import pytest

from genai_assets.evaluation.agreement import AgreementProxy, StyleTest
from genai_assets.evaluation.metrics import recall_at
from genai_assets_tests.evaluation.drawings import CAPTIONS, draw_all


def test_a_proxy_taught_on_another_style_reads_pictures_it_never_saw(picture_features, text_features):
    captions = text_features.extract(CAPTIONS)
    taught = [picture_features.extract(draw_all("outlined", shift)) for shift in (-2, 0, 2)]
    proxy = AgreementProxy.fit(np.concatenate(taught), np.concatenate([captions] * 3))
    similarity = proxy.similarity(picture_features.extract(draw_all("flat")), captions)
    assert similarity.shape == (24, 24) and abs(similarity).max() <= 1.0001
    assert recall_at(similarity, 5) > 0.5, "chance is 0.21"

    shuffled = proxy.similarity(picture_features.extract(draw_all("flat")[::-1].copy()), captions)
    assert recall_at(shuffled, 5) < recall_at(similarity, 5)


def test_pictures_and_captions_must_be_as_many():
    with pytest.raises(ValueError, match="3 pictures and 2 captions"):
        AgreementProxy.fit(np.ones((3, 4)), np.ones((2, 4)))


def test_the_style_test_tells_the_house_style(picture_features):
    house, others = (
        np.concatenate([picture_features.extract(draw_all(style, shift)) for shift in (-2, 2)])
        for style in ("flat", "outlined")
    )
    test = StyleTest.fit(house, others)
    assert test.house_share(picture_features.extract(draw_all("flat"))) > 0.9
    assert test.house_share(picture_features.extract(draw_all("outlined"))) < 0.1
