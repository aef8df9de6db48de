"""The measures against what they must do on data whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.evaluation import metrics


def _cloud(count: int, seed: int, shift: float = 0.0, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size=(count, width)).astype(np.float32)


def test_kid_is_the_papers_unbiased_estimate():
    real, drawn = _cloud(5, 1).astype(np.float64), _cloud(4, 2).astype(np.float64)

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(sample):
        pairs = [kernel(x, y) for i, x in enumerate(sample) for j, y in enumerate(sample) if i != j]
        return sum(pairs) / len(pairs)

    between = np.mean([kernel(x, y) for x in real for y in drawn])
    assert metrics.kid(real, drawn).mean == pytest.approx(within(real) + within(drawn) - 2 * between)


def test_kid_is_about_zero_for_one_distribution_and_grows_with_the_shift():
    estimates = [metrics.kid(_cloud(60, seed), _cloud(60, 1000 + seed)).mean for seed in range(20)]
    assert min(estimates) < 0 < max(estimates), "unbiased: below zero as often as above"
    shifted = [metrics.kid(_cloud(60, 1), _cloud(60, 2, shift)).mean for shift in (0.2, 0.5, 1.0)]
    assert shifted == sorted(shifted) and shifted[0] > max(estimates) / 2


def test_the_standard_error_is_that_of_repeated_sampling():
    repeated = [metrics.kid(_cloud(80, seed), _cloud(80, 5000 + seed, 0.5)) for seed in range(40)]
    spread = np.std([result.mean for result in repeated])
    told = np.mean([result.standard_error for result in repeated])
    assert told == pytest.approx(spread, rel=0.4)


def test_large_sets_are_measured_by_subsets(monkeypatch):
    real, drawn = _cloud(300, 1), _cloud(300, 2, 0.3)
    whole = metrics.kid(real, drawn)
    monkeypatch.setattr(metrics, "_WHOLE_UP_TO", 100)
    subsets = metrics.kid(real, drawn, subsets=50, subset_size=100)
    assert subsets.mean == pytest.approx(whole.mean, rel=0.25)
    assert subsets == metrics.kid(real, drawn, subsets=50, subset_size=100), "the same seed, the same estimate"


@pytest.mark.parametrize("bad", [np.ones((1, 16)), np.full((5, 16), np.nan), np.ones(16)])
def test_kid_refuses_what_it_cannot_measure(bad):
    with pytest.raises(ValueError, match="drawn"):
        metrics.kid(_cloud(5, 1), bad)


def test_a_paired_difference_is_surer_than_two_figures():
    real, first = _cloud(80, 1), _cloud(80, 2, 0.6)
    second = first - 0.1
    difference = metrics.kid_difference(real, first, second)
    assert difference.mean == pytest.approx(metrics.kid(real, second).mean - metrics.kid(real, first).mean)
    assert difference.mean < 0
    assert difference.standard_error < metrics.kid(real, first).standard_error
    with pytest.raises(ValueError, match="different numbers"):
        metrics.kid_difference(real, first, second[:5])


def test_recall_counts_rows_whose_own_column_is_among_the_best():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert metrics.retrieval_ranks(similarity).tolist() == [1, 2, 3]
    assert metrics.recall_at(similarity, 1) == pytest.approx(1 / 3)
    assert metrics.recall_at(similarity, 2) == pytest.approx(2 / 3)


def test_a_picture_as_near_to_every_caption_has_found_none():
    assert metrics.recall_at(np.ones((10, 10)), 1) == 0


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan), np.ones((2, 3))])
def test_a_similarity_that_is_no_number_is_never_a_hit(bad):
    with pytest.raises(ValueError, match="similarity"):
        metrics.recall_at(bad, 1)


def test_the_nearest_training_picture_is_found_whatever_the_brightness():
    training = _cloud(30, 3)
    distances, index = metrics.nearest_distance(2.5 * training[[4, 17]], training)
    assert index.tolist() == [4, 17]
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    with pytest.raises(ValueError, match="no training pictures"):
        metrics.nearest_distance(training, training[:0])


def test_copies_are_told_from_new_pictures():
    training, honest = _cloud(200, 1), _cloud(200, 2)
    real_distances, _ = metrics.nearest_distance(_cloud(200, 3), training)
    threshold = metrics.copy_threshold(real_distances)
    copies = training[:50] + _cloud(50, 4) * 0.05
    assert metrics.copied_share(metrics.nearest_distance(copies, training)[0], threshold) == 1
    assert metrics.copied_share(metrics.nearest_distance(honest, training)[0], threshold) <= 0.05


def test_an_exact_copy_counts_even_when_real_pictures_repeat():
    assert metrics.copied_share(np.array([1e-7, 0.2]), metrics.copy_threshold(np.zeros(10))) == 0.5


def test_variety_is_none_for_one_picture_repeated():
    assert metrics.variety(np.repeat(_cloud(1, 1), 8, axis=0)) == pytest.approx(0, abs=1e-9)
    assert metrics.variety(_cloud(40, 1)) > 0.9


def _pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


def test_real_pictures_are_sound():
    assert metrics.soundness(_pictures(6)) == metrics.Soundness(0.0, 1.0, True, True)


def test_blank_pictures_are_told_whatever_their_colour():
    blank = np.zeros((4, 16, 16, 3), np.uint8) + np.arange(0, 160, 40, dtype=np.uint8)[:, None, None, None]
    blank[3] = (200, 10, 10)
    found = metrics.soundness(blank)
    assert found.blank_share == 1 and not found.pictures_are_not_blank and found.pictures_vary


def test_one_picture_for_every_prompt_is_told():
    found = metrics.soundness(np.repeat(_pictures(1), 8, axis=0))
    assert found.distinct_share == pytest.approx(1 / 8) and not found.pictures_vary and found.pictures_are_not_blank


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 100))
def test_kid_is_symmetric_and_finite(n, m, seed):
    real, drawn = _cloud(n, seed, width=4), _cloud(m, seed + 1, 0.5, width=4)
    there, back = metrics.kid(real, drawn), metrics.kid(drawn, real)
    assert there.mean == pytest.approx(back.mean)
    assert np.isfinite(there.standard_error) and there.standard_error >= 0
