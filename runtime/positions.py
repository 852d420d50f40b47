"""A backbone's position table resized to an image's grid, by the rule of the code that the model comes from.

Official codes disagree about this one step, and a wrong rule moves every feature without an error, so a bundle records
the rule and nothing guesses it. Both are PyTorch's `interpolate(mode="bicubic", align_corners=False)` in float32:

- `scale-factor`: by the factor (extent + 0.1) / base, no antialias: the samples lie a little closer together than from size
  to size. DINO, torch.hub's DINOv2 without registers, and NeCo, with registers and without.
- `size-antialias`: from size to size, with antialias, whose kernel is another one even where nothing shrinks. torch.hub's
  DINOv2 with registers, and timm.

A grid that is the table's own gets the table untouched, as in all of them. LookWhere's rule, from size to size without
antialias, is `reference.interpolate_positions`. `resize_table` is the specification of the kernel that is called.
"""
from __future__ import annotations

from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.bundle import PositionRule
from saccade.runtime import kernels
from saccade.runtime.reference import Float32, Grid, cubic_inner, cubic_outer, weighted_sum

Taps: TypeAlias = tuple[NDArray[np.intp], Float32]  # source rows and their weights, both (taps, size_out)

SCALE_OFFSET = 0.1  # DINO's and DINOv2's `interpolate_offset`, there so that a rounded factor cannot lose a row
ANTIALIAS_A = -0.5  # the cubic constant of PyTorch's antialiased resize, which follows Pillow
CUBIC_SUPPORT = 2  # the cubic kernel reaches this many samples to each side


def positions_on(table: Float32, base_grid: Grid, grid: Grid, rule: PositionRule) -> Float32:
    """Return the table (1+base cells, d), whose first row is the cls token's, as (1+cells, d) for a grid.

    The row of the cls token is never resized.
    """
    if grid == base_grid:
        return table
    resized = kernels.interpolate_positions(table[1:].reshape(*base_grid, -1), grid, rule)
    return np.concatenate([table[:1], resized.reshape(grid[0] * grid[1], -1)])


def resize_table(table: Float32, grid: Grid, rule: PositionRule) -> Float32:
    """Resize a table (h, w, d) to a grid, (rows, columns, d): first along its rows, then between them."""
    taps_of = _antialias_taps if rule == "size-antialias" else _scale_factor_taps
    row_taps, row_weights = taps_of(table.shape[0], grid[0])
    column_taps, column_weights = taps_of(table.shape[1], grid[1])
    along = weighted_sum(column_weights[:, None, :, None], (table[:, taps] for taps in column_taps))
    return weighted_sum(row_weights[:, :, None, None], (along[taps] for taps in row_taps))


def _scale_factor_taps(size_in: int, size_out: int) -> Taps:
    """Return four taps for each output sample; those beyond the border repeat the border.

    PyTorch's builds compute a sample's place with a fused multiply-add, so it is rounded once, out of float64. Rounding
    the product too moves a table with a deviation of 0.2 by up to 2e-6.
    """
    step = np.float32(1 / ((size_out + SCALE_OFFSET) / size_in))  # PyTorch inverts the factor
    source = (np.float64(step) * (np.arange(size_out) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(source)
    t = source - first
    weights = np.stack([cubic_outer(t + 1), cubic_inner(t), cubic_inner(1 - t), cubic_outer(1 - t + 1)])
    taps = first.astype(np.intp) + np.arange(-1, 3)[:, None]
    return np.clip(taps, 0, size_in - 1), weights


def _antialias_taps(size_in: int, size_out: int) -> Taps:
    """Return the taps under a kernel that widens where the table shrinks; those beyond the border are left out.

    Samples with fewer taps than others are filled up with weights of 0.
    """
    step = np.float32(size_in) / np.float32(size_out)
    widening = max(step, np.float32(1))
    support = CUBIC_SUPPORT * widening
    centre = step * (np.arange(size_out, dtype=np.float32) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    last = np.minimum((centre + support + 0.5).astype(np.intp), size_in)  # not itself a tap
    taps = first + np.arange((last - first).max())[:, None]
    distance = np.abs((taps - centre + 0.5) * (1 / widening)).astype(np.float32)
    near, far = cubic_inner(distance, ANTIALIAS_A), cubic_outer(distance, ANTIALIAS_A)
    weights = np.where(distance < 1, near, np.where(distance < CUBIC_SUPPORT, far, np.float32(0)))
    weights = np.where(taps < last, weights, np.float32(0))
    return np.minimum(taps, size_in - 1), weights / reduce(np.add, weights)
