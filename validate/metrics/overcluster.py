"""Overclustering: clusters of patch features matched to the classes of masks, scored by mIoU.

Mirrors NeCo's experiments/overcluster/eval_overcluster.py and PredsmIoU of experiments/utils.py: with as many clusters as
classes the matching is one to one (Hungarian, on IoU); with more, each cluster becomes its best class by precision.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_shape
from saccade.validate.metrics.clusters import PCA_DIM, kmeans, reduce_features
from saccade.validate.metrics.libraries import library
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import (
    IGNORE,
    SMALLEST_UNION,
    ClassCounts,
    class_counts,
    confusion,
    image_confusions,
)

# eval_overcluster.py and its configs.
MASK_SIZE = (100, 100)
SEEDS = (0, 1, 2, 3, 4)
BACKGROUND = 0  # what Hungarian matching leaves over becomes background


@dataclass(frozen=True)
class ClusterResult:
    """One clustering against the masks: mapping[cluster] is its class; confusions (B, classes, classes) are mapped."""

    mapping: np.ndarray
    confusions: np.ndarray
    background_share: float  # share of clusters that became background; as upstream 1 / classes for Hungarian matching

    @property
    def counts(self) -> ClassCounts:
        """Pixels per class over all images."""
        return class_counts(self.confusions)

    @property
    def miou(self) -> float:
        """Mean intersection over union over all classes, in 0..1."""
        return self.counts.miou


def overcluster(
    tokens: np.ndarray,
    grid: tuple[int, int],
    masks: np.ndarray,
    classes: int,
    clusters: int,
    seed: int,
    ignore: int = IGNORE,
    pca_dim: int = PCA_DIM,
) -> ClusterResult:
    """Cluster patch tokens (B, gh*gw, D) of all images together and score the clusters on masks (B, H, W)."""
    check_shape("tokens", tokens, (len(masks), grid[0] * grid[1], None))
    reduced = reduce_features(tokens.reshape(-1, tokens.shape[-1]), pca_dim)
    found = kmeans(reduced, clusters, seed).reshape(len(masks), *grid)
    return score_patches(masks, found, classes, clusters, ignore)


def score_patches(
    masks: np.ndarray, found: np.ndarray, classes: int, clusters: int, ignore: int = IGNORE
) -> ClusterResult:
    """Score a clustering of patches (B, gh, gw) on masks (B, H, W), with the matching that the number of clusters asks for.

    Both are brought to 100 x 100 by nearest, as upstream. The published figure is the mean over SEEDS of the clustering.
    """
    matching = "hungarian" if clusters == classes else "precision"
    truth, assigned = resize_nearest(masks, MASK_SIZE), resize_nearest(found, MASK_SIZE)
    return score_clusters(truth, assigned, classes, clusters, matching, ignore)


def score_clusters(
    truth: np.ndarray, assigned: np.ndarray, classes: int, clusters: int, matching: str, ignore: int | None = IGNORE
) -> ClusterResult:
    """Match clusters to classes by "hungarian", "precision" or "iou" and count; both maps are integers (B, H, W)."""
    # Matched on the sum, and counted again after it: a matrix of all clusters for each image would take gigabytes.
    mapping = match_clusters(confusion(truth, assigned, classes, clusters, ignore), matching, ignore)
    background = 1 / classes if matching == "hungarian" else float(np.mean(mapping == BACKGROUND))
    return ClusterResult(mapping, image_confusions(truth, mapping[assigned], classes, ignore=ignore), background)


def match_clusters(matrix: np.ndarray, matching: str, ignore: int | None = IGNORE) -> np.ndarray:
    """Return the class of each cluster, int64 (clusters,), by the pixels of all images (classes, clusters)."""
    if not matrix.any():
        raise SaccadeError(f"clustering: every pixel is ignored ({ignore}), so nothing can be matched; look at the masks")
    return match_hungarian(matrix) if matching == "hungarian" else match_greedy(matrix, matching)


def match_hungarian(matrix: np.ndarray) -> np.ndarray:
    """Return the class of each cluster, int64 (clusters,), one to one at the largest sum of IoU; the rest is background."""
    labels, matched = library("scipy.optimize").linear_sum_assignment(1 - _scores(matrix, "iou"))
    mapping = np.full(matrix.shape[1], BACKGROUND, np.int64)
    mapping[matched] = labels
    return mapping


def match_greedy(matrix: np.ndarray, score: str) -> np.ndarray:
    """Return each cluster's best class by "precision" or "iou", int64 (clusters,); equal scores go to the lower class."""
    return np.asarray(_scores(matrix, score).argmax(axis=0), np.int64)


def _scores(matrix: np.ndarray, score: str) -> np.ndarray:
    """Return how well each class (row) fits each cluster (column), float64; a cluster that never occurs fits none."""
    predicted = matrix.sum(axis=0, keepdims=True)
    if score == "precision":
        return np.asarray(matrix / np.maximum(predicted, SMALLEST_UNION))
    if score == "iou":
        return np.asarray(matrix / np.maximum(matrix.sum(axis=1, keepdims=True) + predicted - matrix, SMALLEST_UNION))
    raise SaccadeError(f"matching: {score!r} is unknown; give hungarian, precision or iou")
