"""Weighted k-NN classification of image features, as DINO's and PW-Self's eval_knn.py vote.

Every neighbour gives its label exp(cosine / temperature). Equal votes go to the lower label.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_labels, check_shape
from saccade.validate.metrics.classification import TOP, Classified, labels_before
from saccade.validate.metrics.neighbours import nearest

# eval_knn.py, defaults of --nb_knn and --temperature.
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
BLOCK_VALUES = 1 << 22  # votes held at once: 32 MiB of float64


@dataclass(frozen=True)
class KnnResult(Classified):
    """The votes of the k nearest neighbours; the first five labels are min(5, k)."""

    k: int


def evaluate_knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[KnnResult]:
    """Classify test (Q, D) by train (N, D) features, float32 and not yet normalised; labels are integers 0..classes-1.

    The neighbours are sought once, for the largest k; `progress` hears how many training rows have been compared. Returns
    one result per k, in the order of `ks`.
    """
    check_shape("train labels", train_labels, (len(train_features),))
    check_shape("test labels", test_labels, (len(test_features),))
    check_labels("train labels", train_labels, classes)
    check_labels("test labels", test_labels, classes)
    check_enough("test images", len(test_features), 1, "k-NN")
    if not ks or min(ks) < 1:
        raise SaccadeError(f"k-NN: k is {tuple(ks)}; give one or more whole numbers from 1")
    similarities, rows = nearest(test_features, train_features, max(ks), cosine=True, progress=progress)
    labels = train_labels[rows]
    return [_result(similarities[:, :k], labels[:, :k], test_labels, classes, temperature) for k in ks]


def knn_votes(similarities: np.ndarray, labels: np.ndarray, classes: int, temperature: float = TEMPERATURE) -> np.ndarray:
    """Return the votes (Q, classes), float64, of neighbours with cosines, descending, and labels (Q, k).

    Relative to the nearest neighbour's, which is 1: exp(1 / temperature) itself is infinite for the smallest temperatures.
    """
    cosines = similarities.astype(np.float64)
    with np.errstate(over="ignore"):  # to -infinity, whose exponential is 0
        weights = np.exp((cosines - cosines[:, :1]) / temperature)
    places = labels + classes * np.arange(len(labels))[:, None]
    votes = np.bincount(places.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return np.asarray(votes.reshape(len(labels), classes))


def _result(
    similarities: np.ndarray, labels: np.ndarray, truth: np.ndarray, classes: int, temperature: float
) -> KnnResult:
    k = labels.shape[1]
    predictions, ranks = [], []
    step = max(1, BLOCK_VALUES // classes)
    for start in range(0, len(truth), step):
        block = slice(start, start + step)
        votes = knn_votes(similarities[block], labels[block], classes, temperature)
        predictions.append(votes.argmax(axis=1))
        ranks.append(_ranks(votes, truth[block]))
    rank = np.concatenate(ranks)
    return KnnResult(np.concatenate(predictions), rank < 1, rank < min(TOP, k), k)


def _ranks(votes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return how many labels come before the true one; a label without any vote comes after all.

    The official sort puts the voteless labels in an arbitrary order, so that some would enter the first five by chance.
    """
    has_votes = np.take_along_axis(votes, truth[:, None], axis=1)[:, 0] > 0
    return np.where(has_votes, labels_before(votes, truth), votes.shape[1])
