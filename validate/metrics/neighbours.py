"""Exact nearest neighbours by dot product, in tiles, so that what is held does not grow with their number."""
from __future__ import annotations

import numpy as np

from saccade.counted import counted
from saccade.validate.metrics.checks import check_enough, check_finite, check_shape

BLOCK_VALUES = 1 << 24  # similarities held at once: 64 MiB of float32
TILE_ROWS = 1 << 14  # of the memory: against millions of rows a block would otherwise be a few queries
SMALLEST_NORM = 1e-12  # PyTorch's normalize


def normalize_rows(features: np.ndarray) -> np.ndarray:
    """Return features (..., D) with L2 norm 1 along the last axis, float32; a zero row stays zero."""
    floats = features.astype(np.float32, copy=False)
    norms = np.linalg.norm(floats, axis=-1, keepdims=True)
    return np.asarray(floats / np.maximum(norms, np.float32(SMALLEST_NORM)))


def nearest(queries: np.ndarray, memory: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest dot products of each query, descending: float32 (Q, k), and the memory's rows, int64 (Q, k).

    queries (Q, D) and memory (M, D) are float32; nothing is normalised here. Equal products come lower row first.
    """
    check_shape("queries", queries, (None, memory.shape[1]))
    check_enough("memory rows", len(memory), k, counted(k, "neighbour"))
    check_finite("queries", queries)
    check_finite("memory", memory)
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    step = max(1, BLOCK_VALUES // min(len(memory), TILE_ROWS))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarities[block], rows[block] = _nearest_of_block(queries[block], memory, k)
    return similarities, rows


def _nearest_of_block(queries: np.ndarray, memory: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `nearest` does, tile by tile of the memory."""
    values, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(memory), TILE_ROWS):
        found, columns = _largest(queries @ memory[start : start + TILE_ROWS].T, k)
        values, rows = np.concatenate([values, found], axis=1), np.concatenate([rows, columns + start], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # earlier tiles stand first, and hold the lower rows
        values, rows = np.take_along_axis(values, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return values, rows


def _largest(products: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of each row, or all if they are fewer: (Q, k) values and columns, descending."""
    k = min(k, products.shape[1])
    columns = np.argpartition(products, products.shape[1] - k, axis=1)[:, products.shape[1] - k :]
    smallest = np.take_along_axis(products, columns, axis=1).min(axis=1)
    for row in np.flatnonzero(np.count_nonzero(products >= smallest[:, None], axis=1) > k):  # equal ones were left out
        above, equal = (np.flatnonzero(chosen) for chosen in (products[row] > smallest[row], products[row] == smallest[row]))
        columns[row] = np.concatenate([above, equal[: k - len(above)]])
    columns.sort(axis=1)  # so that the stable sort below leaves equal products in the order of their rows
    values = np.take_along_axis(products, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(columns, order, axis=1)
