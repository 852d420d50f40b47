"""Edits of a graph that OpenVINO has read, before it compiles it: fixed shapes, and a last block for the cls row alone."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saccade.bundle import TensorSpec
from saccade.errors import SaccadeError

NORM = "MVN"  # what OpenVINO reads LayerNormalization as
SPLITS = ("Split", "VariadicSplit")


def fix_shapes(model: Any, inputs: Sequence[TensorSpec]) -> None:
    """Give every input the fixed shape of its spec; all shapes behind it follow."""
    model.reshape({spec.name: list(spec.shape) for spec in inputs})


def keep_cls_alone(model: Any) -> None:
    """Drop the output "tokens", and let the last block compute of all rows only the first, cls, which is left.

    Its keys and values are of every row; the query, the row of attention, the projection, the network behind it and all
    that is added come of one. Rows do not mix there, so nothing else is computed: the same kernels give the same bits.
    """
    attention = [node for node in model.get_ordered_ops() if node.get_type_name() == "Softmax"][-1]
    split = _above(attention, SPLITS)
    norm = _above(split, (NORM,))
    residual = [use for use in norm.input_value(0).get_target_inputs() if use.get_node().get_type_name() == "Add"]
    for use in (*split.output(0).get_target_inputs(), *residual):
        use.replace_source_output(_first_row(use.get_source_output()))
    for result in model.get_results():
        if "tokens" in result.input_value(0).get_names():
            model.remove_result(result)
    model.validate_nodes_and_infer_types()


def _above(node: Any, kinds: Sequence[str]) -> Any:
    """Follow first inputs, where the activations run, to the nearest node of a kind."""
    while node.get_input_size():
        node = node.input_value(0).get_node()
        if node.get_type_name() in kinds:
            return node
    raise SaccadeError(f"openvino reads the extractor's last block without {' or '.join(kinds)}; leave cls_only out")


def _first_row(rows: Any) -> Any:
    """Return row 0 of (B, N, D), as (B, 1, D)."""
    from openvino import opset8

    start, stop, step, axis = (np.array([number], np.int64) for number in (0, 1, 1, 1))
    return opset8.slice(rows, start, stop, step, axis).output(0)
