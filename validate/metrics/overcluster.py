"""Overclustering: clusters of patch features matched to the classes of masks, scored by mIoU.

Mirrors NeCo's experiments/overcluster/eval_overcluster.py and PredsmIoU of experiments/utils.py: with as many clusters as
classes the matching is one to one (Hungarian, on IoU); of other numbers each cluster becomes its best class by precision.
PredsmIoU can also match by IoU, or other numbers one to one, which no protocol of the three projects asks for.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_shape
from saccade.validate.metrics.libraries import library
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import IGNORE, SMALLEST_UNION, ClassCounts, confusion, image_counts

# eval_overcluster.py and its configs.
MASK_SIZE = (100, 100)
SEEDS = (0, 1, 2, 3, 4)
BACKGROUND = 0  # what one-to-one matching leaves over
# "protocol": hungarian for as many clusters as classes, precision for other numbers.
Matching: TypeAlias = Literal["protocol", "hungarian", "precision", "iou"]
BATCH = 64  # images whose maps are held at the masks' size at once


@dataclass(frozen=True)
class ClusterResult:
    """One clustering against the masks: mapping[cluster] is its class, integers (clusters,); counts are of each image after
    it, int32 (B, 3, classes), as `segmentation.image_counts` gives them.
    """

    mapping: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> ClassCounts:
        """Pixels per class over all images."""
        return ClassCounts.of_images(self.counts)


def score_clusters(
    truth: np.ndarray,
    found: np.ndarray,
    classes: int,
    clusters: int,
    ignore: int | None = IGNORE,
    matching: Matching = "protocol",
) -> ClusterResult:
    """Match clusters to classes and count pixels; both maps are integers, truth (B, H, W) and found (B, h, w).

    Clusters are brought to the masks' size by nearest, as upstream brings both to MASK_SIZE.
    """
    check_shape("cluster maps", found, (len(truth), None, None))
    # Matched on the sum, and counted again after it: a matrix of all clusters for each image would take gigabytes.
    matrix = np.zeros((classes, clusters), np.int64)
    for masks, maps in _enlarged(truth, found):
        matrix += confusion(masks, maps, classes, clusters, ignore)
    mapping = match_clusters(matrix, ignore, matching)
    counts = [image_counts(masks, mapping[maps], classes, ignore) for masks, maps in _enlarged(truth, found)]
    return ClusterResult(mapping, np.concatenate(counts))


def match_clusters(
    matrix: np.ndarray, ignore: int | None = IGNORE, matching: Matching = "protocol"
) -> np.ndarray:
    """Return the class of each cluster, int64 (clusters,), by the pixels of all images (classes, clusters)."""
    if not matrix.any():
        raise SaccadeError(f"clustering: every pixel is ignored ({ignore}), so nothing can be matched; look at the masks")
    if matching == "protocol":
        matching = "hungarian" if matrix.shape[0] == matrix.shape[1] else "precision"
    matchers = {"hungarian": match_hungarian, "precision": match_precision, "iou": match_iou}
    return matchers[matching](matrix)


def match_hungarian(matrix: np.ndarray) -> np.ndarray:
    """Return the class of each cluster, int64 (clusters,), one to one at the largest sum of IoU; the rest is background."""
    labels, clusters = library("scipy.optimize").linear_sum_assignment(1 - _iou(matrix))
    mapping = np.full(matrix.shape[1], BACKGROUND, np.int64)
    mapping[clusters] = labels
    return mapping


def match_precision(matrix: np.ndarray) -> np.ndarray:
    """Return the class that most pixels of each cluster have, int64 (clusters,); of equal ones the lower.

    A cluster without a pixel becomes class 0, which changes no count.
    """
    return np.asarray(matrix.argmax(axis=0), np.int64)


def match_iou(matrix: np.ndarray) -> np.ndarray:
    """Return the class that each cluster has the largest IoU with, int64 (clusters,); of equal ones the lower."""
    return np.asarray(_iou(matrix).argmax(axis=0), np.int64)


def _iou(matrix: np.ndarray) -> np.ndarray:
    """Return the IoU of each class (row) with each cluster (column), float64; 0 where neither has a pixel."""
    union = matrix.sum(axis=0) + matrix.sum(axis=1)[:, None] - matrix
    return np.asarray(matrix / np.maximum(union, SMALLEST_UNION))


def _enlarged(truth: np.ndarray, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield masks and maps of their size, some images at a time."""
    for start in range(0, len(truth), BATCH):
        masks, maps = truth[start : start + BATCH], found[start : start + BATCH]
        yield masks, resize_nearest(maps, masks.shape[1:])
