"""Graphs in 16 bits: every type as promised, the numbers near the fp32 graph's, and what does not fit refused by name."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from saccade import read_bundle
from saccade.engines.openvino import open_as_written
from saccade.errors import SaccadeError
from saccade.export.precision import narrow

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = {TensorProto.FLOAT, *TYPES.values()}
# ONNX knows no Conv in bfloat16 before opset 22.
FLOAT32_OPS = {"fp16": {"LayerNormalization", "Softmax"}, "bf16": {"LayerNormalization", "Softmax", "Conv"}}
BOUNDS = {"fp16": 5e-3, "bf16": 5e-2}  # of the largest value

Feed = dict[str, np.ndarray]


@pytest.fixture(params=TYPES)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(variant_of: Callable[[str, str, str], Path], kind: str, role: str, precision: str) -> Path:
    return variant_of(kind, role, precision)


def types_of(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element type of every value, as ONNX's own inference derives it."""
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def inferred(path: Path) -> onnx.GraphProto:
    return onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True).graph


def behind_the_last_norm(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values that depend on the last norm."""
    reached: set[str] = set()
    last = [node for node in graph.node if node.op_type == "LayerNormalization"][-1]
    for node in graph.node:
        if node is last or reached & set(node.input):
            reached |= set(node.output)
    return reached


def distance(found: Feed, expected: Feed) -> float:
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def test_the_onnx_checker_accepts_every_graph(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)


def test_inputs_and_outputs_stay_float32_with_their_shapes(path: Path, small_bundle: Callable[[str], Path]) -> None:
    kind, role, _ = path.name.split(".", 2)
    original, graph = onnx.load(small_bundle(kind) / f"{role}.onnx").graph, onnx.load(path).graph
    assert list(graph.input) == list(original.input)
    assert list(graph.output) == list(original.output)


def test_norms_softmax_and_the_tail_are_float32_and_all_else_is_narrow(path: Path, precision: str) -> None:
    graph = inferred(path)
    types, tail = types_of(graph), behind_the_last_norm(graph)
    seen = set()
    for node in graph.node:
        if node.op_type in ("Cast", "Shape"):
            continue
        wide = node.op_type in FLOAT32_OPS[precision] or node.output[0] in tail
        expected = TensorProto.FLOAT if wide else TYPES[precision]
        found = {types[name] for name in (*node.input, *node.output)} & FLOATS
        assert found <= {expected}, (node.op_type, node.name)
        seen |= found
    assert seen == {TensorProto.FLOAT, TYPES[precision]}


def test_weights_are_stored_in_the_type_that_reads_them(path: Path, precision: str) -> None:
    graph = onnx.load(path).graph
    wide_parts = {name for node in graph.node if node.op_type in FLOAT32_OPS[precision] for name in node.input}
    cast = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    assert not cast & {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        wide = tensor.name in wide_parts or tensor.name.startswith("head.")
        if tensor.data_type in FLOATS and len(tensor.dims):
            assert tensor.data_type == (TensorProto.FLOAT if wide else TYPES[precision]), tensor.name


def test_nothing_is_stored_that_nobody_reads(path: Path) -> None:
    graph = onnx.load(path).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_no_value_is_cast_twice_to_one_type(path: Path) -> None:
    graph = onnx.load(path).graph
    casts = [(node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_onnxruntime_computes_nearly_what_the_fp32_graph_gives(
    kind: str, role: str, small_bundle: Callable[[str], Path], variant_of: Callable[[str, str, str], Path],
    feeds_of: Callable[[str, str], list[Feed]], run_graph: Callable[[Path, Feed], Feed],
) -> None:  # fmt: skip
    feed = feeds_of(kind, role)[0]
    expected = run_graph(small_bundle(kind) / f"{role}.onnx", feed)
    found = run_graph(variant_of(kind, role, "fp16"), feed)
    assert 1e-6 < distance(found, expected) < BOUNDS["fp16"]


def test_openvino_computes_what_is_written(
    path: Path, precision: str, small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]],
    run_graph: Callable[[Path, Feed], Feed],
) -> None:  # fmt: skip
    kind, role, _ = path.name.split(".", 2)
    bundle, feed = read_bundle(small_bundle(kind)), feeds_of(kind, role)[0]
    engine = open_as_written(role, bundle.graph(role, "fp32"), path)
    found = {name: np.array(array) for name, array in engine.run(feed).items()}
    engine.close()
    assert 1e-6 < distance(found, run_graph(bundle.path / f"{role}.onnx", feed)) < BOUNDS[precision]


def with_value(path: Path, name: str, value: float) -> ir.Model:
    """Return a graph with one weight's first number replaced."""
    model = ir.load(path)
    constant = model.graph.initializers[name]
    array = np.array(constant.const_value.numpy())
    array.flat[0] = value
    constant.const_value = ir.tensor(array, name=name)
    return model


def test_a_weight_beyond_fp16_is_refused_by_name(small_bundle: Callable[[str], Path]) -> None:
    name = "backbone.blocks.1.mlp.fc1.weight"
    path = small_bundle("dinov2") / "extractor.onnx"
    message = rf"^weight '{name}' is beyond what fp16 can hold \(65504\); use --precision bf16$"
    with pytest.raises(SaccadeError, match=message):
        narrow(with_value(path, name, -7e4).graph, "fp16")
    narrow(with_value(path, name, 65504).graph, "fp16")
    narrow(with_value(path, name, -7e4).graph, "bf16")
    narrow(with_value(path, name, -7e4).graph, "fp16", blocks={0})


def test_a_norms_weight_may_be_beyond_fp16(small_bundle: Callable[[str], Path]) -> None:
    narrow(with_value(small_bundle("dinov2") / "extractor.onnx", "backbone.blocks.0.norm1.weight", 7e4).graph, "fp16")


@pytest.mark.parametrize("blocks", [{0}, {1}, {0, 1}, set()], ids=str)
def test_only_the_named_blocks_are_narrowed(
    blocks: set[int], precision: str, small_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    model, path = ir.load(small_bundle("franca") / "extractor.onnx"), tmp_path / "some.onnx"
    narrow(model.graph, precision, blocks)
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    graph = inferred(path)
    types = types_of(graph)
    narrowed = {name.split(".")[2] for name, found in types.items() if ".blocks." in name and found == TYPES[precision]}
    assert narrowed == {str(block) for block in blocks}
    products = [types[node.output[0]] for node in graph.node if node.op_type == "MatMul"]
    assert products.count(TYPES[precision]) == 6 * len(blocks)  # four layers and the two of attention


def test_no_block_at_all_leaves_the_graph_as_it_was(small_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copy(small_bundle("dinov2") / "selector.onnx", tmp_path / "source.onnx")
    model = ir.load(source)
    narrow(model.graph, "fp16", set())
    ir.save(model, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx").graph == onnx.load(source).graph


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_none_in_any_precision(
    precision: str, value: float, small_bundle: Callable[[str], Path]
) -> None:
    graph, name = ir.load(small_bundle("dinov2") / "extractor.onnx").graph, "backbone.blocks.0.ls1.gamma"
    graph.initializers[name].const_value = ir.tensor(np.full(128, value, np.float32), name=name)
    with pytest.raises(SaccadeError, match=f"^weight '{name}' holds NaN or infinity; check the checkpoint and export it"):
        narrow(graph, precision)
