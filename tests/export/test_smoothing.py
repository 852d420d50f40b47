"""Smoothing: the same function, by the formula of the paper, where there is a place for it, and worth its trouble."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from saccade.export.calibration import Activations, Statistics, channel_maxima
from saccade.export.quantization import activation_names, round_weights
from saccade.export.smoothing import SMALLEST_MAXIMUM, smooth, smoothing_factors, write_smoothed
from saccade.export.variants import Scales, write_variant

KINDS = ("dinov2", "franca", "segment")
OUTLIERS, TIMES = (3, 50, 99), 50.0  # channels of each norm's output, and how much larger they become

Feed = dict[str, np.ndarray]
Feeds = Callable[[str, str], list[Feed]]
Run = Callable[[Path, Feed], Feed]
Small = Callable[[str], Path]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def weight(graph: ir.Graph, name: str) -> np.ndarray:
    return np.array(graph.initializers[name].const_value.numpy())


def replace(graph: ir.Graph, name: str, array: np.ndarray) -> None:
    graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)


def readers(graph: ir.Graph) -> dict[str, str]:
    """Return the activation that each layer of the blocks reads, by the layer's name."""
    found = {}
    for node in graph:
        for value in node.inputs[1:]:
            if node.op_type == "MatMul" and value.is_initializer() and ".blocks." in value.name:
                found[value.name.removeprefix("backbone.blocks.").removesuffix(".weight")] = node.inputs[0].name
    return found


def relative(found: Feed, expected: Feed) -> float:
    return max(float(np.linalg.norm(found[n] - expected[n]) / np.linalg.norm(expected[n])) for n in expected)


def test_the_smoothed_graph_is_the_same_function(
    kind: str, role: str, small_bundle: Small, feeds_of: Feeds, run_graph: Run, tmp_path: Path
) -> None:
    source, target, feeds = small_bundle(kind) / f"{role}.onnx", tmp_path / "smoothed.onnx", feeds_of(kind, role)
    write_smoothed(source, target, channel_maxima(source, feeds))
    assert [node.op_type for node in onnx.load(target).graph.node] == [n.op_type for n in onnx.load(source).graph.node]
    for feed in feeds[:2]:
        assert relative(run_graph(target, feed), run_graph(source, feed)) < 1e-5


def test_any_factors_leave_the_function_as_it_is(
    kind: str, role: str, small_bundle: Small, feeds_of: Feeds, run_graph: Run, tmp_path: Path
) -> None:
    source, feed = small_bundle(kind) / f"{role}.onnx", feeds_of(kind, role)[0]
    model, random = ir.load(source), np.random.default_rng(0)
    widths = {name: len(value) for name, value in channel_maxima(source, [feed]).items()}
    smooth(model.graph, {name: np.exp(random.normal(0, 1, size)).astype(np.float32) for name, size in widths.items()})
    ir.save(model, tmp_path / "other.onnx")
    assert relative(run_graph(tmp_path / "other.onnx", feed), run_graph(source, feed)) < 1e-5


def test_activations_come_out_divided_by_their_factors(
    kind: str, role: str, small_bundle: Small, feeds_of: Feeds, tmp_path: Path
) -> None:
    source, target, feed = small_bundle(kind) / f"{role}.onnx", tmp_path / "smoothed.onnx", feeds_of(kind, role)[0]
    maxima = channel_maxima(source, [feed])
    factors = smoothing_factors(ir.load(source).graph, maxima)
    write_smoothed(source, target, maxima)
    before, after = (Activations(path).run(feed) for path in (source, target))
    for name, values in before.items():
        expected = values / factors.get(name, np.float32(1))
        np.testing.assert_allclose(after[name], expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def test_factors_are_those_of_the_paper(kind: str, role: str, small_bundle: Small, feeds_of: Feeds) -> None:
    path, feeds = small_bundle(kind) / f"{role}.onnx", feeds_of(kind, role)
    graph, activations = ir.load(path).graph, Activations(path)
    runs = [activations.run(feed) for feed in feeds]
    factors = smoothing_factors(graph, channel_maxima(path, feeds))
    for layer, name in readers(graph).items():
        if name in factors:
            x, w = np.concatenate([run[name] for run in runs]), weight(graph, f"backbone.blocks.{layer}.weight")
            np.testing.assert_allclose(factors[name], np.sqrt(abs(x).max(0) / abs(w).max(1)), rtol=1e-5, err_msg=layer)


def test_a_dead_channel_has_a_factor_too(small_bundle: Small) -> None:
    graph = ir.load(small_bundle("dinov2") / "selector.onnx").graph
    name = readers(graph)["0.attn.qkv"]
    replace(graph, "backbone.blocks.0.attn.qkv.weight", np.zeros((128, 384)))
    factors = smoothing_factors(graph, {each: np.zeros(512 if "fc2" in each else 128) for each in activation_names(graph)})
    np.testing.assert_allclose(factors[name], 1)
    assert SMALLEST_MAXIMUM > 0


def test_behind_a_gelu_there_is_no_place_and_behind_a_gate_there_is(kind: str, role: str, small_bundle: Small) -> None:
    graph = ir.load(small_bundle(kind) / f"{role}.onnx").graph
    found = readers(graph)
    maxima = {name: np.ones(len(weight(graph, f"backbone.blocks.{layer}.weight"))) for layer, name in found.items()}
    smoothed = smoothing_factors(graph, maxima)
    left = {layer for layer, name in found.items() if name not in smoothed}
    kept = kind == "franca" and role == "extractor"  # the selector's are not quantised, so nothing is smoothed for them
    assert left == (set() if kept else {layer for layer in found if layer.endswith("mlp.fc2")})


@pytest.mark.parametrize("how", ["another node", "an output of the graph"])
def test_an_activation_that_something_else_reads_is_left_alone(
    how: str, small_bundle: Small, feeds_of: Feeds, run_graph: Run, tmp_path: Path
) -> None:
    source, feed = small_bundle("dinov2") / "selector.onnx", feeds_of("dinov2", "selector")[0]
    model = ir.load(source)
    name = readers(model.graph)["0.mlp.fc1"]
    value = next(output for node in model.graph for output in node.outputs if output.name == name)
    if how == "another node":
        mirror = ir.node("Neg", [value], name="mirror")
        model.graph.insert_after(value.producer(), mirror)
        value = mirror.outputs[0]
        value.name = "mirrored"
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)
    ir.save(model, tmp_path / "watched.onnx")
    maxima = channel_maxima(tmp_path / "watched.onnx", [feed])
    assert name not in smoothing_factors(model.graph, maxima)
    write_smoothed(tmp_path / "watched.onnx", tmp_path / "smoothed.onnx", maxima)
    assert relative(run_graph(tmp_path / "smoothed.onnx", feed), run_graph(tmp_path / "watched.onnx", feed)) < 1e-5


def write_with_outliers(source: Path, target: Path) -> None:
    """Write the same function with a few channels of every norm much larger, and what reads them smaller."""
    model = ir.load(source)
    factor = np.ones(128, np.float32)
    factor[list(OUTLIERS)] = TIMES
    for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
        for block in range(2):
            name = f"backbone.blocks.{block}"
            for part in ("weight", "bias"):
                replace(model.graph, f"{name}.{norm}.{part}", weight(model.graph, f"{name}.{norm}.{part}") * factor)
            replace(model.graph, f"{name}.{layer}.weight", weight(model.graph, f"{name}.{layer}.weight") / factor[:, None])
    ir.save(model, target)


def write_int8(source: Path, target: Path, feeds: list[Feed]) -> None:
    statistics = Statistics(source, feeds)
    weights = round_weights(source, "int8", statistics.covariances)
    write_variant(source, target, "int8", Scales(statistics.ranges("minmax"), weights))


@pytest.mark.parametrize("kind", ["dinov2", "franca"])
def test_a_few_large_channels_ruin_int8_unless_they_are_smoothed(
    kind: str, small_bundle: Small, feeds_of: Feeds, run_graph: Run, tmp_path: Path
) -> None:
    plain, feeds = small_bundle(kind) / "extractor.onnx", feeds_of(kind, "extractor")
    wild, smoothed = tmp_path / "wild.onnx", tmp_path / "smoothed.onnx"
    write_with_outliers(plain, wild)
    write_smoothed(wild, smoothed, channel_maxima(wild, feeds))
    truth = run_graph(plain, feeds[0])
    assert relative(run_graph(wild, feeds[0]), truth) < 1e-4  # in fp32 they do no harm
    errors = {}
    for source in (plain, wild, smoothed):
        write_int8(source, tmp_path / "int8.onnx", feeds)
        errors[source.stem] = relative(run_graph(tmp_path / "int8.onnx", feeds[0]), truth)
    assert errors["wild"] > 4 * errors["extractor"]
    assert errors["smoothed"] < 1.5 * errors["extractor"]
