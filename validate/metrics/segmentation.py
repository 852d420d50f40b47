"""Segmentation in counts: confusion matrices, true and false positives per class, mean intersection over union.

Mirrors PredsmIoU of NeCo, experiments/utils.py: the mean runs over all classes, so that a class that neither the truth nor
the prediction holds counts as IoU 0. Counts are kept per image: `compare.paired_bootstrap` resamples images.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_labels, check_shape

IGNORE = 255  # VOC's and COCO's label of pixels that count nowhere
SMALLEST_UNION = 1e-8  # NeCo's denominator for a class that is nowhere


@dataclass(frozen=True)
class ClassCounts:
    """Pixels per class, int64 (classes,)."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union per class, float64 (classes,); 0 for a class that is nowhere."""
        union = self.true_positives + self.false_positives + self.false_negatives
        return np.asarray(self.true_positives / np.maximum(union, SMALLEST_UNION))

    @property
    def miou(self) -> float:
        """The mean over all classes, in 0..1."""
        return float(np.mean(self.iou))


def confusion(
    truth: np.ndarray, prediction: np.ndarray, classes: int, predicted: int | None = None, ignore: int | None = IGNORE
) -> np.ndarray:
    """Count pixels by (true class, predicted class or cluster): int64 (classes, predicted).

    truth and prediction are integers of one shape, any number of axes; `predicted` defaults to `classes`. Where truth is
    `ignore` nothing is counted, even when that number is also a class (ADE20K ignores class 0).
    """
    predicted = classes if predicted is None else predicted
    check_shape("predicted masks", prediction, truth.shape)
    check_labels("true masks", truth, classes, ignore)
    check_labels("predicted masks", prediction, predicted)
    pairs = truth.astype(np.int64) * predicted + prediction
    if ignore is not None:
        pairs = pairs[truth != ignore]
    return np.bincount(pairs.ravel(), minlength=classes * predicted).reshape(classes, predicted)


def image_confusions(
    truth: np.ndarray, prediction: np.ndarray, classes: int, predicted: int | None = None, ignore: int | None = IGNORE
) -> np.ndarray:
    """Return one confusion matrix per image of (B, H, W) masks: int64 (B, classes, predicted)."""
    if len(truth) == 0:
        raise SaccadeError("segmentation: no image at all; give at least one")
    check_shape("predicted masks", prediction, truth.shape)
    return np.stack([confusion(*pair, classes, predicted, ignore) for pair in zip(truth, prediction, strict=True)])


def class_counts(matrix: np.ndarray) -> ClassCounts:
    """Return the counts of a square confusion matrix (classes, classes), or of the sum over leading axes."""
    total = matrix.reshape(-1, *matrix.shape[-2:]).sum(axis=0)
    hits = np.diagonal(total)
    return ClassCounts(hits.copy(), total.sum(axis=0) - hits, total.sum(axis=1) - hits)


def image_counts(matrices: np.ndarray) -> np.ndarray:
    """Return true positives, false positives and false negatives per image, int64 (B, 3, C), of matrices (B, C, C).

    All that an mIoU needs of an image, and far less of it: `mean_iou_of_counts` is its statistic for `paired_bootstrap`.
    """
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    counts = (hits, matrices.sum(axis=1) - hits, matrices.sum(axis=2) - hits)
    return np.stack(counts, axis=1).astype(np.int64)


def mean_iou_of_counts(mean_counts: np.ndarray) -> float:
    """Return the mIoU in percent of flattened mean counts (3 * classes,) as `image_counts`'s."""
    hits, extra, missed = mean_counts.reshape(3, -1)
    return float(100 * np.mean(hits / np.maximum(hits + extra + missed, SMALLEST_UNION)))


def merge_clusters(matrix: np.ndarray, mapping: np.ndarray, classes: int) -> np.ndarray:
    """Turn (..., classes, clusters) into (..., classes, classes): cluster j becomes class mapping[j]."""
    merged = np.zeros((*matrix.shape[:-1], classes), matrix.dtype)
    for cluster, label in enumerate(mapping):
        merged[..., label] += matrix[..., cluster]
    return merged
