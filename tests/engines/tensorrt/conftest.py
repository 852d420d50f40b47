"""A bundle of small transformers, its engines in two precisions, and a stand-in for the GPU to run on."""
from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from saccade.bundle import Bundle, GraphFile
from saccade.engines import tensorrt as module
from saccade.engines.engine import Built
from saccade.engines.tensorrt import Gpu

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests
from gpu_stand_in import FakeCudaRuntime, FakeEngine
from small_graphs import RTX, make_bundle, request, spec


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")


@pytest.fixture(scope="session")
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
