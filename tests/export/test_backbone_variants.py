"""A backbone in other precisions: its four outputs stay float32 and near, and cls's attention row goes out unquantised."""
from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from saccade import read_bundle
from saccade.bundle import Variant
from saccade.contract import backbone_contract, extras_of
from saccade.export import anatomy
from saccade.export.calibration import ROWS, Statistics, some_rows
from saccade.export.smoothing import smooth, smoothing_factors
from saccade.validate.backbone_gate import open_judge
from saccade.validate.parity import cosine_distances

VARIANTS: dict[Variant, float] = {"fp16": 1e-5, "int8": 5e-3, "int8-fp16": 5e-3}  # -> cosine distance of any output
DEPTH = 4
Feed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def feeds(small_backbone: Callable[[str], Path], photo_folder: Path) -> Iterator[list[Feed]]:
    with open_judge(read_bundle(small_backbone("neco"))) as judge:
        yield [judge.feed("backbone", path) for path in sorted(photo_folder.iterdir())[:2]]


def run(path: Path, feed: Feed) -> Feed:
    """Run a graph file as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output_survives_in_float32(variant: Variant, converted_backbone: Path, feeds: list[Feed]) -> None:
    for feed in feeds:
        truth, found = (run(converted_backbone / name, feed) for name in ("backbone.onnx", f"backbone.{variant}.onnx"))
        assert list(found) == ["cls", "tokens", "attention", "cls_last4"]
        for name, array in found.items():
            assert (array.dtype, array.shape) == (np.float32, truth[name].shape)
            assert 1e-12 < cosine_distances(array, truth[name]).max() < VARIANTS[variant], name
        np.testing.assert_array_less(found["attention"].sum(axis=2), 1)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "int8", "int8-fp16", "fp8"])
def test_the_contract_holds_in_every_variant(variant: str, converted_backbone: Path) -> None:
    bundle = read_bundle(converted_backbone)
    contract = backbone_contract(bundle.manifest.model, extras_of(bundle.manifest.model))
    graph = onnx.load(converted_backbone / f"backbone.{variant}.onnx").graph
    for specs, values in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
        assert [spec.name for spec in specs] == [value.name for value in values]
        assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}
        for spec, value in zip(specs, values, strict=True):
            found = tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
            assert found == spec.shape


@pytest.mark.parametrize("variant", ["int8", "int8-fp16", "fp8"])
def test_the_weights_of_the_blocks_are_quantised_and_nothing_else(variant: str, converted_backbone: Path) -> None:
    graph = onnx.load(converted_backbone / f"backbone.{variant}.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    quantised = [
        node for node in graph.node if node.op_type == "MatMul" and makers[node.input[1]].op_type == "DequantizeLinear"
    ]
    assert len(quantised) == 4 * DEPTH
    counts = collections.Counter(node.op_type for node in graph.node)
    assert counts["MatMul"] == 6 * DEPTH + 1  # attention's products, and cls's row of the last block's
    assert counts["QuantizeLinear"] == 4 * DEPTH


def test_the_row_that_is_told_ends_in_its_output_alone(converted_backbone: Path) -> None:
    graph = ir.load(converted_backbone / "backbone.onnx").graph
    told = anatomy.told_softmaxes(graph)
    assert collections.Counter(node.op_type for node in told)["Softmax"] == 1
    leaving = {value.name for node in told for value in node.outputs if value.is_graph_output()}
    assert leaving == {"attention"}


def test_no_softmax_of_lookwhere_is_told(small_bundle: Callable[[str], Path]) -> None:
    for role in ("selector", "extractor"):
        assert not anatomy.told_softmaxes(ir.load(small_bundle("dinov2") / f"{role}.onnx").graph)


def test_smoothing_finds_every_place_and_changes_no_output(
    converted_backbone: Path, feeds: list[Feed], tmp_path: Path
) -> None:
    model = ir.load(converted_backbone / "backbone.onnx")
    names = [node.inputs[0].name for node in anatomy.quantized_products(model.graph)]
    widths = {name: np.geomspace(1, 50, 512 if "gelu" in name else 128).astype(np.float32) for name in names}
    factors = smoothing_factors(model.graph, widths)
    assert len(factors) == 3 * DEPTH  # what follows a GELU has no place to be divided in
    smooth(model.graph, factors)
    ir.save(model, tmp_path / "smooth.onnx")
    truth, found = run(converted_backbone / "backbone.onnx", feeds[0]), run(tmp_path / "smooth.onnx", feeds[0])
    for name, array in found.items():
        np.testing.assert_allclose(array, truth[name], atol=3e-5, err_msg=name)


# ---- statistics of many rows


def test_some_rows_are_all_of_few() -> None:
    values = np.arange(3 * ROWS, dtype=np.float32).reshape(ROWS, 3)
    assert some_rows(values) is values


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("row", [0, 777, 1373])
def test_some_rows_of_many_keep_the_largest_value_and_their_spread(sign: int, row: int) -> None:
    values = np.random.default_rng(0).standard_normal((1374, 8), dtype=np.float32)
    values[row, 5] = 90 * sign
    some = some_rows(values)
    assert ROWS <= len(some) <= ROWS + 1
    assert np.abs(some).max() == 90
    kept = some[np.abs(some).max(axis=1) < 90]
    np.testing.assert_allclose(kept.std(axis=0), 1, atol=0.15)


def test_ranges_of_long_feeds_reach_as_far_as_all_rows_do(converted_backbone: Path, feeds: list[Feed]) -> None:
    large = {"image": np.tile(feeds[0]["image"], (4, 1, 1, 1)), "positions": feeds[0]["positions"]}  # 344 rows
    large["image"][2] *= 3
    path = converted_backbone / "backbone.onnx"
    alone = {"image": large["image"][2:3], "positions": large["positions"]}  # the batch's largest values are all here
    every, one = Statistics(path, [large]).ranges("minmax"), Statistics(path, [alone]).ranges("minmax")
    first = next(iter(every))
    assert every[first] >= one[first] * (1 - 1e-5)
