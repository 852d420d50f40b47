"""Segmentation in counts: confusion matrices, true and false positives per class, mean intersection over union.

Mirrors PredsmIoU of NeCo, experiments/utils.py: the mean runs over all classes, so that a class that neither the truth nor
the prediction holds counts as IoU 0. Counts are kept per image: `compare.paired_bootstrap` resamples images. They are three
numbers a class; of ADE20K's 2,000 images that is 4 MB, where confusion matrices of int64 would be 365 MB.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_labels, check_shape

IGNORE = 255  # VOC's and COCO's label of pixels that count nowhere
SMALLEST_UNION = 1e-8  # NeCo's denominator for a class that is nowhere


@dataclass(frozen=True)
class ClassCounts:
    """Pixels per class over all images, int64 (classes,)."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray

    @classmethod
    def of_images(cls, counts: np.ndarray) -> ClassCounts:
        """Return the sum of images' counts (B, 3, classes)."""
        return cls(*counts.sum(axis=0, dtype=np.int64))

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


def image_confusions(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int | None = IGNORE) -> np.ndarray:
    """Return the confusion matrix of each image of (B, H, W) masks: int32 (B, classes, classes), by true class first."""
    matrices = [confusion(*pair, classes, ignore=ignore) for pair in _pairs(truth, prediction)]
    return np.stack(matrices).astype(np.int32)


def image_counts(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int | None = IGNORE) -> np.ndarray:
    """Return true positives, false positives and false negatives of each image of (B, H, W) masks: int32 (B, 3, classes).

    All that an mIoU needs of an image; `mean_iou_of_counts` is its statistic for `paired_bootstrap`.
    """
    diagonal = np.arange(classes)
    return np.stack([
        matched_counts(confusion(*pair, classes, ignore=ignore)[None], diagonal)[0] for pair in _pairs(truth, prediction)
    ])  # fmt: skip


def matched_counts(matrices: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """Return the counts, int32 (B, 3, classes), of confusion matrices (B, classes, classes) of which the predicted class j
    stands for the class mapping[j], one for one.
    """
    predicted = np.argsort(mapping)  # which predicted class stands for each class
    hits = matrices[:, np.arange(len(predicted)), predicted]
    counts = (hits, matrices.sum(axis=1)[:, predicted] - hits, matrices.sum(axis=2) - hits)
    return np.stack(counts, axis=1).astype(np.int32)


def mean_iou_of_counts(mean_counts: np.ndarray) -> float:
    """Return the mIoU in percent of flattened mean counts (3 * classes,) as `image_counts`'s."""
    return 100 * ClassCounts(*mean_counts.reshape(3, -1)).miou


def _pairs(truth: np.ndarray, prediction: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the two masks of each image."""
    if len(truth) == 0:
        raise SaccadeError("segmentation: no image at all; give at least one")
    check_shape("predicted masks", prediction, truth.shape)
    yield from zip(truth, prediction, strict=True)
