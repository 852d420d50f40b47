"""k-means over patch features, and the standardising and PCA before it, as NeCo calls faiss in experiments/utils.py.

The plain k-means is scikit-learn's with faiss's settings; the spherical one, which it lacks, is written here, and so is the
PCA, since it takes what does not fit into memory.
Starting points come from NumPy's generator, so that clusters of one seed differ from faiss's; means over seeds compare.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from saccade.counted import counted
from saccade.validate.metrics.checks import check_enough, check_finite, check_shape
from saccade.validate.metrics.libraries import library
from saccade.validate.metrics.neighbours import BLOCK_VALUES, normalize_rows

# NeCo's experiments/utils.py, cluster() and the configs' pca_dim.
PCA_DIM = 50
ITERATIONS = 100
REDOS = 5
SMALLEST_DEVIATION = 1e-6  # of a feature, relative to its mean: below it is a constant in float32
POINTS_PER_CENTROID = 256  # faiss trains on no more rows than this for each centroid (its max_points_per_centroid)


def reduce_blocks(blocks: Callable[[], Iterable[np.ndarray]], dim: int = PCA_DIM) -> np.ndarray:
    """Standardise features (N, D) over all rows and project them on their `dim` principal components, float32 (N, dim).

    Features come in blocks (n, D) on each of two calls, so that they may be larger than memory. Standardised ones have the
    correlations as their covariances, whose eigenvectors are the components.
    """
    rows, mean, covariance = _moments(blocks())
    check_enough("patches", rows, dim, f"{dim} principal components")
    check_enough("feature dimensions", len(mean), dim, f"{dim} principal components")
    deviation = np.sqrt(np.diagonal(covariance))
    scale = 1 / np.where(deviation > SMALLEST_DEVIATION * np.abs(mean), deviation, 1)  # a constant feature stays 0
    _, vectors = np.linalg.eigh(covariance * scale * scale[:, None])
    components = scale[:, None] * vectors[:, ::-1][:, :dim]
    reduced = np.empty((rows, dim), np.float32)
    start = 0
    for block in blocks():
        reduced[start : start + len(block)] = (block - mean) @ components
        start += len(block)
    return reduced


def _moments(blocks: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of rows, and their mean (D,) and covariance (D, D) in float64.

    Moments are taken about the first block's mean, which is near enough to the whole's to lose no digits.
    """
    rows, origin, total, products = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        check_shape("features", block, (None, None))
        check_finite("features", block)
        if not rows:
            origin = block.mean(axis=0, dtype=np.float64)
            total, products = np.zeros_like(origin), np.zeros((len(origin), len(origin)))
        centred = block - origin
        rows, total, products = rows + len(block), total + centred.sum(axis=0), products + centred.T @ centred
    shift = total / max(rows, 1)
    return rows, origin + shift, products / max(rows, 1) - np.outer(shift, shift)


def kmeans(features: np.ndarray, clusters: int, seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the cluster of each row of features (N, D), int32 (N,) in 0..clusters-1; the best of five runs.

    weights: how often each row is trained on, integers (N,); without them every row once.
    """
    sample = _training_rows(features, clusters, seed, weights)
    model = library("sklearn.cluster").KMeans(
        clusters, init="random", n_init=REDOS, max_iter=ITERATIONS, tol=0, random_state=seed, algorithm="lloyd"
    )
    model.fit(sample)
    return np.asarray(model.predict(features.astype(np.float32, copy=False)), np.int32)


def spherical_kmeans(
    features: np.ndarray, clusters: int, seed: int, progress: Callable[[int], object] = lambda runs: None
) -> np.ndarray:
    """Return the cluster of each row, int32 (N,): centres of length 1, rows assigned by largest dot product.

    `progress` hears of each of the REDOS runs, of which the best is taken.
    """
    sample, random, runs = _training_rows(features, clusters, seed), np.random.default_rng(seed), []
    for _ in range(REDOS):
        runs.append(_spherical_run(sample, clusters, random))
        progress(1)
    centres = max(runs, key=lambda run: run[1])[0]
    return _assign(features.astype(np.float32, copy=False), centres)[0]


def _training_rows(features: np.ndarray, clusters: int, seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Draw at most POINTS_PER_CENTROID rows for each cluster, float32; one row comes at most as often as it weighs."""
    check_shape("features", features, (None, None))
    check_finite("features", features)
    often = np.ones(len(features), np.int64) if weights is None else weights
    check_enough("patches", int(np.count_nonzero(often)), clusters, counted(clusters, "cluster"))
    ends = np.cumsum(often)
    places = np.random.default_rng(seed).choice(ends[-1], min(ends[-1], clusters * POINTS_PER_CENTROID), replace=False)
    return np.asarray(features[np.searchsorted(ends, np.sort(places), side="right")], np.float32)


def _spherical_run(sample: np.ndarray, clusters: int, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return centres (K, D) and the sum of the rows' dot products with theirs."""
    centres = normalize_rows(sample[random.choice(len(sample), clusters, replace=False)])
    assigned, products = _assign(sample, centres)
    for _ in range(ITERATIONS):
        centres = _centres(sample, assigned, products, clusters)
        previous = assigned
        assigned, products = _assign(sample, centres)
        if np.array_equal(assigned, previous):
            break
    return centres, float(products.sum(dtype=np.float64))


def _centres(sample: np.ndarray, assigned: np.ndarray, products: np.ndarray, clusters: int) -> np.ndarray:
    """Return the mean direction of each cluster; an empty one starts anew at a row that its own centre serves worst."""
    counts = np.bincount(assigned, minlength=clusters)
    order = np.argsort(assigned, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    occupied = counts > 0
    sums = np.zeros((clusters, sample.shape[1]), np.float32)
    sums[occupied] = np.add.reduceat(sample[order], starts[occupied], axis=0)
    worst = np.argsort(products, kind="stable")[: np.count_nonzero(~occupied)]
    sums[~occupied] = sample[worst]
    return normalize_rows(sums)


def _assign(features: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's centre, int32 (N,), and its dot product with it, float32 (N,)."""
    assigned, products = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
    step = max(1, BLOCK_VALUES // len(centres))
    for start in range(0, len(features), step):
        block = slice(start, start + step)
        similarity = features[block] @ centres.T
        assigned[block] = similarity.argmax(axis=1)
        products[block] = similarity.max(axis=1)
    return assigned, products
