"""Measure the range of every activation that enters a quantised product, on real inputs, and choose where to clip it.

The graph runs in ONNX Runtime with those activations as further outputs.
"""
from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from saccade.errors import SaccadeError
from saccade.export.histogram import Histogram
from saccade.export.quantization import activation_names

METHODS = ("minmax", "percentile", "mse", "entropy")
PERCENTILE = 99.99  # share of the values that is kept; 99.9 clips the residual stream's few large channels
LEVELS = 127  # of a symmetric int8 scale
MSE_CANDIDATES = 100
ROWS = 256  # of a feed that statistics are taken of: neighbours among the 1374 tokens of an image at 518 px say the same
Feed = Mapping[str, np.ndarray]


class Activations:
    """One graph, run for the inputs of its quantised products."""

    def __init__(self, onnx_path: Path) -> None:
        model = ir.load(onnx_path)
        self.names = activation_names(model.graph)
        self._session = _session_with_outputs(model, self.names)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the activations of one feed as (rows, channels) by name."""
        values = self._session.run(self.names, dict(feed))
        rows = {name: value.reshape(-1, value.shape[-1]) for name, value in zip(self.names, values, strict=True)}
        for name, value in rows.items():
            if not np.isfinite([value.min(), value.max()]).all():  # both pass NaN on
                raise SaccadeError(f"activation {name!r} is not finite on a calibration image; check the weights")
        return rows


def channel_maxima(onnx_path: Path, feeds: Iterable[Feed]) -> dict[str, np.ndarray]:
    """Return the largest |value| of every channel (channels,) by activation: what smoothing needs."""
    activations = Activations(onnx_path)
    maxima: dict[str, np.ndarray] = {}
    for feed in feeds:
        for name, value in activations.run(feed).items():
            largest = np.maximum(value.max(axis=0), -value.min(axis=0))
            maxima[name] = np.maximum(maxima.get(name, largest), largest)
    return _not_empty(maxima)


class Statistics:
    """Histograms and covariances of a graph's activations: what scales and rounding need."""

    def __init__(self, onnx_path: Path, feeds: Iterable[Feed]) -> None:
        activations = Activations(onnx_path)
        self._histograms = {name: Histogram() for name in activations.names}
        sums: dict[str, np.ndarray] = {}
        rows: dict[str, int] = {}
        for feed in feeds:
            values = {name: some_rows(value) for name, value in activations.run(feed).items()}
            for name, value in values.items():
                self._histograms[name].add(value)
                with np.errstate(over="ignore"):
                    sums[name] = sums.get(name, np.float32(0)) + value.T @ value
                rows[name] = rows.get(name, 0) + len(value)
        self.covariances = {name: total / np.float32(rows[name]) for name, total in _not_empty(sums).items()}
        for name, covariance in self.covariances.items():
            if not np.isfinite(covariance).all():  # beyond 1e19: finite themselves, and not what a model of use has
                raise SaccadeError(f"activation {name!r} is too large to be squared in float32; check the weights")

    def ranges(self, method: str) -> dict[str, float]:
        """Return the largest absolute value to represent, by activation, as `method` chooses it."""
        return {name: clip_of(self._histograms[name], method) for name in self.covariances}


def clip_of(histogram: Histogram, method: str) -> float:
    """Return the value to clip at, as `method` chooses it: none beyond the largest, where the last bins may end."""
    if method == "minmax" or not histogram.largest:
        return histogram.largest
    counts, edges = histogram.counts, histogram.edges
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        clip = float(edges[1:][np.searchsorted(share, PERCENTILE / 100)])
    else:
        clip = smallest_error_clip(counts, edges) if method == "mse" else _entropy_clip(counts, edges)
    return min(clip, histogram.largest)


def _entropy_clip(counts: np.ndarray, edges: np.ndarray) -> float:
    """Mirror the histogram, since ONNX Runtime's search for the smallest KL divergence wants both signs."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    both = np.concatenate([counts[::-1], counts])
    mirrored = np.concatenate([-edges[:0:-1], edges])
    search = HistogramCollector("entropy", True, len(both), LEVELS + 1, PERCENTILE, "same")
    threshold = search.get_entropy_threshold((both, mirrored, -edges[-1], edges[-1], edges[-1]), LEVELS + 1)
    return float(max(abs(float(end)) for end in threshold[:2]))


def some_rows(values: np.ndarray) -> np.ndarray:
    """Return ROWS rows at most, spread evenly, and the one with the largest |value|: no range loses its end."""
    if len(values) <= ROWS:
        return values
    spread = np.linspace(0, len(values) - 1, ROWS, dtype=np.int64)
    largest = np.maximum(values.max(axis=1), -values.min(axis=1)).argmax()
    return np.asarray(values[np.union1d(spread, largest)])


def _not_empty(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not statistics:
        raise SaccadeError("calibration saw no images; give a folder of them with --calibration")
    return statistics


def smallest_error_clip(counts: np.ndarray, edges: np.ndarray) -> float:
    """Return the clip value whose int8 rounding and clipping have the smallest mean squared error on a histogram.

    `counts` (bins,) and `edges` (bins + 1,) are of absolute values.
    """
    centres = (edges[:-1] + edges[1:]) / 2
    best, best_error = float(edges[-1]), np.inf
    for clip in np.linspace(edges[-1] / MSE_CANDIDATES, edges[-1], MSE_CANDIDATES):
        step = clip / LEVELS
        rounded = np.minimum(np.rint(centres / step), LEVELS) * step
        # A value inside a step is off by step^2/12 on average; the bin centre alone would hide it for narrow bins.
        error = float((counts * np.where(centres < clip, step**2 / 12, (centres - rounded) ** 2)).sum())
        if error < best_error:
            best, best_error = float(clip), error
    return best


def _session_with_outputs(model: ir.Model, names: Iterable[str]) -> Any:
    """Open the graph with the named inner values as outputs."""
    import onnxruntime

    inner = {value.name: value for node in model.graph for value in node.outputs}
    inner |= {value.name: value for value in model.graph.inputs}
    for name in names:
        inner[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(inner[name])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:  # from a file, since bytes in memory would hold the weights twice
        path = Path(folder) / "calibration.onnx"
        ir.save(model, path)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
