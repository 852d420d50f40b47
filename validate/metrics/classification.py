"""What a classifier has found of each test image: its label, and whether the truth is the first or among the first five."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP = 5  # the second number of eval_knn.py and eval_linear.py


@dataclass(frozen=True)
class Classified:
    """Per test image the predicted label, int64 (Q,), and whether the truth is the first or among the first five, bool."""

    prediction: np.ndarray
    top1_hits: np.ndarray
    top5_hits: np.ndarray

    @property
    def top1(self) -> float:
        """Share of right predictions, in percent."""
        return float(100 * np.mean(self.top1_hits))

    @property
    def top5(self) -> float:
        """Share of images whose label is among the first five, in percent; of four classes or fewer it is 100."""
        return float(100 * np.mean(self.top5_hits))


def labels_before(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return how many labels come before the true one, int64 (B,), of scores (B, classes); of equal ones the lower label."""
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < truth[:, None]
    return np.asarray(np.count_nonzero((scores > own) | ((scores == own) & lower), axis=1))
