"""The kernels that the chain calls: `reference`'s functions in C++, bit for bit equal, with the same errors, and a resize.

Each takes `out`, the array to write the result into, so that a frame after the first allocates no result; what is
returned is then `out`. All release the GIL. Arrays that are not contiguous, or whose dtype or shape does not fit,
raise ValueError; image rows may lie apart, as in a crop, and channels backwards, as in `bgr[..., ::-1]`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from saccade.bundle import PositionRule
from saccade.runtime import _kernels
from saccade.runtime.reference import (
    Float32,
    Grid,
    Int32,
    Uint8,
    check_fill,
    check_image_grid,
    check_k,
    not_finite,
)

Box = tuple[int, int, int, int]  # top, left, height, width


def normalization_table(mean: Sequence[float], std: Sequence[float]) -> Float32:
    """Return the normalised value of each of the 256 pixel values, (3, 256) in RGB order: (x/255 - mean)/std."""
    table = np.empty((3, 256), np.float32)
    _kernels.normalization_table(np.asarray(mean, np.float32), np.asarray(std, np.float32), table)
    return table


def lowres_from_image(image: Uint8, table: Float32, size: int, *, out: Float32 | None = None) -> Float32:
    """Resize a whole image (H, W, 3) to the selector's input (3, size, size), bilinear without antialiasing."""
    out = _result(out, (3, size, size))
    _kernels.lowres_from_image(_packed(image), table, out)
    return out


def resize_bicubic(image: Uint8, size: Grid, window: Box | None = None, *, out: Uint8 | None = None) -> Uint8:
    """Resize an image (H, W, 3) to `size` (height, width), Pillow's antialiased bicubic; only `window`, if given."""
    top, left, height, width = window or (0, 0, *size)
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    _check_shape("out", out, (height, width, 3))
    image = image if image.strides[1:] == (3, 1) else np.ascontiguousarray(image)
    _kernels.resize_bicubic(image, size, (top, left), out)
    return out


def resize_scores(score_map: Float32, grid: Grid, *, out: Float32 | None = None) -> Float32:
    """Resize the selector's map (m, m) to one score for each cell of the grid, bilinear without antialiasing."""
    out = _result(out, grid)
    _kernels.resize_scores(score_map, out)
    return out


def select(
    score_map: Float32, grid: Grid, k: int, *, out: tuple[Int32, Float32] | None = None
) -> tuple[Int32, Float32]:
    """Return the k best cells (k,), best first and ties to the lower number, and the scores of all cells.

    Raises SaccadeError where k does not fit the grid or the scores are not finite.
    """
    check_k(k, grid)
    indices, scores = out or (np.empty(k, np.int32), np.empty(grid, np.float32))
    _check_shape("indices", indices, (k,))
    _check_shape("scores", scores, grid)
    if not _kernels.select(score_map, indices, scores):
        raise not_finite(score_map)
    return indices, scores


def normalize(image: Uint8, table: Float32, *, out: Float32 | None = None) -> Float32:
    """Return the values that `table` gives for all of an image (H, W, 3), as (3, H, W)."""
    out = _result(out, (3, *image.shape[:2]))
    _kernels.normalize(_packed(image), table, out)
    return out


def gather_patches(
    image: Uint8, table: Float32, indices: Int32, patch: int, grid: Grid, *, out: Float32 | None = None
) -> Float32:
    """Return the normalised pixels of the patches `indices` (k,) as (k, 3*patch*patch): (channel, row, column)."""
    check_image_grid(image, patch, grid)
    out = _result(out, (len(indices), 3 * patch * patch))
    _kernels.gather_patches(_packed(image), table, indices, patch, grid, out)
    return out


def gather_positions(positions: Float32, indices: Int32, *, out: Float32 | None = None) -> Float32:
    """Return the rows `indices` (k,) of the position table of a grid, (cells, d), as (k, d)."""
    out = _result(out, (len(indices), positions.shape[1]))
    _kernels.gather_positions(positions, indices, out)
    return out


def interpolate_positions(
    table: Float32, grid: Grid, rule: PositionRule | Literal["size"] = "size", *, out: Float32 | None = None
) -> Float32:
    """Resize a position table (h, w, d) to a grid, (rows, columns, d), bicubic. Slow enough to keep the result.

    LookWhere's is resized by `size`, as `reference` does it; for the rules of plain backbones see `positions`.
    """
    out = _result(out, (*grid, table.shape[2]))
    _kernels.interpolate_positions(table, rule, out)
    return out


def fill(tokens: Float32, indices: Int32, grid: Grid, *, out: Float32 | None = None) -> Float32:
    """Spread kept tokens (k, c) over all cells, (c, rows, columns): the mean of the 5 nearest by inverse distance.

    Raises SaccadeError where k < 5.
    """
    check_fill(len(indices))
    out = _result(out, (tokens.shape[1], *grid))
    _kernels.fill(tokens, indices, out)
    return out


def _result(out: Float32 | None, shape: tuple[int, ...]) -> Float32:
    """Return the array to write to, which must have the shape of the result."""
    if out is None:
        return np.empty(shape, np.float32)
    _check_shape("out", out, shape)
    return out


def _check_shape(name: str, array: Float32 | Int32 | Uint8, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {shape}, got {array.shape}")


def _packed(image: Uint8) -> Uint8:
    """Return the image itself, or a copy where its pixels are not three bytes in a row, as in a mirrored image."""
    return image if image.strides[1:] in ((3, 1), (3, -1)) else np.ascontiguousarray(image)
