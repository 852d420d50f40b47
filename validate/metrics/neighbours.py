"""Exact nearest neighbours by dot product, in tiles, so that what is held does not grow with their number."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_finite, check_shape

BLOCK_VALUES = 1 << 24  # similarities held at once: 64 MiB of float32
TILE_ROWS = 1 << 14  # of the memory: against millions of rows a block would otherwise be a few queries
SMALLEST_NORM = 1e-12  # PyTorch's normalize


def normalize_rows(features: np.ndarray) -> np.ndarray:
    """Return features (..., D) with L2 norm 1 along the last axis, float32; a zero row stays zero.

    Raises SaccadeError for a row whose norm float32 cannot hold: divided by infinity it would be zero.
    """
    floats = features.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(floats, axis=-1, keepdims=True)
    if not np.isfinite(norms).all():
        bad = int(np.count_nonzero(~np.isfinite(norms)))
        too_large = f"{bad} of {norms.size} rows have no length that float32 can hold"
        raise SaccadeError(f"features: {too_large}; look at the engine with saccade parity")
    return np.asarray(floats / np.maximum(norms, np.float32(SMALLEST_NORM)))


def nearest(
    queries: np.ndarray,
    memory: np.ndarray,
    k: int,
    *,
    cosine: bool = False,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest dot products of each query, descending: float32 (Q, k), and the memory's rows, int64 (Q, k).

    queries (Q, D) and memory (M, D) are float32. With `cosine` both are brought to length 1 first, the memory tile by tile,
    so that it may stay on disk; it is read once. Equal products come lower row first. `progress` hears how many rows of the
    memory are dealt with. Raises SaccadeError for NaN and infinity, of the memory in the tile that holds them.
    """
    check_shape("queries", queries, (None, memory.shape[1]))
    check_enough("memory rows", len(memory), k, counted(k, "neighbour"))
    check_finite("queries", queries)
    ours = normalize_rows(queries) if cosine else queries
    found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(memory), TILE_ROWS):
        tile = memory[start : start + TILE_ROWS]
        check_finite(f"memory from row {start}", tile)
        products, columns = _nearest_of_tile(ours, normalize_rows(tile) if cosine else tile, k)
        found = _merged(found, (products, columns + start), k)
        progress(len(tile))
    return found


def _nearest_of_tile(queries: np.ndarray, tile: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest products of each query with a tile, or all if they are fewer, a block of queries at a time."""
    step = max(1, BLOCK_VALUES // len(tile))
    found = [_largest(queries[start : start + step] @ tile.T, k) for start in range(0, len(queries), step)]
    if not found:
        return np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
    return np.concatenate([products for products, _ in found]), np.concatenate([columns for _, columns in found])


def _merged(
    earlier: tuple[np.ndarray, np.ndarray], later: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of both; equal ones of earlier tiles stand first, and those hold the lower rows."""
    values, rows = (np.concatenate(pair, axis=1) for pair in zip(earlier, later, strict=True))
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(rows, order, axis=1)


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
