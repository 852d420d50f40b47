"""TensorRT-RTX engines, really built from small transformers; running them is checked on a stand-in for the GPU."""
from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

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
from saccade.engines import tensorrt_build
from saccade.engines.audit import audit_lines, audit_of_text
from saccade.engines.engine import LIMITS, Built, EngineRequest
from saccade.engines.tensorrt import Gpu, TensorRTBackend, find_gpus
from saccade.engines.tensorrt_build import Job, build_in_child, import_binding, readable
from saccade.errors import EngineError, OutOfMemoryError, SaccadeError

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")

DIM, PREFIX = 128, 5
no_gpu = pytest.mark.skipif(bool(find_gpus()[0]), reason="this machine has a GPU")
RTX = TensorRTBackend("tensorrt-rtx")


# ---- small graphs in the form the exporter writes them


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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def built(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Built, list[str]]]:
    """Both precisions, built once: folder, result, phases."""
    results = {}
    for precision in ("fp32", "fp16"):
        folder, phases = tmp_path_factory.mktemp(precision), list[str]()
        results[precision] = (folder, RTX.build(bundle, request(precision=precision), folder, phases.append), phases)
    return results


# ---- what a build gives


def test_a_build_leaves_one_plan_for_each_graph_and_nothing_else(built: Any) -> None:
    folder, result, _ = built["fp16"]
    assert result.files == {"selector": "selector.engine", "extractor": "extractor.engine"}
    assert sorted(path.name for path in folder.iterdir()) == ["extractor.engine", "selector.engine"]
    assert all((folder / file).read_bytes().startswith(b"vtrt") for file in result.files.values())


def test_a_build_names_its_phases_by_role(built: Any) -> None:
    phases = built["fp32"][2]
    assert phases[:3] == [
        "selector: parsing selector.fp32.onnx",
        "selector: building the engine",
        "selector: writing selector.engine",
    ]
    assert len(phases) == 6


def test_fp16_attention_is_fused_in_every_block_with_batch_and_k_dynamic(built: Any) -> None:
    for role, block_count in (("selector", 2), ("extractor", 2)):
        audit = built["fp16"][1].audit[role]
        assert (audit["attention_blocks"], audit["fused_attention"]) == (block_count, block_count)
        assert audit["softmax_kernels"] == 0
        assert audit["warnings"] == []


def test_fp32_attention_is_not_fused_and_that_is_expected(built: Any) -> None:
    audit = built["fp32"][1].audit["extractor"]
    assert (audit["attention_blocks"], audit["fused_attention"], audit["softmax_kernels"]) == (2, 0, 2)
    assert audit["warnings"] == []
    assert audit_lines(audit)[1].startswith("expected: TensorRT never fuses attention in fp32")


def test_the_audit_counts_gemms_and_norms_by_precision(built: Any) -> None:
    selector, extractor = (built["fp16"][1].audit[role] for role in ("selector", "extractor"))
    assert extractor["gemms"] == {"fp16": 2 * 4 + 1}  # qkv, projection and two of the MLP; the patch embedding
    assert selector["gemms"] == {"fp16": 2 * 4 + 1, "fp32": 1}  # the head stays fp32
    assert extractor["norms"] == {"fp32": 5}
    assert built["fp32"][1].audit["extractor"]["gemms"] == {"fp32": 2 * 6 + 1}  # and two products of each attention


def test_an_fp32_graph_under_the_name_of_fp16_is_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    plain = bundle.path / bundle.graph("extractor", "fp32").file
    finished = build_in_child(job(bundle, tmp_path / "e", onnx=str(plain), precision="fp16"), quiet)
    assert any("GEMMs run in fp16" in warning for warning in finished.audit.warnings)
    assert any("attention blocks are not fused" in warning for warning in finished.audit.warnings)


def test_an_engine_for_fewer_patches_than_it_would_be_tuned_for_is_built(bundle: Bundle, tmp_path: Path) -> None:
    build_in_child(job(bundle, tmp_path / "e", extents=module.profile_of(request(max_k=4, opt_k=136), 14)), quiet)
    assert (tmp_path / "e").stat().st_size > 0


def test_several_compute_capabilities_go_into_one_engine(bundle: Bundle, tmp_path: Path) -> None:
    targets = ("SM89", "SM120")
    finished = build_in_child(job(bundle, tmp_path / "e", precision="fp16", compute_capabilities=targets), quiet)
    assert finished.audit.fused_attention == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_rtx_engine_is_built_so_that_no_pass_of_it_allocates(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    trt = import_binding("tensorrt-rtx")
    builder = trt.Builder(tensorrt_build.process_log(trt, keep_lines=True))
    config = tensorrt_build._config(trt, job(bundle, tmp_path, precision=precision), builder)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else a CUDA graph of it is luck
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_an_rtx_engine_whose_passes_may_allocate_serves_nobody() -> None:
    wanted = RTX.conditions(request())
    allocating = {name: value for name, value in wanted.items() if name != "allocation"}
    assert wanted["allocation"] == "user"
    assert not RTX.serves(allocating, wanted, request(any_limits=True))


def test_a_failed_build_does_not_change_the_next_one(bundle: Bundle, tmp_path: Path) -> None:
    def build(name: str, *targets: str) -> int:
        """Return the size: the bytes differ from build to build in the order of tensors, even in one process each."""
        build_in_child(job(bundle, tmp_path / name, compute_capabilities=targets), quiet)
        return (tmp_path / name).stat().st_size

    before = build("before")
    with pytest.raises(SaccadeError):
        build("failed", "SM75")
    assert build("after") == before


# ---- what this machine and the request allow


@no_gpu
def test_capabilities_without_a_gpu_say_that_engines_can_be_built_but_not_run() -> None:
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.can_run, capabilities.devices) == (True, False, ())
    assert capabilities.missing is not None and "no NVIDIA GPU here (libcuda.so.1 not found)" in capabilities.missing


@pytest.mark.parametrize("error", [ImportError("No module named 'tensorrt_rtx'"), OSError("libfoo.so: no such file")])
def test_capabilities_name_the_pip_command_where_the_binding_does_not_import(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr("saccade.engines.tensorrt_build.importlib.import_module", refuse)
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.version) == (False, None)
    assert capabilities.missing is not None and str(error) in capabilities.missing
    assert "'.[tensorrt-rtx]'" in capabilities.missing


def test_conditions_name_the_version_the_targets_and_the_profile() -> None:
    conditions = RTX.conditions(request(compute_capabilities=("SM120", "SM89")))
    assert conditions["compute_capabilities"] == "SM89 SM120"  # in one order, so that the key is the same
    assert conditions["binding"] == "tensorrt_rtx"
    assert conditions["version"].count(".") >= 2
    limits = {name: value for name, value in conditions.items() if name in LIMITS}
    assert limits == {"max_batch": "8", "max_k": "64", "opt_k": "16"}


def test_an_unknown_compute_capability_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SaccadeError, match=r"no compute capability 'SM90'; choose from SM75, SM80, SM86, SM89, SM120"):
        RTX.conditions(request(compute_capabilities=("SM90",)))


def served(built: EngineRequest, asked: EngineRequest) -> bool:
    return RTX.serves(RTX.conditions(built), RTX.conditions(asked), asked)


@pytest.mark.parametrize(
    ("built", "asked", "serves"),
    [
        ({"max_batch": 8}, {"max_batch": 8}, True),
        ({"max_batch": 8}, {"max_batch": 4}, True),
        ({"max_batch": 4}, {"max_batch": 8}, False),
        ({"max_k": 64}, {"max_k": 63}, True),
        ({"max_k": 63}, {"max_k": 64}, False),
        ({"opt_k": 9}, {"opt_k": 16}, True),  # tuned elsewhere: slower, and still right
        ({"max_batch": 1, "max_k": 9}, {"any_limits": True}, True),
        ({"compute_capabilities": ("SM89", "SM120")}, {"compute_capabilities": ("SM89",)}, True),
        ({"compute_capabilities": ("SM89",)}, {"compute_capabilities": ("SM89", "SM120")}, False),
        ({}, {"compute_capabilities": ("SM89",)}, False),  # nobody says what the default holds
        ({"compute_capabilities": ("SM89",)}, {}, False),
    ],
)
def test_an_engine_serves_what_its_profile_and_targets_cover(built: Any, asked: Any, serves: bool) -> None:
    assert served(request(**built), request(**asked)) is serves


@pytest.mark.parametrize(("targets", "serves"), [((), True), (("SM89", "SM120"), True), (("SM120",), False)])
def test_a_run_takes_an_engine_for_its_gpu_alone(
    targets: tuple[str, ...], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA L4", "SM89", "13.0"),), ""))
    assert served(request(compute_capabilities=targets), request(any_limits=True)) is serves


@pytest.mark.parametrize("name", ["version", "binding", "extractor_sha256"])
def test_limits_never_make_up_for_another_version_or_graph(name: str) -> None:
    wanted = RTX.conditions(request()) | {"extractor_sha256": "1"}
    assert RTX.serves(wanted, wanted, request(any_limits=True))
    assert not RTX.serves(wanted | {name: "another"}, wanted, request(any_limits=True))


@pytest.mark.parametrize("text", ["", "many", "-8", "8.0", "9" * 5000])
def test_limits_that_are_no_numbers_serve_nothing(text: str) -> None:
    wanted = RTX.conditions(request())
    assert not RTX.serves(wanted | {"max_batch": text}, wanted, request())


@pytest.fixture
def plain_tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRTBackend:
    """The backend of TensorRT proper, its binding replaced by a stand-in."""
    binding = types.ModuleType("tensorrt")
    binding.__version__ = "11.4.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", binding)
    return TensorRTBackend("tensorrt")


@no_gpu
def test_tensorrt_refuses_to_build_without_a_gpu(
    plain_tensorrt: TensorRTBackend, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(SaccadeError, match=r"builds only on the GPU it runs on; .* --engine tensorrt-rtx"):
        plain_tensorrt.build(bundle, request(engine="tensorrt"), tmp_path, quiet)
    assert not plain_tensorrt.capabilities().can_build


def test_tensorrt_takes_no_compute_capabilities(plain_tensorrt: TensorRTBackend) -> None:
    with pytest.raises(SaccadeError, match="takes no --compute-capability"):
        plain_tensorrt.conditions(request(engine="tensorrt", compute_capabilities=("SM89",)))


def test_tensorrt_engines_depend_on_the_gpu_and_its_driver(
    plain_tensorrt: TensorRTBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA H200", "SM90", "13.0"),), ""))
    conditions = plain_tensorrt.conditions(request(engine="tensorrt", device="0"))
    assert conditions.items() >= {"gpu": "NVIDIA H200", "compute_capability": "SM90", "driver": "13.0"}.items()
    with pytest.raises(SaccadeError, match="no device '1' for it; give --device 0"):
        plain_tensorrt.conditions(request(engine="tensorrt", device="1"))


def test_a_gpu_that_rtx_does_not_compile_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA H200", "SM90", "13.0"),), ""))
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.can_run) == (True, False)
    assert capabilities.missing is not None and "does not support this GPU (NVIDIA H200 SM90)" in capabilities.missing


@no_gpu
def test_loading_without_a_gpu_says_what_to_do_instead(bundle: Bundle, built: Any) -> None:
    folder, result, _ = built["fp32"]
    with pytest.raises(SaccadeError, match=r"^tensorrt-rtx: no NVIDIA GPU here .* --engine openvino$"):
        RTX.load(bundle, request(), folder, result)


# ---- what is wrong with a graph


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


# ---- how a build ends early


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_child_is_an_error_that_names_the_signal(bundle: Bundle, tmp_path: Path) -> None:
    def kill(phase: str) -> None:
        if "building" in phase:
            os.kill(children_of(os.getpid())[-1], signal.SIGKILL)

    with pytest.raises(SaccadeError, match="process building the selector was ended by SIGKILL, mostly for want of"):
        RTX.build(bundle, request(), tmp_path, kill)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_the_child_is_no_saccade_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Traceback"):
        build_in_child(job(bundle, tmp_path / "e", extents="eight"), quiet)


BUILD_SCRIPT = """
    import os, sys
    from pathlib import Path
    from saccade.bundle import read_bundle
    from saccade.engines.engine import EngineRequest
    from saccade.engines.tensorrt import TensorRTBackend

    def say(phase):
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        print(*children, phase, flush=True)

    request = EngineRequest(engine="tensorrt-rtx", device="0", max_k=64)
    TensorRTBackend("tensorrt-rtx").build(read_bundle(sys.argv[1]), request, Path(sys.argv[2]), say)
"""


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Deep enough for its build to be met in the middle."""
    return make_bundle(tmp_path_factory.mktemp("slow"), depth=16)


@pytest.fixture
def running_build(slow_bundle: Bundle, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in the midst of a build, and the id of its child."""
    command = [sys.executable, "-c", textwrap.dedent(BUILD_SCRIPT), str(slow_bundle.path), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "building" in line)
        try:
            yield process, int(line.split()[0])
        finally:
            process.kill()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, given a moment; a zombie that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_an_interrupted_build_ends_its_child_and_leaves_no_file(running_build: Any, tmp_path: Path) -> None:
    process, child = running_build
    assert Path(f"/proc/{child}").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert is_gone(child)
    assert list(tmp_path.iterdir()) == []


def test_the_child_dies_with_its_parent(running_build: Any) -> None:
    process, child = running_build
    process.kill()
    assert is_gone(child)


# ---- what TensorRT measures is kept from build to build


class Timings:
    """The timing caches of a builder config: each holds bytes, and those of another GPU are refused."""

    def __init__(self, refused: bytes = b"another GPU") -> None:
        self.refused, self.current, self.tried = refused, b"", list[bytes]()

    def create_timing_cache(self, content: bytes) -> Any:
        return types.SimpleNamespace(content=content, serialize=lambda: memoryview(content + b"+more"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.tried.append(cache.content)
        self.current = cache
        return cache.content != self.refused

    def get_timing_cache(self) -> Any:
        return self.current


@pytest.mark.parametrize(
    ("known", "tried"),
    [(None, [b""]), (b"this GPU", [b"this GPU"]), (b"another GPU", [b"another GPU", b""])],
    ids=["none yet", "of this GPU", "of another GPU"],
)
def test_timings_are_taken_where_they_fit_and_kept_for_the_next_build(
    bundle: Bundle, tmp_path: Path, known: bytes | None, tried: list[bytes]
) -> None:
    path, config = tmp_path / ".tensorrt.timings", Timings()
    if known is not None:
        path.write_bytes(known)
    tensorrt_build._take_timings(path, config)
    assert config.tried == tried
    tensorrt_build._keep_timings(job(bundle, tmp_path, timing_cache=str(path)), config)
    assert path.read_bytes() == tried[-1] + b"+more"


def test_rtx_measures_nothing_and_keeps_nothing(bundle: Bundle, built: Any, tmp_path: Path) -> None:
    tensorrt_build._keep_timings(job(bundle, tmp_path), Timings())
    assert list(tmp_path.iterdir()) == []
    assert not (bundle.engines_path / ".tensorrt.timings").exists()


# ---- what the inspector on a GPU says is what is audited


def inspector(layers: str, *, loads: bool = True) -> Any:
    """Return a binding whose engines say that of themselves."""
    found = types.SimpleNamespace(get_engine_information=lambda form: {"oneline": layers}[form])
    engine = types.SimpleNamespace(create_engine_inspector=lambda: found) if loads else None
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    forms = types.SimpleNamespace(ONELINE="oneline")
    return types.SimpleNamespace(Runtime=lambda log: runtime, LayerInformationFormat=forms)


LOGGED = types.SimpleNamespace(
    lines=["Parsing node: a [Softmax]", "Name: _gemm_mha_v2, LayerType: kgen, "], error_line=lambda otherwise: otherwise
)


def test_on_a_gpu_the_layers_are_those_of_the_engine_itself_and_no_layer_counts_twice(
    bundle: Bundle, tmp_path: Path
) -> None:
    on_gpu = job(bundle, tmp_path, device=0, precision="fp16")
    text = tensorrt_build._layers_text(inspector("Name: x_mha_y, LayerType: kgen, "), on_gpu, LOGGED, b"plan")
    assert text.splitlines() == ["Parsing node: a [Softmax]", "Name: x_mha_y, LayerType: kgen, "]
    assert audit_of_text(text, "fp16").fused_attention == 1
    without = tensorrt_build._layers_text(None, job(bundle, tmp_path), LOGGED, b"plan")
    assert without.splitlines() == LOGGED.lines


def test_a_plan_that_does_not_load_where_it_was_built_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"cannot load the extractor it has just built \(no reason given\)"):
        tensorrt_build._layers_text(inspector("", loads=False), job(bundle, tmp_path, device=0), LOGGED, b"plan")


# ---- running, on a stand-in for the GPU: its memory is ours, its engine adds one


class FakeCudaRuntime:
    """`cuda.bindings.runtime` with host memory for device memory; counts what is allocated."""

    cudaError_t = types.SimpleNamespace(cudaSuccess=types.SimpleNamespace(name="cudaSuccess"))
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams = 0

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        return (self.cudaError_t.cudaSuccess,)

    cudaStreamSynchronize = cudaSetDevice

    def cudaStreamCreate(self) -> tuple[Any, int]:
        self.streams += 1
        return self.cudaError_t.cudaSuccess, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        assert stream == 77
        self.streams -= 1
        return (self.cudaError_t.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return self.cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Any]:
        if address:
            del self.memory[address]
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any]:
        assert (target if kind == 1 else source) in self.memory and stream == 77
        ctypes.memmove(target, source, size)
        return (self.cudaError_t.cudaSuccess,)


contexts: list[Any] = []  # all that were created


class FakeEngine:
    """An engine, its context, its runtime config and cache in one: y = x + 1 for x of at most 64 rows."""

    tensors = types.MappingProxyType({"y": "float32", "x": "float32"})  # not in the order of the graph
    num_io_tensors = 2
    valid = "VALID"
    device_memory_size_v2 = 4096
    strategy = ""
    dynamic_shapes_kernel_specialization_strategy = "LAZY"
    caches: ClassVar[list[bytes]] = []

    def __init__(self, log: Any = None) -> None:
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.scratch: tuple[int, int] | None = None
        self.kernels = ""  # which ones the last pass ran, and so a graph of the next would hold

    def get_engine_validity(self, data: bytes) -> tuple[str, int]:
        return self.valid, 2

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        return self if data == b"plan" else None

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name]

    def create_runtime_config(self) -> FakeEngine:
        return self

    create_runtime_cache = create_runtime_config

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_execution_context(self, how: Any) -> FakeEngine:
        assert getattr(how, "strategy", how) == "USER_MANAGED"  # RTX is told by its config
        context = type(self)()
        context.dynamic_shapes_kernel_specialization_strategy = self.dynamic_shapes_kernel_specialization_strategy
        contexts.append(context)
        return context

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_runtime_cache(self, cache: Any) -> None:
        assert cache is self

    def deserialize(self, data: bytes) -> bool:
        self.caches.append(data)
        return True

    def serialize(self) -> bytes:
        return b"kernels"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 64

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        assert (name, profile) == ("x", 0)
        return [(1, 3), (1, 3), (64, 3)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.scratch is not None

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None
        is_eager = self.dynamic_shapes_kernel_specialization_strategy == "EAGER"
        self.kernels = "for these shapes" if is_eager else "for any shape"  # while the others are being compiled
        count = int(np.prod(self.shape))
        x, y = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in "xy")
        y[:] = [value + 1 for value in x]
        return True


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, FakeCudaRuntime]:
    """Return `load` of a graph x -> y on the stand-in, and the stand-in's memory."""
    runtime, binding = FakeCudaRuntime(), types.ModuleType("tensorrt_rtx")
    vars(binding).update(
        __version__="1.7.1",
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        Runtime=FakeEngine,
        EngineValidity=types.SimpleNamespace(INVALID="INVALID"),
        EngineInvalidityDiagnostics=types.SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}),
        ComputeCapability=types.SimpleNamespace(__members__={"SM89": 89}),
        IRuntimeCache=object,
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        DynamicShapesKernelSpecializationStrategy=types.SimpleNamespace(EAGER="EAGER"),
        DataType=types.SimpleNamespace(BF16="BF16"),
        nptype=lambda dtype: dtype,
    )
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    modules = {"tensorrt_rtx": binding, "cuda": types.ModuleType("cuda"), "cuda.bindings": bindings}
    for name, value in modules.items():
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA L4", "SM89", "13.0"),), ""))
    (tmp_path / "x.engine").write_bytes(b"plan")
    graph = GraphFile("x.onnx", "0" * 64, (spec("x", "batch", 3),), (spec("y", "batch", 3),))

    class OneGraph:
        path = Path("bundle")

        def graph(self, role: str, precision: str) -> GraphFile:
            return graph

    def load() -> Any:
        built = Built(files={"selector": "x.engine"}, realised="fp32")
        bundle: Any = OneGraph()
        return RTX.load(bundle, request(device="0"), tmp_path, built)["selector"]

    return load, runtime


def test_an_engine_runs_arrays_by_name_whatever_their_memory_layout(fake_gpu: Any) -> None:
    engine, x = fake_gpu[0](), np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(engine.run({"x": x})["y"], x + 1)


def test_an_engine_allocates_again_only_to_grow_and_frees_everything_at_the_end(fake_gpu: Any) -> None:
    load, runtime = fake_gpu
    engine = load()
    for batch in (2, 1, 2):
        x = np.full((batch, 3), batch, np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x + 1)
        addresses = sorted(runtime.memory)
    engine.run({"x": np.zeros((5, 3), np.float32)})
    assert len(addresses) == len(runtime.memory) == 3  # x, y and the scratch
    engine.close()
    engine.close()
    assert runtime.memory == {}


def test_a_shape_outside_the_profile_is_refused(fake_gpu: Any) -> None:
    message = (
        "tensorrt-rtx: selector: batch 65 is beyond the 64 that the engine was built for; "
        "'saccade build bundle --engine tensorrt-rtx --max-batch 65' builds a larger one"
    )
    with pytest.raises(SaccadeError, match=f"^{re.escape(message)}$"):
        fake_gpu[0]().run({"x": np.zeros((65, 3), np.float32)})


def bound(engine: Any, batch: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return the engine bound to arrays of ours, and the arrays."""
    x, y = np.full((batch, 3), batch, np.float32), np.zeros((batch, 3), np.float32)
    return engine.bind(batch, 1, {"x": x.ctypes.data, "y": y.ctypes.data}), x, y


def test_each_binding_keeps_its_own_shapes_and_addresses(fake_gpu: Any) -> None:
    engine = fake_gpu[0]()
    cases = [bound(engine, batch) for batch in (2, 5)]
    for network, x, y in (*cases, cases[0]):
        y[:] = 0
        network.check_capturable(77)
        network.enqueue(77)
        np.testing.assert_array_equal(y, x + 1)
    assert len(fake_gpu[1].memory) == 1  # the scratch; all else is the caller's


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_all_bindings_compute_in_the_same_memory_as_large_as_the_profile_wants_it(fake_gpu: Any, rtx: bool) -> None:
    load, runtime = fake_gpu
    if not rtx:
        del sys.modules["tensorrt_rtx"].IRuntimeCache
    contexts.clear()
    engine = load()
    for batch in (2, 5, 2):
        bound(engine, batch)
    ((address, size),) = {context.scratch for context in contexts}
    assert len(contexts) == 3
    assert (list(runtime.memory), len(runtime.memory[address])) == ([address], size)
    engine.close()
    assert runtime.memory == {}


def test_an_engine_that_needs_no_memory_to_compute_in_gets_none(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "device_memory_size_v2", 0)
    engine = fake_gpu[0]()
    bound(engine, 2)
    assert fake_gpu[1].memory == {}
    engine.close()


def test_rtx_compiles_for_the_very_shapes_before_a_graph_can_be_captured(fake_gpu: Any) -> None:
    contexts.clear()
    network, *_ = bound(fake_gpu[0](), 2)
    network.enqueue(77)
    network.check_capturable(77)
    assert [context.kernels for context in contexts] == ["for these shapes"]


def test_the_installed_rtx_has_what_a_context_is_made_with() -> None:
    trt = import_binding("tensorrt-rtx")
    config = {"dynamic_shapes_kernel_specialization_strategy", "set_execution_context_allocation_strategy"}
    assert config <= set(dir(trt.IRuntimeConfig))
    assert {"set_device_memory", "set_tensor_address", "is_stream_capturable"} <= set(dir(trt.IExecutionContext))
    assert "device_memory_size_v2" in dir(trt.ICudaEngine)
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER != trt.DynamicShapesKernelSpecializationStrategy.LAZY
    assert "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__


def test_only_an_engine_that_is_run_by_itself_has_a_stream(fake_gpu: Any) -> None:
    load, runtime = fake_gpu
    engine = load()
    network, *_ = bound(engine, 2)
    network.enqueue(77)
    assert runtime.streams == 0  # one of its own would make others wait
    engine.run({"x": np.zeros((1, 3), np.float32)})
    assert runtime.streams == 1
    engine.close()
    assert runtime.streams == 0


def test_a_binding_outside_the_profile_is_refused(fake_gpu: Any) -> None:
    with pytest.raises(SaccadeError, match="batch 65 is beyond the 64 that the engine was built for"):
        bound(fake_gpu[0](), 65)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("execute_async_v3", lambda self, stream: False, "the run failed"),
        ("set_tensor_address", lambda self, name, address: False, "does not take the address of 'x'"),
        ("get_tensor_shape", lambda self, name: (9, 9), r"output 'y' is \[9, 9\], not \[2, 3\]"),
        ("create_execution_context", lambda self, how: None, "cannot create its execution context"),
        ("is_stream_capturable", lambda self, stream: False, "these shapes cannot be captured in a CUDA graph"),
    ],
)
def test_what_a_context_refuses_is_one_line(
    fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, message: str
) -> None:
    engine = fake_gpu[0]()
    monkeypatch.setattr(FakeEngine, name, answer, raising=False)
    with pytest.raises(SaccadeError, match=f"tensorrt-rtx: selector: {message}"):
        network, *_ = bound(engine, 2)
        network.check_capturable(77)
        network.enqueue(77)


def test_a_closed_engine_is_not_bound(fake_gpu: Any) -> None:
    engine = fake_gpu[0]()
    engine.close()
    with pytest.raises(SaccadeError, match="the engine is closed"):
        bound(engine, 1)


def test_the_kernels_compiled_for_this_gpu_are_kept_beside_the_plan(fake_gpu: Any, tmp_path: Path) -> None:
    fake_gpu[0]().close()
    assert (tmp_path / "x.jit-cache").read_bytes() == b"kernels"
    fake_gpu[0]()
    assert FakeEngine.caches[-1] == b"kernels"


def test_a_plan_for_other_hardware_is_refused_with_the_reason(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "valid", "INVALID")
    with pytest.raises(SaccadeError, match=r"does not fit this machine \(UNSUPPORTED_CC\); build it again here"):
        fake_gpu[0]()


def test_a_damaged_plan_is_refused(fake_gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"pla")
    with pytest.raises(SaccadeError, match="cannot load it"):
        fake_gpu[0]()


def test_a_plan_with_other_tensors_than_the_manifest_is_refused(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "tensors", {"x": "float32", "y": "float16"})
    with pytest.raises(SaccadeError, match=r"has other tensors than bundle\.json says"):
        fake_gpu[0]()


def test_a_tensor_in_bfloat16_is_known_as_such(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_gpu[0]()
    monkeypatch.setattr(FakeEngine, "tensors", {"x": "BF16", "y": "float32"})
    assert [engine._type_of(name) for name in "xy"] == ["bfloat16", "float32"]


def test_too_little_gpu_memory_is_one_line(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_gpu[0]()
    full = types.SimpleNamespace(name="cudaErrorMemoryAllocation")
    monkeypatch.setattr(FakeCudaRuntime, "cudaMalloc", lambda self, size: (full, 0))
    with pytest.raises(OutOfMemoryError, match=r"cudaMalloc on GPU 0 failed \(cudaErrorMemoryAllocation\); free GPU"):
        engine.run({"x": np.zeros((1, 3), np.float32)})


def test_too_little_gpu_memory_is_told_from_an_engine_that_does_not_run(
    fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_gpu[0]()

    def fail(reason: str) -> Any:
        def create(self: Any, how: Any) -> None:
            engine._log.log(tensorrt_build.import_binding("tensorrt-rtx").ILogger.ERROR, reason)

        return create

    for reason in ("Error Code 1: Cuda Runtime (out of memory)", "Requested 8 bytes of GPU memory could not be allocated"):
        monkeypatch.setattr(FakeEngine, "create_execution_context", fail(reason))
        with pytest.raises(OutOfMemoryError, match="cannot create its execution context"):
            bound(engine, 2)
    monkeypatch.setattr(FakeEngine, "create_execution_context", fail("Myelin: no such kernel"))
    with pytest.raises(EngineError, match=r"cannot create its execution context \(Myelin: no such kernel\)"):
        bound(engine, 2)


# ---- running for real


@pytest.mark.gpu
@pytest.mark.skipif(not RTX.capabilities().can_run, reason="no GPU that TensorRT-RTX runs on")
def test_an_engine_agrees_with_onnxruntime(bundle: Bundle, built: Any) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder, result, _ = built["fp32"]
    engine = RTX.load(bundle, request(device="0"), folder, result)["extractor"]
    session = ort.InferenceSession(bundle.path / "extractor.fp32.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    for batch, k in ((1, 16), (3, 7)):
        shapes = {"patches": (batch, k, 588), "positions": (batch, k, DIM), "prefix": (batch, PREFIX, DIM)}
        feed = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        np.testing.assert_allclose(engine.run(feed)["tokens"], session.run(["tokens"], feed)[0], rtol=1e-3, atol=1e-4)
    engine.close()
