"""How many patches a call keeps, and which lists of them can be."""
from __future__ import annotations

import numpy as np

from saccade.bundle import Defaults
from saccade.errors import SaccadeError
from saccade.runtime.reference import NEIGHBOURS

MAX_CELLS = 148 * 148  # 2072 px: what the score map of 44 x 44 can still tell apart ends long before


def kept_on(
    grid: tuple[int, int], defaults: Defaults, k: int | None = None, k_ratio: float | None = None, dense: bool = False
) -> int:
    """Return how many patches are kept on a grid: `k`, or the share `k_ratio`, or what a bundle's defaults say."""
    cells = grid[0] * grid[1]
    if k is not None and k_ratio is not None:
        raise SaccadeError("give k or k_ratio, not both")
    if k is None and k_ratio is None:
        k, k_ratio = defaults.k, defaults.k_ratio
    if k_ratio is not None:
        is_number = isinstance(k_ratio, (int, float, np.integer, np.floating)) and not isinstance(k_ratio, bool)
        if not is_number or not 0 < k_ratio <= 1:
            raise SaccadeError(f"k_ratio {k_ratio!r} is not a share of the patches; give more than 0 and at most 1")
        k = int(k_ratio * cells)
        if k == 0:
            raise SaccadeError(f"k_ratio {k_ratio} keeps none of this grid's {cells} patches; give a larger one, or k")
    return checked_k(k, cells, dense=dense)


def checked_k(k: int | None, cells: int, *, dense: bool) -> int:
    """Return k if that many of `cells` patches can be kept, before any network runs for nothing."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise SaccadeError(f"k {k!r} is not a whole number; this grid has {cells} patches, so give 1 to {cells}")
    if not 1 <= k <= cells:
        raise SaccadeError(f"k {k} is not to be had: this grid has {cells} patches, so give 1 to {cells}")
    if dense and k < NEIGHBOURS:
        raise SaccadeError(
            f"k {k} is too small for dense output, which blends the {NEIGHBOURS} nearest patches; "
            f"give at least {NEIGHBOURS}"
        )
    return int(k)


def check_kept(indices: np.ndarray, batch: int, grid: tuple[int, int], dense: bool) -> None:
    """Refuse a list of kept cells that no selection on this grid can have given."""
    if not isinstance(indices, np.ndarray) or indices.dtype.kind not in "iu" or indices.ndim != 2 or len(indices) != batch:
        raise SaccadeError(f"indices must be an array of whole numbers [{batch}, k], got {described(indices)}")
    cells = grid[0] * grid[1]
    checked_k(indices.shape[1], cells, dense=dense)
    if indices.min() < 0 or indices.max() >= cells:
        raise SaccadeError(f"indices must name cells of the {grid[0]}x{grid[1]} grid; give 0 to {cells - 1}")
    for index, kept in enumerate(indices):
        if len(np.unique(kept)) < len(kept):
            raise SaccadeError(f"indices of image {index} name a cell twice; give each cell once")


def described(value: object) -> str:
    """Return what an argument is, for an error: an array's type and shape, or the type."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
