"""Edits that make the traced graph plain, and the checks that it is: no pass changes a number."""
from __future__ import annotations

import collections

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from onnxscript import optimizer

from saccade.contract import GraphContract
from saccade.export.modules import NORM_EPS

# What the graphs are made of. Anything else means that a norm, an activation or a shape was traced in pieces,
# which no engine fuses and fp16 does not survive (a decomposed LayerNorm: 19 % top-1 on TensorRT 10.3, onnxsim#1742).
ALLOWED_OPS = frozenset({
    "Add", "Concat", "Conv", "Expand", "Gather", "Gelu", "LayerNormalization", "MatMul", "Mul", "Reshape", "Shape",
    "Sigmoid", "Slice", "Softmax", "Split", "Transpose",
})  # fmt: skip
NO_LIMIT = 1 << 40


def simplify(model: ir.Model) -> None:
    """Fold what is constant, make reshapes constant, name the weights, and drop the exporter's notes."""
    optimizer.fold_constants(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    make_reshapes_constant(model.graph)
    RemoveUnusedNodesPass()(model)
    name_weights(model.graph)
    strip_notes(model)
    TopologicalSortPass()(model)


def make_reshapes_constant(graph: ir.Graph) -> None:
    """Replace computed reshape targets by constants: 0 copies a dynamic dimension that stays in its place.

    The exporter computes targets from Shape and Concat with allowzero=1. Constants keep the graph static but for names.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        source, target = node.inputs[0].shape, node.outputs[0].shape
        if source is None or target is None:
            continue
        extents = [_reshape_extent(source, target, axis) for axis in range(len(target))]
        if extents.count(-1) > 1:
            raise RuntimeError(f"{node.name}: reshape {source} -> {target} has two free dimensions")
        node.replace_input_with(1, _constant(graph, extents))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _reshape_extent(source: ir.Shape, target: ir.Shape, axis: int) -> int:
    """Return a number, 0 where the dimension is the source's at the same place, else -1 (the one left over)."""
    extent = target[axis]
    if isinstance(extent, int):
        return extent
    return 0 if axis < len(source) and source[axis] == extent else -1


def _constant(graph: ir.Graph, extents: list[int]) -> ir.Value:
    """Return the initializer that holds a reshape target; equal targets share one."""
    name = "shape_" + "_".join(str(extent).replace("-1", "rest") for extent in extents)
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(extents, dtype=np.int64), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def name_weights(graph: ir.Graph) -> None:
    """Give each transposed linear weight its module's name back (the exporter calls it val_14), by the bias added next."""
    for node in list(graph):
        if node.op_type != "MatMul" or node.inputs[1] is None or not node.inputs[1].is_initializer():
            continue
        for use in node.outputs[0].uses():
            bias = next((value.name for value in use.node.inputs if value is not None and value.is_initializer()), None)
            if use.node.op_type == "Add" and bias is not None and bias.endswith(".bias"):
                _rename_initializer(graph, node.inputs[1], bias.removesuffix("bias") + "weight")


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if name not in graph.initializers:
        value.name = name


def name_dimensions(graph: ir.Graph, contract: GraphContract) -> None:
    """Give inputs and outputs the contract's names for their dimensions; the exporter writes a formula for some."""
    for values, specs in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        for value, spec in zip(values, specs, strict=True):
            assert value.name == spec.name
            value.shape = ir.Shape(spec.shape)


def strip_notes(model: ir.Model) -> None:
    """Drop the exporter's metadata (stack traces with this machine's paths) and the shapes of inner values."""
    graph = model.graph
    kept = {*graph.inputs, *graph.outputs}
    graph.metadata_props.clear()
    graph.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in kept:
                value.shape = None
                value.type = None
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()


def check(graph: ir.Graph) -> None:
    """Raise where a norm, an activation or a shape came out in pieces; that is a bug of ours or a new exporter's."""
    counts = collections.Counter(node.op_type for node in graph)
    strange = sorted(set(counts) - ALLOWED_OPS)
    if strange:
        raise RuntimeError(f"the traced graph has operators that it should not have: {', '.join(strange)}")
    extras = {value.name for value in graph.outputs}
    blocks = counts["Softmax"] - ("attention" in extras)
    if counts["LayerNormalization"] != 2 * blocks + 1 + ("cls_last4" in extras):
        raise RuntimeError(f"{counts['LayerNormalization']} LayerNormalization for {blocks} blocks")
    # Too small a difference for any comparison of outputs: eps 1e-5 in the extractor alone moves features by 4e-6.
    for node in graph:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        epsilon = attributes.get("epsilon", 1e-5)  # ONNX's default
        if node.op_type == "LayerNormalization" and not np.isclose(epsilon, NORM_EPS, rtol=1e-6):
            raise RuntimeError(f"{node.name}: epsilon {epsilon}, expected {NORM_EPS}")
        if node.op_type == "Gelu" and attributes.get("approximate", "none") != "none":
            raise RuntimeError(f"{node.name}: Gelu approximated by {attributes['approximate']}")
    doubles = [value.name for value in graph.initializers.values() if value.dtype == ir.DataType.DOUBLE]
    if doubles:
        raise RuntimeError(f"the traced graph holds float64 constants: {doubles}")
