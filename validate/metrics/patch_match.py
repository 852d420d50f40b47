"""Patch matching: which patches of two crops of one image show the same place, by geometry alone.

Mirrors the class correspondences of PW-Self's augment.py, its behaviour at the corners included: the index lists are what
its training compares, so they are kept even where a better match exists.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError


@dataclass(frozen=True)
class Crop:
    """A crop of an image in its pixels, resized to a square of cells x cells patches, then perhaps mirrored."""

    top: int
    left: int
    height: int
    width: int
    cells: int
    flip: bool

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.cells) < 1:
            what = f"{self.height}x{self.width} pixels in {self.cells} cells"
            raise SaccadeError(f"patch match: a crop of {what}; give 1 or more")


def match_patches(first: Crop, second: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Return two equally long index lists, int64: 0 (cls, always first), then 1-based row-major patches that pair up.

    The overlap of the boxes is rounded to cells on either side; the finer side is thinned evenly to the coarser, per axis.
    """
    top, bottom = max(first.top, second.top), min(first.top + first.height, second.top + second.height)
    left, right = max(first.left, second.left), min(first.left + first.width, second.left + second.width)
    if top >= bottom or left >= right:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    ours, theirs = (_cells(crop, top, bottom, left, right) for crop in (first, second))
    rows, columns = (min(pair) for pair in zip(ours.shape, theirs.shape, strict=True))
    return _thinned(ours, rows, columns), _thinned(theirs, rows, columns)


def _cells(crop: Crop, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return the patch numbers that a crop has inside the overlap, as the picture shows them before mirroring.

    Start and extent are rounded each, to even at halves. Together they may leave the grid: the last row or column is then
    missing, and in a mirrored crop a start below 0 counts from the far end and leaves nothing.
    """
    row, rows = _span(crop.cells, (top - crop.top) / crop.height, (bottom - top) / crop.height)
    column, columns = _span(crop.cells, (left - crop.left) / crop.width, (right - left) / crop.width)
    numbers = np.arange(1, crop.cells**2 + 1).reshape(crop.cells, crop.cells)
    if not crop.flip:
        return numbers[row : row + rows, column : column + columns]
    return numbers[row : row + rows, crop.cells - column - columns : crop.cells - column][:, ::-1]


def _span(cells: int, offset: float, extent: float) -> tuple[int, int]:
    """Return the first cell and the number of cells of shares (0..1) of a crop's side."""
    return round(cells * offset), round(cells * extent)


def _thinned(numbers: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return cls and every kept number: evenly spaced places, rounded down."""
    down = np.floor(np.linspace(0, numbers.shape[0] - 1, rows)).astype(int)
    across = np.floor(np.linspace(0, numbers.shape[1] - 1, columns)).astype(int)
    return np.concatenate([[0], numbers[down][:, across].ravel()])
