"""Insert Q/DQ pairs around the weight products of an fp32 graph: int8, or fp8 (e4m3).

Symmetric, zero point 0, one scale per activation and one per output channel of a weight, since TensorRT takes nothing
else. Only products with a weight are quantised, and only inside the blocks: int8 on the attention products destroys
TensorRT's fused kernels (124 kernels become 196), and the patch embedding and whatever follows the last norm are small
and sensitive. Needs onnx_ir, not torch.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from saccade.errors import SaccadeError
from saccade.export.anatomy import block_numbers, quantized_products
from saccade.export.precision import initializer
from saccade.export.rounding import FORMATS, NumberFormat, RoundedWeight, round_weight, scales


def activation_names(graph: ir.Graph) -> list[str]:
    """Return the tensors whose ranges `quantize` needs, in graph order."""
    names = (node.inputs[0].name for node in quantized_products(graph) if node.inputs[0] is not None)
    return [name for name in dict.fromkeys(names) if name is not None]


def round_weights(onnx_path: Path, precision: str, covariances: Mapping[str, np.ndarray]) -> dict[str, RoundedWeight]:
    """Return the weights of all block products of an fp32 graph by name; `covariances` is by `activation_names`."""
    rounded = {}
    for node in quantized_products(ir.load(onnx_path).graph):
        activation, weight = node.inputs[0], node.inputs[1]
        assert activation is not None and activation.name is not None and weight is not None and weight.name is not None
        assert weight.const_value is not None
        values = weight.const_value.numpy()
        rounded[weight.name] = round_weight(values, FORMATS[precision], covariances[activation.name])
    return rounded


def quantize(
    graph: ir.Graph,
    precision: str,
    ranges: Mapping[str, float],
    weights: Mapping[str, RoundedWeight],
    blocks: Collection[int] | None = None,
) -> None:
    """Rewrite the graph in place; with `blocks`, only those blocks.

    `ranges` holds the largest absolute value to represent for each of `activation_names`; `weights` are `round_weights`'.
    """
    format_, numbers = FORMATS[precision], block_numbers(graph)
    pairs: dict[str, ir.Value] = {}
    for node in quantized_products(graph):
        if blocks is not None and numbers[node] not in blocks:
            continue
        activation, weight = node.inputs[0], node.inputs[1]
        assert activation is not None and activation.name is not None and weight is not None and weight.name is not None
        if activation.name not in pairs:
            pairs[activation.name] = _quantized_activation(graph, node, activation, ranges[activation.name], format_)
        node.replace_input_with(0, pairs[activation.name])
        node.replace_input_with(1, _quantized_weight(graph, node, weight.name, weights[weight.name], format_))
        del graph.initializers[weight.name]


def _quantized_activation(
    graph: ir.Graph, before: ir.Node, value: ir.Value, largest: float, format_: NumberFormat
) -> ir.Value:
    """Put QuantizeLinear and DequantizeLinear behind a value; one pair serves all products that read it."""
    if not np.isfinite(largest):
        raise SaccadeError(f"activation {value.name!r} reached {largest} in calibration; check the images and weights")
    scale_value = initializer(graph, f"{value.name}.scale", scales(largest, format_))
    zero = initializer(graph, f"{value.name}.zero_point", np.zeros((), format_.numpy_type), format_.dtype)
    quantized = ir.node("QuantizeLinear", [value, scale_value, zero], name=f"quantize_{value.name}")
    quantized.outputs[0].name = f"{value.name}.quantized"
    restored = ir.node("DequantizeLinear", [quantized.outputs[0], scale_value, zero], name=f"dequantize_{value.name}")
    restored.outputs[0].name = f"{value.name}.dequantized"
    graph.insert_before(before, [quantized, restored])
    return restored.outputs[0]


def _quantized_weight(
    graph: ir.Graph, before: ir.Node, name: str, weight: RoundedWeight, format_: NumberFormat
) -> ir.Value:
    """Store a weight in the format and dequantise it in the graph."""
    stored = initializer(graph, f"{name}.quantized", weight.values, format_.dtype)
    scale = initializer(graph, f"{name}.scale", weight.scale)
    zero = initializer(graph, f"{name}.zero_point", np.zeros(weight.scale.shape, format_.numpy_type), format_.dtype)
    restored = ir.node("DequantizeLinear", [stored, scale, zero], {"axis": 1}, name=f"dequantize_{name}")
    restored.outputs[0].name = f"{name}.dequantized"
    graph.insert_before(before, restored)
    return restored.outputs[0]
