"""Cluster-based foreground extraction (CBFE): clusters of patches that attention mostly calls foreground are foreground.

Mirrors cluster_based_fg_extraction and the clustering after it in NeCo's experiments/fully_unsup_seg/fully_unsup_seg.py.
The cut between background and foreground is chosen with the training masks, as upstream chooses it. A score is
`overcluster.score_clusters(masks, labels, 21, 21)` of the K = 20 clusters and the background (VOC).
"""
from __future__ import annotations

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_labels, check_shape
from saccade.validate.metrics.clusters import kmeans
from saccade.validate.metrics.resize import resize_nearest

# fully_unsup_seg.py: its options and the numbers in find_good_threshold.
CLUSTERS = 200
SEED = 0
MAP_SIZE = (100, 100)
BACKGROUND_SHARES = (0.55, 0.75)  # cuts are tried from this share of clusters called background up to below that
THRESHOLD_STEP = 0.05
FEWEST_CLUSTERS = 3  # that leave a cut to try
OBJECTS = 20  # K of the CBFE score on VOC: its classes without the background


def cluster_precisions(clusters: np.ndarray, noisy: np.ndarray, count: int) -> np.ndarray:
    """Return each cluster's share of pixels in the noisy foreground, averaged over the images it is in: float64 (count,).

    clusters: integers (B, H, W), each of 0..count-1 in one image at least. noisy: bool of the same shape.
    """
    check_shape("noisy foreground", noisy, clusters.shape)
    pixels, hits = _histograms(clusters, noisy, count)
    check_enough("clusters that an image shows", int(np.count_nonzero(pixels.any(axis=0))), count, "the precision of each")
    return np.asarray((hits / np.maximum(pixels, 1)).sum(axis=0) / np.count_nonzero(pixels, axis=0))


def choose_threshold(clusters: np.ndarray, truth: np.ndarray, precisions: np.ndarray) -> float:
    """Return the precision from which clusters are foreground: the best cut on the training masks, rounded to 0.05.

    clusters, truth: integers (B, H, W) of one size; all but label 0 of truth is foreground, the ignored 255 included.
    Best is the largest IoU of the foreground, averaged over images; of equal cuts the one with more background.
    """
    check_shape("train masks", truth, clusters.shape)
    count = len(precisions)
    order = np.argsort(precisions, kind="stable")
    pixels, hits = _histograms(clusters, truth != 0, count)
    cuts = range(int(BACKGROUND_SHARES[0] * count), int(BACKGROUND_SHARES[1] * count))
    if not cuts:
        raise SaccadeError(f"foreground: {count} clusters leave no cut to try; give at least {FEWEST_CLUSTERS}")
    scores = [_foreground_iou(pixels, hits, order[cut:]) for cut in cuts]
    best = max(range(len(scores)), key=lambda place: (scores[place], place))
    steps = np.arange(0, 1, THRESHOLD_STEP)
    return float(steps[np.argmin(np.abs(steps - precisions[order[cuts[best]]]))])


def foreground_masks(clusters: np.ndarray, precisions: np.ndarray, threshold: float) -> np.ndarray:
    """Return the pixels of clusters at or above the threshold, bool of the shape of `clusters`.

    The precisions are those of the same split: training and validation clusters are judged each by their own attention.
    """
    chosen = precisions >= threshold
    if not chosen.any():
        best = f"the best has {precisions.max():.3f}"
        raise SaccadeError(
            f"foreground: no cluster reaches the precision {threshold:.2f} that the training masks ask for ({best}); look at"
            " the maps of saccade run --attention"
        )
    return np.asarray(chosen[clusters])


def foreground_clusters(
    features: np.ndarray, grid: tuple[int, int], masks: np.ndarray, clusters: int, seed: int
) -> np.ndarray:
    """Cluster the foreground alone: int32 (B, H, W), background being number `clusters`.

    features: reduced patch features (B, gh*gw, d). masks: bool (B, H, W). A patch weighs as many pixels of the foreground
    as it covers, as if its feature had been enlarged by nearest.
    """
    check_shape("features", features, (len(masks), grid[0] * grid[1], None))
    cells = grid[0] * grid[1]
    cell_of = resize_nearest(np.arange(cells).reshape(grid), masks.shape[1:])
    weights = np.concatenate([np.bincount(cell_of[mask], minlength=cells) for mask in masks])
    found = kmeans(features.reshape(-1, features.shape[-1]), clusters, seed, weights)
    maps = resize_nearest(found.reshape(-1, *grid), masks.shape[1:])
    maps[~masks] = clusters
    return maps


def mean_foreground_iou(masks: np.ndarray, truth: np.ndarray) -> float:
    """Return the IoU of foreground masks, bool (B, H, W), averaged over images; all but label 0 of truth is foreground."""
    return _foreground_iou(*_histograms(masks.astype(np.uint8), truth != 0, 2), np.array([1]))


def _foreground_iou(pixels: np.ndarray, hits: np.ndarray, chosen: np.ndarray) -> float:
    """Return the mean over images of the IoU that the chosen clusters have with the truth; both empty counts as 1."""
    predicted, intersection = pixels[:, chosen].sum(axis=1), hits[:, chosen].sum(axis=1)
    union = predicted + hits.sum(axis=1) - intersection
    return float(np.mean(np.where(union == 0, 1, intersection / np.maximum(union, 1))))


def _histograms(clusters: np.ndarray, marked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return per image how many pixels each cluster has, and how many of them are marked: int64 (B, count) both."""
    check_labels("clusters", clusters, count)
    pixels = [np.bincount(image.ravel(), minlength=count) for image in clusters]
    hits = [np.bincount(image[mask], minlength=count) for image, mask in zip(clusters, marked, strict=True)]
    return np.stack(pixels), np.stack(hits)
