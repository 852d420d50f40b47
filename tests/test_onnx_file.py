"""An ONNX file with weights elsewhere is found whatever part of it names them, and nothing of it is used."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade import SaccadeError, read_bundle
from saccade.bundle import sha256_of_file, write_manifest
from saccade.engines import store
from saccade.engines.engine import default_request
from saccade.onnx_file import is_whole
from saccade.validate.gate import Judge


def tensor(*, external: bool) -> onnx.TensorProto:
    made = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    if external:
        made.ClearField("raw_data")
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value="weights.bin")
    return made


def initializer(made: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[made]))


def constant(made: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.helper.make_node("Constant", [], ["c"], value=made)]))


def inner_graph(made: onnx.TensorProto) -> onnx.ModelProto:
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=onnx.GraphProto(name="g", initializer=[made]))
    return onnx.ModelProto(graph=onnx.GraphProto(node=[node]))


def function(made: onnx.TensorProto) -> onnx.ModelProto:
    node = onnx.helper.make_node("Constant", [], ["c"], value=made)
    return onnx.ModelProto(functions=[onnx.FunctionProto(name="f", node=[node])])


def sparse(made: onnx.TensorProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[onnx.SparseTensorProto(values=made)]))


@pytest.mark.parametrize("place", [initializer, constant, inner_graph, function, sparse])
@pytest.mark.parametrize("external", [True, False], ids=["elsewhere", "inside"])
def test_weights_elsewhere_are_found_wherever_they_are_named(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], external: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(place(tensor(external=external)).SerializeToString())
    assert is_whole(path) == (not external)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_graph_raise_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    assert is_whole(path) in (True, False)


def test_every_graph_of_ours_is_whole(converted_bundle: Path) -> None:
    graphs = sorted(converted_bundle.glob("*.onnx"))
    assert len(graphs) == 12
    assert all(is_whole(path) for path in graphs)


def test_a_graph_with_weights_elsewhere_is_refused_before_an_engine_is_made_of_it(
    small_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    model = onnx.load(path / "extractor.onnx")
    onnx.save(model, path / "extractor.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    bundle = read_bundle(path)
    graphs = dict(bundle.manifest.graphs)
    digest = sha256_of_file(path / "extractor.onnx")
    graphs["extractor"] = {"fp32": msgspec.structs.replace(graphs["extractor"]["fp32"], sha256=digest)}
    write_manifest(path, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    changed = read_bundle(path)
    refusal = r"extractor\.onnx does not hold its weights itself, so nothing checks them; export the bundle again"
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(SaccadeError, match=refusal):
            store.ensure(changed, default_request(changed, engine, "fp32"), lambda _: None, lambda _: None)
    with pytest.raises(SaccadeError, match=refusal):
        Judge(changed)
    assert not (path / "engines").exists()


@pytest.mark.parametrize("name", ["extractor.xml", "extractor.ort", "extractor"])
def test_a_graph_that_is_not_called_onnx_is_refused(
    name: str, small_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    (path / "extractor.onnx").rename(path / name)
    text = (path / "bundle.json").read_text()
    (path / "bundle.json").write_text(text.replace('"extractor.onnx"', f'"{name}"'))
    with pytest.raises(SaccadeError, match=f"the fp32 extractor is {name}, not a file that ends in .onnx; export"):
        read_bundle(path)
