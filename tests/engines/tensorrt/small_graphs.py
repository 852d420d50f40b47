"""Small transformers in the form the exporter writes them, and requests to build engines from them."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.bundle import (
    Bundle,
    DataFile,
    Defaults,
    GraphFile,
    ImageContract,
    Manifest,
    Model,
    TensorSpec,
    read_bundle,
    sha256_of_file,
    write_manifest,
)
from saccade.engines import tensorrt as module
from saccade.engines.engine import EngineRequest
from saccade.engines.tensorrt import TensorRTBackend, find_gpus
from saccade.engines.tensorrt_build import Job

DIM, PREFIX = 128, 5
no_gpu = pytest.mark.skipif(bool(find_gpus()[0]), reason="this machine has a GPU")
RTX = TensorRTBackend("tensorrt-rtx")


class Graph:
    """Builds ONNX nodes; `half` puts fp16 around norms and softmaxes in fp32, as `convert` does."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self.dtype = np.float16 if half else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"/{kind}_{len(self.nodes)}", **attributes))
        return out

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        return self.constant((self.random.standard_normal(shape) * 0.05).astype(self.dtype))

    def full(self, tensor: str, out: str = "") -> str:
        return self.op("Cast", tensor, to=TensorProto.FLOAT, out=out) if self.half or out else tensor

    def narrow(self, tensor: str) -> str:
        return self.op("Cast", tensor, to=TensorProto.FLOAT16) if self.half else tensor

    def linear(self, x: str, rows: int, columns: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(rows, columns)), self.weight(columns))

    def norm(self, x: str) -> str:
        scale, shift = self.constant(np.ones(DIM, np.float32)), self.constant(np.zeros(DIM, np.float32))
        return self.narrow(self.op("LayerNormalization", self.full(x), scale, shift, axis=-1, epsilon=1e-6))

    def attention(self, x: str) -> str:
        heads = DIM // 64
        rows = self.op("Reshape", self.linear(x, DIM, 3 * DIM), self.integers(0, -1, 3, heads, 64))
        stacked = self.op("Transpose", rows, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", stacked, self.constant(np.array(i)), axis=0) for i in range(3))
        q = self.op("Mul", q, self.constant(np.array(0.125, self.dtype)))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        shares = self.narrow(self.op("Softmax", self.full(scores), axis=-1))
        mixed = self.op("Transpose", self.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.integers(0, -1, DIM)), DIM, DIM)

    def block(self, x: str) -> str:
        x = self.op("Add", x, self.attention(self.norm(x)))
        wide = self.op("Gelu", self.linear(self.norm(x), DIM, 4 * DIM))
        return self.op("Add", x, self.linear(wide, 4 * DIM, DIM))

    def save(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphFile:
        values = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (*inputs, *outputs)]
        split = len(inputs)
        graph = helper.make_graph(self.nodes, path.stem, values[:split], values[split:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return GraphFile(path.name, sha256_of_file(path), inputs, outputs)


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def save_selector(path: Path, half: bool, depth: int) -> GraphFile:
    graph = Graph(half)
    cells = graph.op("Conv", graph.narrow("lowres"), graph.weight(DIM, 3, 14, 14), strides=[14, 14])
    x = graph.op("Transpose", graph.op("Reshape", cells, graph.integers(0, DIM, -1)), perm=[0, 2, 1])
    for _ in range(depth):
        x = graph.block(x)
    x = graph.full(graph.norm(x))
    graph.op("Slice", x, graph.integers(0), graph.integers(PREFIX), graph.integers(1), out="prefix")
    head = graph.constant(graph.random.standard_normal((DIM, 4)).astype(np.float32))
    graph.op("Reshape", graph.op("MatMul", x, head), graph.integers(0, 6, 6), out="score_map")
    inputs = (spec("lowres", "batch", 3, 42, 42),)
    return graph.save(path, inputs, (spec("score_map", "batch", 6, 6), spec("prefix", "batch", PREFIX, DIM)))


def save_extractor(path: Path, half: bool, depth: int) -> GraphFile:
    graph = Graph(half)
    x = graph.op("Add", graph.linear(graph.narrow("patches"), 588, DIM), graph.narrow("positions"))
    x = graph.op("Concat", graph.narrow("prefix"), x, axis=1)
    for _ in range(depth):
        x = graph.block(x)
    x = graph.full(graph.norm(x))
    graph.op("Gather", x, graph.constant(np.array(0)), axis=1, out="cls")
    graph.op("Slice", x, graph.integers(PREFIX), graph.integers(1 << 40), graph.integers(1), out="tokens")
    shapes = {"patches": ("k", 588), "positions": ("k", DIM), "prefix": (PREFIX, DIM)}
    inputs = tuple(spec(name, "batch", *shape) for name, shape in shapes.items())
    return graph.save(path, inputs, (spec("cls", "batch", DIM), spec("tokens", "batch", "k", DIM)))


def make_bundle(folder: Path, depth: int = 2) -> Bundle:
    """Write a bundle of small graphs in fp32 and fp16."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "positions.npy", np.zeros((3, 3, DIM), np.float32))
    graphs: dict[str, Any] = {}
    for role, save in (("selector", save_selector), ("extractor", save_extractor)):
        graphs[role] = {
            precision: save(folder / f"{role}.{precision}.onnx", precision == "fp16", depth)
            for precision in ("fp32", "fp16")
        }
    widths = {"dim": DIM, "heads": 2, "hidden": 4 * DIM, "map_hidden": DIM}
    sizes = {"depth": depth, "selector_depth": depth, "prefix": PREFIX, "patch": 14, "selector_size": 42, "map_size": 6}
    manifest = Manifest(
        format=1,
        model=Model(ffn="gelu", base_grid=(3, 3), **widths, **sizes),
        task="features",
        defaults=Defaults(size=(42, 42), k=4),
        image=ImageContract(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        positions=DataFile("positions.npy", sha256_of_file(folder / "positions.npy")),
        graphs=graphs,
    )
    write_manifest(folder, manifest)
    return read_bundle(folder)


def request(**fields: Any) -> EngineRequest:
    defaults = {"engine": "tensorrt-rtx", "precision": "fp32", "device": "0", "max_k": 64, "opt_k": 16}
    return EngineRequest(**defaults | fields)


def quiet(phase: str) -> None:
    del phase


def job(bundle: Bundle, plan: Path, **fields: Any) -> Job:
    """One build without the bundle's checks around it."""
    role, precision = fields.pop("role", "extractor"), fields.pop("precision", "fp32")
    graph = bundle.graph(role, precision)
    files = {"onnx": str(bundle.path / graph.file), "plan": str(plan), "inputs": graph.inputs, "outputs": graph.outputs}
    limits: dict[str, Any] = {"compute_capabilities": (), "device": None, "timing_cache": None}
    limits["extents"] = module.profile_of(request(), 14)
    names: dict[str, Any] = {"engine": "tensorrt-rtx", "role": role, "precision": precision, "parent": os.getpid()}
    return Job(**names | files | limits | fields)
