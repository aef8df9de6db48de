"""Whether a picture shows what its prompt says: a stand-in for CLIP that needs no hub.

Belongs here: a ridge map from picture features to caption embeddings, and the linear test of style. Both are fitted on
real pictures and are only as good as their score on real held-out pictures, which every report shows beside the
models'. Call them a proxy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

RIDGE = 300.0
_STYLE_PICTURES = 2000


@dataclass(frozen=True)
class AgreementProxy:
    """A linear map from standardised picture features to caption embeddings.

    Attributes:
        mean, scale: float32 [D] of the training pictures' features.
        weights: float32 [D, E].
        caption_mean: float32 [E] of the training captions; what is common to all captions tells none apart.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    caption_mean: np.ndarray

    @classmethod
    def fit(cls, picture_vectors: np.ndarray, caption_vectors: np.ndarray, *, ridge: float = RIDGE) -> "AgreementProxy":
        """Fit by ridge regression.

        Args:
            picture_vectors: float [N, D] features of real pictures. Use other styles' pictures where there are any:
                the map must not have seen the pictures, nor the style, that it is asked about.
            caption_vectors: float [N, E] embeddings of their captions, same order.
            ridge: strength λ of the penalty, on standardised features.

        Raises:
            ValueError: no pictures, or the two differ in number.
        """
        if len(picture_vectors) != len(caption_vectors) or len(picture_vectors) < 2:
            raise ValueError(
                f"the agreement proxy needs as many captions as pictures, two or more; got {len(picture_vectors)} "
                f"pictures and {len(caption_vectors)} captions"
            )
        pictures = np.asarray(picture_vectors, np.float64)
        captions = np.asarray(caption_vectors, np.float64)
        mean, scale, caption_mean = pictures.mean(0), pictures.std(0) + 1e-6, captions.mean(0)
        standard = (pictures - mean) / scale
        gram = standard.T @ standard + ridge * np.eye(standard.shape[1])
        weights = np.linalg.solve(gram, standard.T @ (captions - caption_mean))
        return cls(*(part.astype(np.float32) for part in (mean, scale, weights, caption_mean)))

    def similarity(self, picture_vectors: np.ndarray, caption_vectors: np.ndarray) -> np.ndarray:
        """Cosine similarity of each picture to each caption.

        Args:
            picture_vectors: float [N, D].
            caption_vectors: float [M, E].

        Returns:
            float32 [N, M] in [−1, 1].
        """
        standard = (np.asarray(picture_vectors, np.float32) - self.mean) / self.scale
        told = standard @ self.weights
        wanted = np.asarray(caption_vectors, np.float32) - self.caption_mean
        return _unit(told) @ _unit(wanted).T


@dataclass(frozen=True)
class StyleTest:
    """A linear classifier of the house style against the other styles."""

    model: Any

    @classmethod
    def fit(cls, house: np.ndarray, others: np.ndarray, *, seed: int = 0) -> "StyleTest":
        """Fit a logistic regression on standardised features, both sides weighted equally.

        Args:
            house: float [N, D] features of house-style training pictures.
            others: float [M, D] features of pictures in other styles.
            seed: chooses the pictures when a side has more than 2,000.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rng = np.random.default_rng(seed)
        house, others = (np.asarray(rng.permutation(side)[:_STYLE_PICTURES], np.float32) for side in (house, others))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
        model.fit(np.concatenate([house, others]), np.repeat([1, 0], [len(house), len(others)]))
        return cls(model)

    def house_share(self, vectors: np.ndarray) -> float:
        """Share of pictures, features [N, D], that the classifier calls house style, in [0, 1]."""
        return float(self.model.predict(np.asarray(vectors, np.float32)).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
