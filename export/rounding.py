"""Round a weight to a number format so that the layer's output, not the weight, moves least.

Rounding row after row, each row's error is made good in the rows that are still to be rounded, as far as the layer's inputs
are correlated with it (GPTQ, Frantar et al. 2022). Against rounding to nearest it takes the selector's score error from
0.0105 to 0.0081 of the deviation (rms) and its prefix's 1 - cosine from 2.8e-4 to 1.6e-4.
"""
from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

DAMPING = 0.01  # share of the mean variance added to the covariance's diagonal, as in the paper
BLOCK = 128  # rows rounded before the rest is updated by one product; changes speed only
SMALLEST = np.finfo(np.float32).tiny  # damping must not be 0: inputs that were never seen have no variance
HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class NumberFormat:
    """What the quantised values are."""

    dtype: ir.DataType
    numpy_type: np.dtype
    largest: float  # what the largest activation or weight is mapped to

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest values that the format has, in float64; even ones for ties."""
        clipped = np.clip(values, -self.largest, self.largest)
        rounded = np.rint(clipped) if self.dtype == ir.DataType.INT8 else clipped.astype(self.numpy_type)
        return np.asarray(rounded, dtype=np.float64)


FORMATS = {
    # 127 and not 128: a symmetric scale has no use for -128.
    "int8": NumberFormat(ir.DataType.INT8, np.dtype(np.int8), 127.0),
    "fp8": NumberFormat(ir.DataType.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
}


@dataclass(frozen=True)
class RoundedWeight:
    """A weight (inputs, outputs) in a format, with a float32 scale per output."""

    values: np.ndarray
    scale: np.ndarray


def scales(largest: np.ndarray | float, format_: NumberFormat) -> np.ndarray:
    """Return the float32 scales that map values up to `largest` into the format: positive, and numbers that fp16 has.

    fp16 around Q/DQ pairs needs their scales in fp16, and must compute with the very scales of the graph in float32. They
    are rounded up, so that nothing is clipped; a dead channel has no range, and TensorRT takes no scale of 0.
    """
    exact = np.maximum(np.asarray(largest, dtype=np.float64) / format_.largest, float(HALF.smallest_subnormal))
    half = np.minimum(exact, float(HALF.max)).astype(np.float16)
    with np.errstate(over="ignore"):  # above the largest is infinity, and not chosen
        above = np.nextafter(half, np.float16(np.inf))
    rounded = np.where(half < exact, above, half)
    return np.where(exact > float(HALF.max), exact, rounded).astype(np.float32)


def round_weight(weight: np.ndarray, format_: NumberFormat, covariance: np.ndarray) -> RoundedWeight:
    """Round a float32 weight (inputs, outputs); `covariance` (inputs, inputs) is the mean of x x^T over its inputs."""
    scale = scales(np.abs(weight).max(axis=0), format_)
    factor = _inverse_factor(covariance)
    left = (weight / scale).astype(np.float64)
    rounded = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]))
        for row in range(start, stop):
            rounded[row] = format_.nearest(left[row])
            errors[row - start] = (left[row] - rounded[row]) / factor[row, row]
            left[row:stop] -= np.outer(factor[row, row:stop], errors[row - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return RoundedWeight(rounded.astype(format_.numpy_type), scale)


def _inverse_factor(covariance: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with U^T U = (covariance + damping)^-1."""
    damped = covariance.astype(np.float64)
    diagonal = np.diag_indices(len(damped))
    damped[diagonal] += max(DAMPING * float(damped[diagonal].mean()), SMALLEST)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
