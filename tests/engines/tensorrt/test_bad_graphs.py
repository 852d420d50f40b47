"""What is wrong with a graph is one line that names it."""
from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import DIM, RTX, Graph, job, quiet, request, spec

from saccade.bundle import Bundle
from saccade.engines.tensorrt_build import build_in_child, readable
from saccade.errors import SaccadeError


def test_fp32_for_turing_is_refused_with_the_remedy(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError) as caught:
        RTX.build(bundle, request(compute_capabilities=("SM75",)), tmp_path, quiet)
    text = str(caught.value)
    assert "cannot build selector.fp32.onnx for SM75: Cannot compile operation" in text
    assert text.endswith("FP32 GEMM is not supported; leave SM75 out, or build a 16-bit precision (--precision fp16)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", " holds no graph"), (b"\x00" * 64, " holds no graph"), (b"only text", ": Failed to parse the ONNX model")],
    ids=["empty", "zeros", "text"],
)
def test_a_file_that_is_no_graph_is_refused(bundle: Bundle, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(SaccadeError, match=f"bad.onnx{message}; export the bundle again$"):
        build_in_child(job(bundle, tmp_path / "e", onnx=str(tmp_path / "bad.onnx")), quiet)


def test_an_unknown_operator_is_named_with_its_node(bundle: Bundle, tmp_path: Path) -> None:
    graph = Graph(half=False)
    graph.nodes.append(helper.make_node("Wobble", ["x"], ["y"], name="odd", domain="example.org"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("example.org", 1)]
    model = helper.make_model(helper.make_graph(graph.nodes, "g", values[:1], values[1:]), opset_imports=opsets)
    model.ir_version = 9
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(SaccadeError, match=r"node 'odd' \(Wobble\): tensorrt-rtx does not have this operator"):
        build_in_child(job(bundle, tmp_path / "e", onnx=str(tmp_path / "odd.onnx")), quiet)


def test_a_graph_with_other_tensors_than_the_manifest_says_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"its outputs are \['cls', 'tokens'\], bundle.json says \['cls'\]"):
        build_in_child(job(bundle, tmp_path / "e", outputs=(spec("cls", "batch", DIM),)), quiet)


def test_a_dimension_other_than_batch_and_k_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    inputs = (spec("patches", "batch", "rows", 588), *bundle.graph("extractor", "fp32").inputs[1:])
    with pytest.raises(SaccadeError, match="'patches' varies in 'rows', only batch and k may"):
        build_in_child(job(bundle, tmp_path / "e", inputs=inputs), quiet)


def test_a_plan_that_cannot_be_written_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"cannot write .*: its folder does not exist; create it first"):
        build_in_child(job(bundle, tmp_path / "missing" / "e"), quiet)


def test_error_texts_lose_their_source_locations() -> None:
    text = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot "
        "compile 'MatMul_10' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/code.cpp:2012)"
    )
    assert readable(text) == "Cannot compile 'MatMul_10' for Turing (SM75): FP32 GEMM is not supported"
