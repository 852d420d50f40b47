"""Copy detection on Copydays: mAP per block of distorted copies, searched among the originals and any distractors.

Mirrors PW-Self's (and DINO's) eval_copy_detection.py and the PCA class of its utils.py.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.average_precision import average_precision
from saccade.validate.metrics.checks import check_enough, check_shape
from saccade.validate.metrics.neighbours import nearest

RETRIEVED = 20  # topk of eval_copy_detection.py
GEM_POWER = 4
GEM_FLOOR = 1e-6
WHITENING_POWER = 0.5
EIGENVALUE_FLOOR = 1e-5  # as a share of the largest
PREFIX = 4  # a strong copy and its original share so many first characters of their file names


def copy_features(cls: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return [cls, generalised mean of the patch tokens], float32 (B, 2D), of cls (B, D) and tokens (B, N, D)."""
    clamped = np.maximum(tokens.astype(np.float32, copy=False), np.float32(GEM_FLOOR))
    pooled = np.mean(clamped**GEM_POWER, axis=1) ** (1 / GEM_POWER)
    return np.concatenate([cls, pooled], axis=1).astype(np.float32)


def whiten(features: Sequence[np.ndarray], sample: np.ndarray) -> list[np.ndarray]:
    """Whiten arrays (n, D) by what `sample` (m, D), images from elsewhere, says of the features; float32.

    As upstream: the sample's mean is subtracted, but its covariance is that of the uncentred features.
    """
    check_enough("whitening images", len(sample), 2, "a covariance")
    values, vectors = np.linalg.eigh(sample.T.astype(np.float64) @ sample / len(sample))
    values = np.maximum(values, values.max() * EIGENVALUE_FLOOR)
    transform = vectors / values**WHITENING_POWER
    mean = sample.mean(axis=0)
    return [np.asarray((each - mean) @ transform, np.float32) for each in features]


def retrieve(queries: np.ndarray, database: np.ndarray, count: int = RETRIEVED) -> np.ndarray:
    """Return the `count` most alike rows of database (N, D) for queries (Q, D), best first, int64 (Q, count)."""
    return nearest(queries, database, min(count, len(database)), cosine=True)[1]


def same_number_positives(count: int) -> list[np.ndarray]:
    """Return the positives of a jpegqual or crops block: query i is a copy of original i."""
    return [np.array([row]) for row in range(count)]


def strong_positives(originals: Sequence[str], queries: Sequence[str]) -> list[np.ndarray]:
    """Return the positives of the strong block, by sorted file names: the originals with the query's first characters."""
    rows = [np.flatnonzero([name[:PREFIX] == query[:PREFIX] for name in originals]) for query in queries]
    for query, found in zip(queries, rows, strict=True):
        if not len(found):
            raise SaccadeError(f"copydays: strong/{query} has no original whose name begins with {query[:PREFIX]}")
    return rows


def block_ap(ids: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """Return each query's average precision, float64 (Q,), in 0..1; the block's mAP is its mean.

    ids: retrieved database rows, best first, (Q, n); originals come first, and numbers past them are distractors.
    """
    check_enough("copydays queries", len(positives), 1, "a block")
    check_shape("copydays: retrieved rows", ids, (len(positives), None))
    return np.array([
        average_precision(np.flatnonzero(np.isin(line, rows)), len(rows)) for line, rows in zip(ids, positives, strict=True)
    ])
