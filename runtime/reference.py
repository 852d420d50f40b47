"""What lies between the two networks, in plain NumPy: the specification of `native/` and the oracle of its tests.

Every operation on values is one float32 operation, in the order written here (Python's numbers do not widen a float32
array). Code that keeps that order and never contracts a*b+c into one rounding computes the same bits. The formulas are
PyTorch's for `interpolate(align_corners=False)` (ATen/native/UpSample.h: area_pixel_compute_source_index,
cubic_convolution1 and 2) and upstream's `upsample_grid_nn`.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from saccade.errors import EngineError, SaccadeError

Uint8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Grid = tuple[int, int]  # rows, columns; cells are numbered row by row

NEIGHBOURS = 5  # kept patches blended into each cell: `K` of upstream's upsample_grid_nn
DISTANCE_OFFSET = np.float32(1e-8)  # keeps the weight of a kept cell itself finite (1e8); upstream's eps
CUBIC_A = -0.75  # PyTorch's constant; Pillow and TensorFlow use -0.5


def normalization_table(mean: Sequence[float], std: Sequence[float]) -> Float32:
    """Return the normalised value of each of the 256 pixel values, (3, 256) in RGB order: (x/255 - mean)/std."""
    pixels = np.arange(256, dtype=np.float32) / np.float32(255)
    table: Float32 = (pixels - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return table


def lowres_from_image(image: Uint8, table: Float32, size: int) -> Float32:
    """Resize a whole image (H, W, 3) to the selector's input (3, size, size), whatever its aspect ratio.

    Bilinear without antialiasing, on the values that `table` gives for the pixels.
    """
    channels = np.arange(3)[:, None, None]
    normalized = table[channels, image.transpose(2, 0, 1)]  # (3, H, W)
    return _bilinear(normalized, (size, size))


def resize_scores(score_map: Float32, grid: Grid) -> Float32:
    """Resize the selector's map (m, m) to one score for each cell of the grid: bilinear without antialiasing."""
    return _bilinear(score_map, grid)


def select(score_map: Float32, grid: Grid, k: int) -> tuple[Int32, Float32]:
    """Return the k best cells (k,) and the scores of all cells, shaped as the grid.

    Score descending, ties to the lower cell number; -0.0 equals 0.0.
    Raises SaccadeError where k does not fit the grid or the scores are not finite.
    """
    check_k(k, grid)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = resize_scores(score_map, grid)
    if not (np.isfinite(score_map).all() and np.isfinite(scores).all()):
        raise not_finite(score_map)
    best = np.argsort(-scores.ravel(), kind="stable")[:k]
    return best.astype(np.int32), scores


def gather_patches(image: Uint8, table: Float32, indices: Int32, patch: int, grid: Grid) -> Float32:
    """Return the normalised pixels of the patches `indices` (k,) as rows (k, 3*patch*patch).

    A row is ordered (channel, row, column), as the flattened weight of the patch embedding. Pixels right of and
    below the last whole patch belong to no cell.
    """
    check_image_grid(image, patch, grid)
    check_indices(indices, grid[0] * grid[1])
    rows, columns = grid
    cells = image[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, 3)
    cells = cells.transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3, patch * patch)
    channels = np.arange(3)[:, None]
    kept: Float32 = table[channels, cells[indices]]
    return kept.reshape(len(indices), 3 * patch * patch)


def gather_positions(positions: Float32, indices: Int32) -> Float32:
    """Return the rows `indices` (k,) of the position table of a grid, (cells, d), as (k, d)."""
    check_indices(indices, len(positions))
    return positions[indices]


def interpolate_positions(table: Float32, grid: Grid) -> Float32:
    """Resize a position table (h, w, d) to a grid, (rows, columns, d): bicubic, by size, without antialiasing.

    Its own grid gives the same values back. Taps beyond the border repeat the border.
    """
    row_taps, row_weights = _cubic_taps(table.shape[0], grid[0])
    column_taps, column_weights = _cubic_taps(table.shape[1], grid[1])
    along_rows = [
        weighted_sum(column_weights[:, None, :, None], (table[rows][:, columns] for columns in column_taps))
        for rows in row_taps
    ]
    return weighted_sum(row_weights[:, :, None, None], along_rows)


def fill(tokens: Float32, indices: Int32, grid: Grid) -> Float32:
    """Spread kept tokens (k, c) over all cells of a grid, (c, rows, columns): the dense output.

    A cell is the mean of its 5 nearest kept patches `indices` (k,), weighted by 1/(distance + 1e-8). Of patches equally
    far away the earlier in the list counts as nearer. Raises SaccadeError where k < 5.
    """
    check_fill(len(indices))
    check_indices(indices, grid[0] * grid[1])
    squared = _squared_distances(indices, grid)
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :NEIGHBOURS]
    distances = np.sqrt(np.take_along_axis(squared, nearest, axis=1).astype(np.float32)).T  # (5, cells)
    weights = 1 / (distances + DISTANCE_OFFSET)
    weights = weights / reduce(np.add, weights)
    cells = weighted_sum(weights[:, :, None], (tokens[near] for near in nearest.T))  # (cells, c)
    return np.ascontiguousarray(cells.T).reshape(tokens.shape[1], *grid)


def check_k(k: int, grid: Grid) -> None:
    """Raise SaccadeError unless the grid has k cells to choose."""
    cells = grid[0] * grid[1]
    if not 1 <= k <= cells:
        raise SaccadeError(f"k is {k}, but the {grid[0]}x{grid[1]} grid has {cells} cells; choose k from 1 to {cells}")


def check_fill(k: int) -> None:
    """Raise SaccadeError where there are too few kept patches for a dense output."""
    if k < NEIGHBOURS:
        raise SaccadeError(
            f"a dense output blends the {NEIGHBOURS} nearest kept patches, but k is {k}; choose k >= {NEIGHBOURS}"
        )


def check_image_grid(image: Uint8, patch: int, grid: Grid) -> None:
    """Raise ValueError unless the grid is exactly the whole patches of the image."""
    height, width = image.shape[:2]
    if grid != (height // patch, width // patch):
        raise ValueError(f"a {height}x{width} image has no {grid[0]}x{grid[1]} grid of patches of {patch}")


def check_indices(indices: Int32, cells: int) -> None:
    """Raise ValueError where an index names no cell."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < cells):
        raise ValueError(f"indices must be in 0..{cells - 1}")


def not_finite(score_map: Float32) -> SaccadeError:
    """Return the error for a score map that cannot be ranked, because of its values or of overflow in the resize."""
    bad = int(np.count_nonzero(~np.isfinite(score_map)))
    what = f"NaN or infinity in {bad} of {score_map.size} values" if bad else "NaN or infinity once resized"
    return EngineError(f"score map holds {what}: the selector overflowed; run it in fp32 or export the bundle again")


def _source(size_in: int, size_out: int) -> Float32:
    """Return where the centres of the output's samples lie among those of the input: half-pixel centres."""
    scale = np.float32(size_in) / np.float32(size_out)
    source: Float32 = scale * (np.arange(size_out, dtype=np.float32) + 0.5) - 0.5
    return source


def _bilinear_taps(size_in: int, size_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32, Float32]:
    """Return both taps of each output sample along one axis, and their weights."""
    source = np.maximum(_source(size_in, size_out), 0)
    first = np.minimum(source.astype(np.intp), size_in - 1)
    second = np.minimum(first + 1, size_in - 1)
    weight = source - first.astype(np.float32)
    return first, second, 1 - weight, weight


def _bilinear(values: Float32, size: Grid) -> Float32:
    """Resize the last two axes of `values` to `size`: first along rows, then between them."""
    top, bottom, top_weight, bottom_weight = _bilinear_taps(values.shape[-2], size[0])
    left, right, left_weight, right_weight = _bilinear_taps(values.shape[-1], size[1])

    def along(rows: NDArray[np.intp]) -> Float32:
        line = values[..., rows, :]
        return left_weight * line[..., left] + right_weight * line[..., right]

    return top_weight[:, None] * along(top) + bottom_weight[:, None] * along(bottom)


def _cubic_taps(size_in: int, size_out: int) -> tuple[NDArray[np.intp], Float32]:
    """Return the four taps of each output sample along one axis and their weights, both (4, size_out)."""
    source = _source(size_in, size_out)
    first = np.floor(source)
    t = source - first
    taps = first.astype(np.intp) + np.arange(-1, 3)[:, None]
    weights = np.stack([cubic_outer(t + 1), cubic_inner(t), cubic_inner(1 - t), cubic_outer(1 - t + 1)])
    return np.clip(taps, 0, size_in - 1), weights


def cubic_inner(x: Float32, a: float = CUBIC_A) -> Float32:
    """Return the cubic convolution kernel for distances up to 1."""
    weight: Float32 = ((a + 2) * x - (a + 3)) * x * x + 1
    return weight


def cubic_outer(x: Float32, a: float = CUBIC_A) -> Float32:
    """Return the cubic convolution kernel for distances from 1 to 2."""
    weight: Float32 = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return weight


def _squared_distances(indices: Int32, grid: Grid) -> NDArray[np.int64]:
    """Return the squared distance in cells from every cell of the grid to every kept one, (cells, k)."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1], dtype=np.int64), grid[1])
    kept_rows, kept_columns = np.divmod(indices.astype(np.int64), grid[1])
    squared: NDArray[np.int64] = (rows[:, None] - kept_rows) ** 2 + (columns[:, None] - kept_columns) ** 2
    return squared


def weighted_sum(weights: Float32, terms: Iterable[Float32]) -> Float32:
    """Return weights[0]*terms[0] + weights[1]*terms[1] + …, added in that order."""
    return reduce(np.add, (weight * term for weight, term in zip(weights, terms, strict=True)))
