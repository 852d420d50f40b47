"""Resize maps between the patch grid and pixels exactly as PyTorch's interpolate does (align_corners False, no antialias).

Source coordinates are computed in float32 as PyTorch computes them: at some sizes that decides which cell a pixel gets.
"""
from __future__ import annotations

import numpy as np


def nearest_rows(inputs: int, outputs: int) -> np.ndarray:
    """Return for each of `outputs` places the source place of "nearest", int64 (outputs,)."""
    scale = np.float32(inputs) / np.float32(outputs)
    places = np.floor(np.arange(outputs, dtype=np.float32) * scale).astype(np.int64)
    return np.asarray(np.minimum(places, inputs - 1))


def resize_nearest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (..., h, w) of any dtype to (..., *size)."""
    rows, columns = nearest_rows(maps.shape[-2], size[0]), nearest_rows(maps.shape[-1], size[1])
    return np.asarray(maps[..., rows[:, None], columns])


def bilinear_weights(inputs: int, outputs: int, factor: float | None = None) -> np.ndarray:
    """Return the float32 matrix (outputs, inputs) of "bilinear" along one axis; every row sums to 1.

    `factor` is the scale_factor where PyTorch was given one: it then steps by it, not by the ratio of the sizes.
    """
    scale = np.float32(1 / factor) if factor else np.float32(inputs) / np.float32(outputs)
    # In float64 the product is exact, so there is one rounding, as in PyTorch's fused multiply-add.
    centres = (np.float64(scale) * (np.arange(outputs) + 0.5) - 0.5).astype(np.float32)
    centres = np.maximum(centres, np.float32(0))
    low = np.minimum(centres.astype(np.int64), inputs - 1)
    share = centres - low.astype(np.float32)
    weights = np.zeros((outputs, inputs), np.float32)
    places = np.arange(outputs)
    weights[places, low] = 1 - share
    weights[places, np.minimum(low + 1, inputs - 1)] += share  # at the far edge both are the last cell
    return weights


def resize_bilinear(maps: np.ndarray, size: tuple[int, int], factor: float | None = None) -> np.ndarray:
    """Resize maps (..., h, w) to float32 (..., *size); with `factor` as by that scale factor."""
    down = bilinear_weights(maps.shape[-2], size[0], factor)
    across = bilinear_weights(maps.shape[-1], size[1], factor)
    return np.asarray(down @ maps.astype(np.float32, copy=False) @ across.T)
