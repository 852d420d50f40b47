"""OpenVINO: compiles a graph for this CPU, keeps the compiled blob, and runs it straight from the mapped file."""
from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saccade.bundle import Bundle, GraphFile
from saccade.engines.engine import (
    STATIC_BATCH,
    WISHES,
    Backend,
    Built,
    Capabilities,
    Engine,
    EngineRequest,
    Progress,
    load_roles,
    tensors_of,
)
from saccade.engines.openvino_passes import fix_shapes, keep_cls_alone
from saccade.errors import SaccadeError, raise_interrupt

INSTALL = "pip install '.[openvino]' in the clone"
# Precision -> graph file. bf16 and fp16 are execution hints on the fp32 graph: OpenVINO converts weights itself.
VARIANTS = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32", "int8": "int8"}
# The hint that makes each precision real. Without one a CPU with bf16 instructions computes fp32 graphs in bf16.
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# The word in OPTIMIZATION_CAPABILITIES that says a CPU computes so; asked for without it, OpenVINO would use fp32.
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
# What the execution graph calls the layers that multiply by weights, and the types that each precision may run in there.
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
KERNEL_TYPES = {"fp32": ("f32",), "bf16": ("bf16",), "fp16": ("f16",), "int8": ("i8", "u8")}


def module() -> Any:
    """Import the binding, or say how to get it."""
    try:
        with without_telemetry():
            import openvino
    except (ImportError, OSError) as error:
        raise_interrupt(error)
        raise SaccadeError(f"openvino cannot be imported ({error}); {INSTALL}") from error
    return openvino


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Let OpenVINO take its own stub for openvino_telemetry where the body imports it.

    The real one tells a web service of every import. A thread forks a process for that, whose pages are those of the
    networks that are loaded or timed meanwhile; and an interrupt at that moment left a command that never ended.
    """
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import of it fail
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop(name, None)


def _variant(precision: str) -> str:
    if precision not in VARIANTS:
        raise SaccadeError(f"openvino offers {', '.join(VARIANTS)}, not {precision}; use another --engine")
    return VARIANTS[precision]


def _abilities(core: Any) -> frozenset[str]:
    """Return what the CPU computes natively, in OpenVINO's words."""
    return frozenset(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _hint(precision: str, abilities: frozenset[str]) -> str:
    """Return the type that floating-point parts are computed in; what int8 leaves over runs in bf16 where the CPU has it."""
    if CAPABILITIES[precision] not in abilities:
        raise SaccadeError(f"openvino: this CPU has no {precision} instructions; use --precision fp32")
    if precision == "int8":
        return "bf16" if CAPABILITIES["bf16"] in abilities else "f32"
    return HINTS[precision]


def _config(core: Any, request: EngineRequest) -> dict[str, Any]:
    """Return the properties that decide what is computed. Threads are no part of a blob: they are set on loading."""
    if request.device != "cpu":
        raise SaccadeError(f"openvino runs on --device cpu here, not {request.device!r}")
    _variant(request.precision)
    return {"INFERENCE_PRECISION_HINT": _hint(request.precision, _abilities(core)), "PERFORMANCE_HINT": "LATENCY"}


class OpenVINOBackend(Backend):
    """See `saccade.engines.engine.Backend`."""

    offers = frozenset(WISHES)

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising."""
        try:
            openvino = module()
        except SaccadeError as error:
            return Capabilities(engine="openvino", version=None, can_build=False, can_run=False, missing=str(error))
        return Capabilities(
            engine="openvino",
            version=_version(openvino),
            can_build=True,
            can_run=True,
            precisions=tuple(name for name in VARIANTS if CAPABILITIES[name] in _abilities(openvino.Core())),
            devices=("cpu",),
        )

    def variant(self, precision: str) -> str:
        """Return the graph file of a precision."""
        return _variant(precision)

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return the version and the CPU: a blob is compiled for both."""
        openvino = module()
        core = openvino.Core()
        return {
            "version": openvino.__version__,
            "cpu": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "cpu_capabilities": " ".join(sorted(_abilities(core))),
            "precision_hint": _config(core, request)["INFERENCE_PRECISION_HINT"],
        }

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Compile each graph and write the blob."""
        core = module().Core()
        config, files, kernels = _config(core, request), {}, []
        for role in bundle.roles:
            progress(f"{role}: compile")
            compiled = _compiled(core, *_source(core, bundle, role, request), config)
            kernels.append(f"{role} {_kernels_in_words(compiled, role, request.precision)}")
            progress(f"{role}: write")
            files[role] = f"{role}.blob"
            (folder / files[role]).write_bytes(_bytes(compiled.export_model()))
            del compiled
        hint = f"INFERENCE_PRECISION_HINT {config['INFERENCE_PRECISION_HINT']}"
        found = f"{hint} on the {_graph_in_words(request)}; matrix products: {'; '.join(kernels)}"
        return Built(files=files, realised=found)

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Map each blob and import it."""
        core = module().Core()
        config = _config(core, request)
        if request.threads:
            config["INFERENCE_NUM_THREADS"] = request.threads
        if request.streams > 1:  # beside the latency hint it would be ignored
            config = {name: value for name, value in config.items() if name != "PERFORMANCE_HINT"}
            config["NUM_STREAMS"] = request.streams

        def load(role: str) -> Engine:
            graph = tensors_of(bundle.graph(role, VARIANTS[request.precision]), request)
            return _imported(role, graph, core, folder / built.files[role], config)

        return load_roles(built.files, load)


def _version(openvino: Any) -> str:
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def _bytes(blob: Any) -> bytes:  # export_model returned BytesIO before 2024
    return blob if isinstance(blob, bytes) else bytes(blob.getbuffer())


def _graph_in_words(request: EngineRequest) -> str:
    static = "" if request.static_k is None else f", static at batch {STATIC_BATCH} and k {request.static_k}"
    return f"{VARIANTS[request.precision]} graph{static}{', cls only' if request.cls_only else ''}"


def _source(core: Any, bundle: Bundle, role: str, request: EngineRequest) -> tuple[Path, Any]:
    """Return a graph's file and what to compile: the path, at half the memory, unless the graph is to be edited first."""
    graph = bundle.graph(role, VARIANTS[request.precision])
    path = bundle.path / graph.file
    edits_cls = request.cls_only and role == "extractor"
    if request.static_k is None and not edits_cls:
        return path, str(path)
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise _cannot_compile(path, error) from error
    if edits_cls:
        keep_cls_alone(model)
    if request.static_k is not None:
        fix_shapes(model, tensors_of(graph, request).inputs)
    return path, model


def _cannot_compile(path: Path, error: RuntimeError) -> SaccadeError:
    return SaccadeError(f"openvino cannot compile {path}: {str(error).strip().splitlines()[-1]}")


def _compiled(core: Any, path: Path, source: Any, config: dict[str, Any]) -> Any:
    """Compile `source`, which is the file `path` itself or was read from it."""
    try:
        return core.compile_model(source, "CPU", config)
    except RuntimeError as error:
        raise _cannot_compile(path, error) from error


def _kernels_in_words(compiled: Any, role: str, precision: str) -> str:
    """Count the matrix products of a compiled graph by the type they run in, as OpenVINO's own execution graph says.

    Raises SaccadeError where none runs in the asked precision: a hint is only a wish.
    """
    counts: collections.Counter[str] = collections.Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str).startswith(PRODUCTS):
            counts[facts["runtimePrecision"].astype(str)] += 1
    if not any(counts[spelt] for spelt in KERNEL_TYPES[precision]):
        found = ", ".join(sorted(counts)) or "none"
        raise SaccadeError(f"openvino runs the {role} in {found} here, not in {precision}; use another --precision")
    return ", ".join(f"{count} {spelt}" for spelt, count in counts.most_common())


def _extents(port: Any) -> list[int | None]:
    return [None if extent.is_dynamic else extent.get_length() for extent in port.partial_shape]


def _imported(role: str, graph: GraphFile, core: Any, blob: Path, config: dict[str, Any]) -> OpenVINOEngine:
    """Map a blob and import it."""
    # OpenVINO wants a writable array; mode "c" (private pages) gives one without copying and without touching the file.
    weights = np.memmap(blob, dtype=np.uint8, mode="c")
    try:
        compiled = core.import_model(module().Tensor(np.asarray(weights), shared_memory=True), "CPU", config)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SaccadeError(f"openvino cannot import {blob}: {reason}; delete its folder and build again") from error
    return OpenVINOEngine(role, graph, compiled, blob, weights)


def open_as_written(role: str, graph: GraphFile, path: Path) -> Engine:
    """Compile a graph file of any variant so that it computes what is written: types and rounding are the graph's own.

    For judging a graph: a faster type than written is never chosen, and nothing is kept on disk. `graph` gives the tensors.
    """
    compiled = _compiled(module().Core(), path, str(path), {"INFERENCE_PRECISION_HINT": "f32"})
    return OpenVINOEngine(role, graph, compiled, path)


class OpenVINOEngine(Engine):
    """One compiled graph with one infer request."""

    def __init__(self, role: str, graph: GraphFile, compiled: Any, where: Path, weights: np.ndarray | None = None) -> None:
        super().__init__(role, graph)
        self._weights = weights  # mapped as long as the engine lives: it reads them from there
        self.check_ports({port.get_any_name(): _extents(port) for port in (*compiled.inputs, *compiled.outputs)}, where)
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def twin(self) -> Engine:
        """Return another infer request on the same compiled graph; OpenVINO runs as many at once as there are streams."""
        twin = self._sharing()
        twin._request = self._compiled.create_infer_request()
        return twin

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return {name: results[name] for name in self.outputs}

    def _close(self) -> None:
        del self._request, self._compiled, self._weights
