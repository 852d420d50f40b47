"""Q/DQ pairs: symmetric, around the weight products of the blocks and nothing else, and read alike by two engines."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from saccade import read_bundle
from saccade.engines.openvino import open_as_written
from saccade.errors import SaccadeError
from saccade.export.calibration import Statistics
from saccade.export.quantization import activation_names, quantize
from saccade.export.variants import Scales

DEPTH = {"selector": 1, "extractor": 2}  # of the small models
# The selector keeps what a GELU or a gate feeds in floating point.
LAYERS = {
    "selector": ("attn.qkv", "attn.proj", "mlp.fc1"),
    "extractor": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
}
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
LARGEST = {"int8": 127, "fp8": 448}

Feed = dict[str, np.ndarray]
VariantOf = Callable[[str, str, str], Path]


@pytest.fixture(params=TYPES)
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(
    small_bundle: Callable[[str], Path], scales_of: Callable[..., Scales], kind: str, role: str, precision: str
) -> ir.Model:
    """Return a graph with its Q/DQ pairs and nothing else changed."""
    model, scales = ir.load(small_bundle(kind) / f"{role}.onnx"), scales_of(kind, role, precision)
    quantize(model.graph, precision, scales.ranges, scales.weights)
    return model


@pytest.fixture
def graph(model: ir.Model) -> onnx.GraphProto:
    return ir.to_proto(model).graph


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def quantized_products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the MatMul nodes both of whose factors come out of a DequantizeLinear."""
    made_by = producers(graph)
    return [
        node for node in graph.node
        if node.op_type == "MatMul"
        and all(name in made_by and made_by[name].op_type == "DequantizeLinear" for name in node.input)
    ]  # fmt: skip


def test_the_layers_of_each_block_are_quantised_and_nothing_else(graph: onnx.GraphProto, role: str) -> None:
    made_by = producers(graph)
    weights = [made_by[node.input[1]].input[0] for node in quantized_products(graph)]
    assert weights == [f"backbone.blocks.{i}.{layer}.weight.quantized" for i in range(DEPTH[role]) for layer in LAYERS[role]]
    restored = {name for name, node in made_by.items() if node.op_type == "DequantizeLinear"}
    assert [node for node in graph.node if restored & set(node.input)] == quantized_products(graph)


def test_attention_embedding_head_and_scores_are_as_they_were(
    graph: onnx.GraphProto, small_bundle: Callable[[str], Path], kind: str, role: str
) -> None:
    original = onnx.load(small_bundle(kind) / f"{role}.onnx").graph
    new = {"QuantizeLinear", "DequantizeLinear"}
    names = {node.name for node in quantized_products(graph)}
    assert [n for n in graph.node if n.op_type not in new and n.name not in names] == [
        n for n in original.node if n.name not in names
    ]


def test_weights_have_a_scale_for_each_output_and_activations_one(graph: onnx.GraphProto, precision: str) -> None:
    held, made_by = constants(graph), producers(graph)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in quantized_products(graph):
        activation, weight = (made_by[name] for name in node.input)
        stored, scale, zero = weight.input
        assert (types[stored], types[zero], types[scale]) == (TYPES[precision], TYPES[precision], TensorProto.FLOAT)
        assert held[scale].shape == held[zero].shape == held[stored].shape[1:]
        assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [1]
        assert held[activation.input[1]].shape == held[activation.input[2]].shape == ()
        quantised = made_by[activation.input[0]]
        assert quantised.op_type == "QuantizeLinear"
        assert quantised.input[1:] == activation.input[1:]  # what is taken away is given back
        for zero_point in (held[zero], held[activation.input[2]]):
            assert not zero_point.astype(np.float32).any()


def test_one_pair_serves_all_readers_of_an_activation(graph: onnx.GraphProto) -> None:
    sources = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))


def test_a_second_product_on_an_activation_shares_its_pair(
    small_bundle: Callable[[str], Path], scales_of: Callable[..., Scales]
) -> None:
    model, scales = ir.load(small_bundle("dinov2") / "extractor.onnx"), scales_of("dinov2", "extractor", "int8")
    original, name = "backbone.blocks.0.attn.qkv.weight", "backbone.blocks.0.attn.twin.weight"
    (first,) = (use.node for use in model.graph.initializers[original].uses())
    weight = ir.Value(name=name, const_value=ir.tensor(first.inputs[1].const_value.numpy(), name=name))
    model.graph.register_initializer(weight)
    twin = ir.node("MatMul", [first.inputs[0], weight], name="twin")
    model.graph.insert_after(first, twin)
    weights = dict(scales.weights) | {name: scales.weights[original]}
    quantize(model.graph, "int8", scales.ranges, weights)
    assert first.inputs[0] is twin.inputs[0]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 8


def test_scales_are_the_largest_value_over_the_largest_number(
    graph: onnx.GraphProto, statistics_of: Callable[..., Statistics], kind: str, role: str, precision: str
) -> None:
    held, ranges = constants(graph), statistics_of(kind, role).ranges("minmax")
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert held[node.input[1]] == pytest.approx(ranges[node.input[0]] / LARGEST[precision], rel=1e-3)


def test_dequantised_weights_are_near_the_originals(
    graph: onnx.GraphProto, small_bundle: Callable[[str], Path], kind: str, role: str, precision: str
) -> None:
    held, original = constants(graph), constants(onnx.load(small_bundle(kind) / f"{role}.onnx").graph)
    steps = {"int8": 1 / 127, "fp8": 1 / 14}  # of the largest value, at the coarsest
    names = [name.removesuffix(".quantized") for name in held if name.endswith("weight.quantized")]
    for name in names:
        found = held[f"{name}.quantized"].astype(np.float32) * held[f"{name}.scale"]
        apart = np.abs(found - original[name]) / np.abs(original[name]).max(axis=0)
        assert apart.max() < 4 * steps[precision]  # what other rows lost is made good here
        assert apart.mean() < steps[precision]


def test_the_checker_accepts_it_and_the_original_weights_are_gone(model: ir.Model, tmp_path: Path) -> None:
    ir.save(model, tmp_path / "quantized.onnx")
    onnx.checker.check_model(str(tmp_path / "quantized.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "quantized.onnx").graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


@pytest.mark.parametrize("variant", ["int8", "int8-fp16", "fp8"])
def test_openvino_and_onnxruntime_agree_on_a_variant_and_are_near_fp32(
    variant: str, kind: str, role: str, variant_of: VariantOf, small_bundle: Callable[[str], Path],
    feeds_of: Callable[[str, str], list[Feed]], run_graph: Callable[[Path, Feed], Feed],
) -> None:  # fmt: skip
    path, feed, bundle = variant_of(kind, role, variant), feeds_of(kind, role)[0], read_bundle(small_bundle(kind))
    # A last bit decides where a value is rounded to; OpenVINO rounds to fp8 by way of fp16, and computes fp16 in float32.
    share = 0.7 if variant == "int8" else 1.2
    engine = open_as_written(role, bundle.graph(role, "fp32"), path)
    openvino = {name: np.array(array) for name, array in engine.run(feed).items()}
    engine.close()
    onnxruntime, truth = run_graph(path, feed), run_graph(bundle.path / f"{role}.onnx", feed)
    for name, expected in truth.items():
        error = np.linalg.norm(onnxruntime[name] - expected)
        assert 1e-4 < error / np.linalg.norm(expected) < 0.1, name
        assert np.linalg.norm(openvino[name] - onnxruntime[name]) < share * error, name
        assert np.linalg.norm(openvino[name] - expected) == pytest.approx(error, rel=0.3), name


def test_only_the_named_blocks_are_quantised(small_bundle: Callable[[str], Path], scales_of: Callable[..., Scales]) -> None:
    model, scales = ir.load(small_bundle("dinov2") / "extractor.onnx"), scales_of("dinov2", "extractor", "int8")
    quantize(model.graph, "int8", scales.ranges, scales.weights, blocks={1})
    stored = [name for name in model.graph.initializers if name.endswith("weight.quantized")]
    assert sorted(stored) == sorted(f"backbone.blocks.1.{layer}.weight.quantized" for layer in LAYERS["extractor"])


@pytest.mark.parametrize("range_", [float("nan"), float("inf")])
def test_a_range_that_is_no_number_is_refused_by_name(
    range_: float, small_bundle: Callable[[str], Path], scales_of: Callable[..., Scales]
) -> None:
    graph, scales = ir.load(small_bundle("dinov2") / "selector.onnx").graph, scales_of("dinov2", "selector", "int8")
    name = activation_names(graph)[1]
    with pytest.raises(SaccadeError, match=rf"^activation '{name}' reached {range_} in calibration; check the images"):
        quantize(graph, "int8", dict(scales.ranges) | {name: range_}, scales.weights)
