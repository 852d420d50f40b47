"""Move outlier channels from activations into weights before quantisation, without a further node in the graph.

A few channels of a transformer's activations are tens of times larger than the rest; one int8 scale for all of them leaves
the others a handful of levels. Dividing channel j of the activation by s_j and multiplying row j of the weights behind it
by s_j changes nothing in exact arithmetic. The division is folded into what makes the activation: a norm's weight and bias,
or the columns of the layer before where only linear steps lie between. What follows a GELU has no such place and stays.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from saccade.export.anatomy import quantized_products

STRENGTH = 0.5  # alpha of SmoothQuant (Xiao et al. 2022, eq. 4): half of the difficulty goes to the weights
SMALLEST_MAXIMUM = 1e-5  # a dead channel has nothing to move


@dataclass(frozen=True)
class _Fold:
    """An activation, the weights that read it (inputs, outputs), and constants whose last axis makes its channels."""

    activation: str
    readers: tuple[ir.Value, ...]
    makers: tuple[tuple[ir.Value, slice], ...]


def smoothing_factors(graph: ir.Graph, maxima: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return s (channels,) for each activation that can be smoothed; `maxima` holds the largest |value| per channel.

    s_j = max|X_j|^a / max|W_j|^(1-a), SmoothQuant's equation 4.
    """
    factors = {}
    for fold in _folds(graph):
        activation = np.maximum(maxima[fold.activation], SMALLEST_MAXIMUM).astype(np.float64)
        rows = np.max([np.abs(_array(reader)).max(axis=1) for reader in fold.readers], axis=0)
        weight = np.maximum(rows, SMALLEST_MAXIMUM).astype(np.float64)
        factors[fold.activation] = (activation**STRENGTH / weight ** (1 - STRENGTH)).astype(np.float32)
    return factors


def write_smoothed(source: Path, target: Path, maxima: Mapping[str, np.ndarray]) -> None:
    """Write the fp32 graph `source` with its activations smoothed: the same function, easier to quantise."""
    model = ir.load(source)
    smooth(model.graph, smoothing_factors(model.graph, maxima))
    ir.save(model, target)


def smooth(graph: ir.Graph, factors: Mapping[str, np.ndarray]) -> None:
    """Rewrite the graph's constants in place so that each named activation comes out divided by its factors."""
    for fold in _folds(graph):
        if fold.activation not in factors:
            continue
        factor = factors[fold.activation]
        for value, columns in fold.makers:
            array = _array(value).copy()
            array[..., columns] /= factor
            _set(value, array)
        for reader in fold.readers:
            _set(reader, _array(reader) * factor[:, None])


def _folds(graph: ir.Graph) -> list[_Fold]:
    """Return every activation of the block products that has a place to be divided in, in graph order."""
    readers: dict[ir.Value, list[ir.Value]] = {}
    for node in quantized_products(graph):
        activation, weight = node.inputs[0], node.inputs[1]
        assert activation is not None and weight is not None
        readers.setdefault(activation, []).append(weight)
    folds = []
    for activation, weights in readers.items():
        makers = _makers(graph, activation, weights[0].name or "")
        # What else reads the activation would see it divided.
        read_alone = len(weights) == len(activation.uses()) and not activation.is_graph_output()
        if makers and read_alone and activation.name is not None:
            folds.append(_Fold(activation.name, tuple(weights), makers))
    return folds


def _makers(graph: ir.Graph, activation: ir.Value, reader: str) -> tuple[tuple[ir.Value, slice], ...]:
    producer = activation.producer()
    if producer is None:
        return ()
    if producer.op_type == "LayerNormalization":
        return tuple((value, slice(None)) for value in producer.inputs[1:] if value is not None)
    if reader.endswith("attn.proj.weight"):  # softmax weights sum rows of v: linear, channel by channel
        return _last_columns(graph, reader.replace("attn.proj.weight", "attn.qkv"), 3)
    if reader.endswith("mlp.fc2.weight") and producer.op_type == "Mul":  # SwiGLU: silu(gate) * value
        return _last_columns(graph, reader.replace("mlp.fc2.weight", "mlp.fc1"), 2)
    return ()


def _last_columns(graph: ir.Graph, layer: str, parts: int) -> tuple[tuple[ir.Value, slice], ...]:
    """Return weight and bias of a packed layer with the last of its `parts` equal groups of columns."""
    weight, bias = graph.initializers[f"{layer}.weight"], graph.initializers[f"{layer}.bias"]
    width = _array(bias).shape[0] // parts
    columns = slice((parts - 1) * width, parts * width)
    return (weight, columns), (bias, columns)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _set(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=value.name)
