"""Write an fp32 graph again in 16 bits: types and casts in the graph, since TensorRT 11 has no precision flags.

Norms, softmax and everything after the last norm (the selector's head and scores, the classifier) stay in float32, and so
do the graph's inputs and outputs, an attention row on its way out, and in bf16 the convolution that embeds patches. Keeping
norms and softmax in float32 by casts does not cost TensorRT its fused attention (12 of 12 blocks on RTX 1.7.1). Needs
onnx_ir, not torch.
"""
from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir

from saccade.errors import SaccadeError
from saccade.export.anatomy import block_numbers, tail_nodes, told_softmaxes

NUMPY_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}  # bfloat16 is not numpy's own
IR_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# What may be cast: fp8 is how values are stored, not a type to compute in.
WIDE_TYPES = frozenset({ir.DataType.FLOAT, *IR_TYPES.values()})
# What stays in float32: ONNX has Conv in bfloat16 only from opset 22 on, which TensorRT 10.3 does not read.
FLOAT32_OPS = {
    "fp16": frozenset({"LayerNormalization", "Softmax"}),
    "bf16": frozenset({"LayerNormalization", "Softmax", "Conv"}),
}


def narrow(graph: ir.Graph, precision: str, blocks: Collection[int] | None = None) -> None:
    """Rewrite the graph in place in fp16 or bf16; with `blocks`, only those blocks, the rest staying in float32.

    Raises SaccadeError where a weight is beyond fp16 or no number.
    """
    _Narrowing(graph, precision, blocks).run()


class _Narrowing:
    """One pass over a graph in topological order that gives every node its type and casts what comes in another."""

    def __init__(self, graph: ir.Graph, precision: str, blocks: Collection[int] | None) -> None:
        self._graph = graph
        self._narrow = IR_TYPES[precision]
        self._numpy_type = NUMPY_TYPES[precision]
        self._float32_ops = FLOAT32_OPS[precision]
        self._types: dict[ir.Value, ir.DataType | None] = {value: value.dtype for value in graph.inputs}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._wide = tail_nodes(graph) | told_softmaxes(graph)
        if blocks is not None:
            self._wide |= {node for node, number in block_numbers(graph).items() if number not in blocks}

    def run(self) -> None:
        for node in list(self._graph):
            wide = node.op_type in self._float32_ops or node in self._wide
            target = ir.DataType.FLOAT if wide else self._narrow
            found = [self._type_of(value) for value in node.inputs if value is not None]
            floating = any(dtype in WIDE_TYPES for dtype in found)
            if floating and node.op_type != "Shape":
                for index, value in enumerate(node.inputs):
                    if value is not None:
                        self._retype(node, index, value, target)
            for output in node.outputs:
                self._types[output] = _output_type(node, target, floating, found)
        self._drop_unused_initializers()

    def _type_of(self, value: ir.Value) -> ir.DataType | None:
        return value.dtype if value.is_initializer() else self._types[value]

    def _retype(self, node: ir.Node, index: int, value: ir.Value, target: ir.DataType) -> None:
        """Make input `index` arrive as `target`: a weight is rounded here, anything else is cast in the graph."""
        dtype = self._type_of(value)
        if dtype is None or dtype == target or dtype not in WIDE_TYPES:
            return
        if (value, target) not in self._casts:
            rounded = self._rounded(value) if value.is_initializer() else self._cast(node, value, target)
            self._casts[value, target] = rounded
        node.replace_input_with(index, self._casts[value, target])

    def _rounded(self, value: ir.Value) -> ir.Value:
        """Return the weight in 16 bits, under its own name with the type's; refuses one that cannot be held."""
        assert value.const_value is not None and value.name is not None
        weight = value.const_value.numpy()
        if not np.isfinite(weight).all():
            raise SaccadeError(f"weight {value.name!r} holds NaN or infinity; check the checkpoint and export it again")
        with np.errstate(over="ignore"):
            rounded = weight.astype(self._numpy_type)
        if not np.isfinite(rounded.astype(np.float32)).all():
            raise SaccadeError(f"weight {value.name!r} is beyond what fp16 can hold (65504); use --precision bf16")
        return initializer(self._graph, f"{value.name}.{self._narrow.name.lower()}", rounded, self._narrow)

    def _cast(self, before: ir.Node, value: ir.Value, target: ir.DataType) -> ir.Value:
        name = f"{value.name}.{target.name.lower()}"
        cast = ir.node("Cast", [value], {"to": int(target)}, name=f"cast_{name}")
        cast.outputs[0].name = name
        self._graph.insert_before(before, cast)
        self._types[cast.outputs[0]] = target
        return cast.outputs[0]

    def _drop_unused_initializers(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]


def _output_type(
    node: ir.Node, target: ir.DataType, floating: bool, found: list[ir.DataType | None]
) -> ir.DataType | None:
    """Return what a node gives out: shapes stay integers, quantised values their format, all else the node's own type."""
    if node.op_type == "Shape":
        return ir.DataType.INT64
    if node.op_type == "QuantizeLinear":
        return found[2]  # the zero point's type
    return target if floating else found[0] if found else None


def initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant to the graph and return its value."""
    tensor = ir.tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
