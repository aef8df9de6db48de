"""The measures: distance of two sets of pictures, retrieval, near-copies, and signs of a broken model.

Belongs here: arithmetic on vectors and pixels, each measure with its source and its limits. Which pictures are compared
is ``evaluate``; what follows from a figure is ``promotion``.
"""

from dataclasses import dataclass

import numpy as np

_WHOLE_UP_TO = 4000
_BOOTSTRAPS = 200
COPY_PERCENTILE = 1.0
"""Percentile of real held-out pictures' distances to training ones; a drawn picture below it counts as a near-copy."""
_EXACT_COPY = 1e-3
_BLANK_CONTRAST = 2.0
"""Standard deviation of pixel values (0–255) below which a picture shows nothing."""
_MOST = 0.5


@dataclass(frozen=True)
class KidResult:
    """An estimate and how sure it is.

    Attributes:
        mean: unbiased squared maximum mean discrepancy; about 0 for two samples of one distribution, and then as often
            a little below 0 as above.
        standard_error: of ``mean``, same unit.
    """

    mean: float
    standard_error: float


def kid(
    real: np.ndarray, drawn: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KidResult:
    """Kernel inception distance: how far two sets of pictures are from each other as distributions.

    The unbiased squared MMD with the kernel (x·y / D + 1)³ (Bińkowski et al., "Demystifying MMD GANs", 2018). Up to
    4,000 pictures a side the estimate uses all pairs, and its error comes from a weighted bootstrap that never pairs a
    picture with itself (a plain bootstrap would be biased; this one errs on the large side where KID is near 0).
    Beyond, it is the paper's mean over random subsets.

    The figure depends on the feature extractor and the pictures' size: compare it within one table only.

    Args:
        real: float [N, D] features, two or more.
        drawn: float [M, D] features, two or more, of other pictures than ``real``.
        subsets: how many subsets, for large sets.
        subset_size: pictures a subset, for large sets.
        seed: of the bootstrap or the subsets.

    Raises:
        ValueError: fewer than two pictures, different widths, or numbers that are not finite.
    """
    real, drawn = _as_features(real, "real"), _as_features(drawn, "drawn")
    rng = np.random.default_rng(seed)
    if max(len(real), len(drawn)) > _WHOLE_UP_TO:
        size = min(subset_size, len(real), len(drawn))
        estimates = [
            _Discrepancy(rng.permutation(real)[:size], rng.permutation(drawn)[:size]).estimate() for _ in range(subsets)
        ]
        return KidResult(float(np.mean(estimates)), float(np.std(estimates, ddof=1) / np.sqrt(subsets)))
    discrepancy = _Discrepancy(real, drawn)
    resampled = discrepancy.resample(_draw_weights(rng, len(real)), _draw_weights(rng, len(drawn)))
    return KidResult(discrepancy.estimate(), float(resampled.std(ddof=1)))


def kid_difference(real: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> KidResult:
    """KID of ``second`` minus KID of ``first``, both to the same ``real``; below 0, ``second`` is nearer.

    Row i of ``first`` and of ``second`` answer the same prompt, so the bootstrap draws them together: the error is that
    of the difference, usually much smaller than the two errors added.

    Args:
        real: float [N, D] features.
        first, second: float [M, D] features, M at most 4,000.
    """
    real, first, second = _as_features(real, "real"), _as_features(first, "first"), _as_features(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"the two models drew different numbers of pictures: {len(first)} and {len(second)}")
    rng = np.random.default_rng(seed)
    real_weights, drawn_weights = _draw_weights(rng, len(real)), _draw_weights(rng, len(first))
    one, two = _Discrepancy(real, first), _Discrepancy(real, second)
    differences = two.resample(real_weights, drawn_weights) - one.resample(real_weights, drawn_weights)
    return KidResult(two.estimate() - one.estimate(), float(differences.std(ddof=1)))


def retrieval_ranks(similarity: np.ndarray) -> np.ndarray:
    """Rank of each row's own column, 1 the best, when columns are sorted by similarity.

    Ties count against the row: a picture that is as near to every caption has found none.

    Args:
        similarity: float [N, N]; row i belongs with column i.

    Returns:
        int [N], each in [1, N].

    Raises:
        ValueError: not square, or not finite.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, got {list(similarity.shape)}")
    if not np.isfinite(similarity).all():
        raise ValueError("similarity has numbers that are not finite")
    return (similarity >= np.diag(similarity)[:, None]).sum(1)


def recall_at(similarity: np.ndarray, k: int) -> float:
    """Share of rows whose own column is among their ``k`` most similar, in [0, 1]; chance is about k / N."""
    return float((retrieval_ranks(similarity) <= k).mean())


def nearest_distance(drawn: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each drawn picture, the nearest training picture by cosine distance of features.

    Args:
        drawn: float [N, D].
        training: float [M, D], one or more.

    Returns:
        tuple: distances float64 [N] in [0, 2], and indices into ``training``, int [N].
    """
    if not len(training):
        raise ValueError("there are no training pictures to compare with")
    similarity = _normalise(drawn) @ _normalise(training).T
    index = similarity.argmax(1)
    return np.clip(1 - similarity[np.arange(len(drawn)), index], 0, 2), index


def copy_threshold(real_distances: np.ndarray, percentile: float = COPY_PERCENTILE) -> float:
    """Distance below which a drawn picture is nearer to a training picture than real new pictures are.

    Real held-out pictures copy nothing, yet some lie near a training picture (a clock at three, a clock at four). The
    threshold is a low percentile of *their* distances, so that about 1 % of honest pictures fall below by nature. It is
    at least 0.001, which only the same picture reaches. This finds near-copies of a whole picture, nothing subtler: a
    copied detail or composition passes.

    Args:
        real_distances: float [N] of real held-out pictures to training ones (:func:`nearest_distance`).
        percentile: in [0, 100].
    """
    return max(float(np.percentile(real_distances, percentile)), _EXACT_COPY)


def copied_share(distances: np.ndarray, threshold: float) -> float:
    """Share of pictures nearer to a training picture than ``threshold``, in [0, 1]."""
    return float((np.asarray(distances) < threshold).mean())


def paired_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine distance of row i to row i, float64 [N] in [0, 2]."""
    return np.clip(1 - (_normalise(first) * _normalise(second)).sum(1), 0, 2)


def variety(vectors: np.ndarray) -> float:
    """Mean cosine distance between two different pictures of a set; 0 when all are one picture."""
    unit = _normalise(vectors)
    count = len(unit)
    if count < 2:
        raise ValueError("variety needs two pictures or more")
    total = unit.sum(0)
    return float(max(0.0, 1 - (total @ total - count) / (count * (count - 1))))


@dataclass(frozen=True)
class Soundness:
    """Whether pictures are pictures at all; what a diverged or collapsed model fails.

    Attributes:
        blank_share: share of pictures of nearly one colour, in [0, 1].
        distinct_share: number of different pictures over number of pictures, in (0, 1].
        pictures_are_not_blank: at most half are blank.
        pictures_vary: more than half are different from each other.
    """

    blank_share: float
    distinct_share: float
    pictures_are_not_blank: bool
    pictures_vary: bool


def soundness(pictures: np.ndarray) -> Soundness:
    """Look for blank and identical pictures.

    Args:
        pictures: uint8 [N, H, W, 3], two or more. (A not-a-number has no uint8; drawn so, it comes out blank.)
    """
    # Per picture, the spread of pixels about the picture's own mean colour: a plain red is as blank as a white.
    spread = pictures.astype(np.float32).std((1, 2)).max(1)
    blank = float((spread < _BLANK_CONTRAST).mean())
    distinct = len({picture.tobytes() for picture in pictures}) / len(pictures)
    return Soundness(blank, distinct, blank <= _MOST, distinct > _MOST)


class _Discrepancy:
    """The three kernel matrices of two samples; the diagonals are dropped, as the unbiased estimate wants it."""

    def __init__(self, real: np.ndarray, drawn: np.ndarray):
        self._within_real = _kernel(real, real)
        self._within_drawn = _kernel(drawn, drawn)
        self._between = _kernel(real, drawn)
        np.fill_diagonal(self._within_real, 0)
        np.fill_diagonal(self._within_drawn, 0)

    def estimate(self) -> float:
        n, m = self._between.shape
        within = self._within_real.sum() / (n * (n - 1)) + self._within_drawn.sum() / (m * (m - 1))
        return float(within - 2 * self._between.mean())

    def resample(self, real_weights: np.ndarray, drawn_weights: np.ndarray) -> np.ndarray:
        """The estimate for each row of weights [B, N] and [B, M]: how often each picture was drawn."""
        between = ((real_weights @ self._between) * drawn_weights).sum(1)
        between /= real_weights.sum(1) * drawn_weights.sum(1)
        return _within(self._within_real, real_weights) + _within(self._within_drawn, drawn_weights) - 2 * between


def _within(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return ((weights @ kernel) * weights).sum(1) / pairs


def _draw_weights(rng: np.random.Generator, count: int) -> np.ndarray:
    weights = rng.multinomial(count, np.full(count, 1 / count), size=_BOOTSTRAPS).astype(np.float64)
    # All of one picture leaves no pair; possible for two or three pictures only.
    weights[(weights > 0).sum(1) < 2] = 1
    return weights


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _as_features(vectors: np.ndarray, name: str) -> np.ndarray:
    exact = np.asarray(vectors, np.float64)
    if exact.ndim != 2 or len(exact) < 2:
        raise ValueError(f"{name} must be two or more feature vectors [N, D], got {list(exact.shape)}")
    if not np.isfinite(exact).all():
        raise ValueError(f"{name} has features that are not finite")
    return exact


def _normalise(vectors: np.ndarray) -> np.ndarray:
    exact = np.asarray(vectors, np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("feature vectors are not finite")
    return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
