"""OpenVINO: compiles a graph for this CPU, keeps the compiled blob, and runs it straight from the mapped file."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saccade.bundle import Bundle, GraphFile
from saccade.engines.engine import ROLES, Backend, Built, Capabilities, Engine, EngineRequest, Progress, load_roles
from saccade.errors import SaccadeError

INSTALL = "pip install 'saccade[openvino]'"
# The hint that makes each precision real. Without one a CPU with bf16 instructions computes fp32 graphs in bf16.
PRECISION_HINTS = {"fp32": "f32"}


def _module() -> Any:
    """Import the binding, or say how to get it."""
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise SaccadeError(f"openvino cannot be imported ({error}); {INSTALL}") from error
    return openvino


def _config(request: EngineRequest) -> dict[str, Any]:
    """Return the properties that decide what is computed. Threads are no part of a blob: they are set on loading."""
    if request.device != "cpu":
        raise SaccadeError(f"openvino runs on --device cpu here, not {request.device!r}")
    if request.precision not in PRECISION_HINTS:
        raise SaccadeError(f"openvino offers {', '.join(PRECISION_HINTS)}, not {request.precision}")
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[request.precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    return config


class OpenVINOBackend(Backend):
    """See `saccade.engines.engine.Backend`."""

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising."""
        try:
            openvino = _module()
        except SaccadeError as error:
            return Capabilities(engine="openvino", version=None, can_build=False, can_run=False, missing=str(error))
        return Capabilities(
            engine="openvino",
            version=_version(openvino),
            can_build=True,
            can_run=True,
            precisions=tuple(PRECISION_HINTS),
            devices=("cpu",),
        )

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return the version and the CPU: a blob is compiled for both."""
        openvino = _module()
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {
            "version": openvino.__version__,
            "cpu": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "cpu_capabilities": " ".join(sorted(capabilities)),
            "precision_hint": _config(request)["INFERENCE_PRECISION_HINT"],
        }

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Compile each graph from its path (half the memory of reading it first) and write the blob."""
        core = _module().Core()
        files = {}
        for role in ROLES:
            progress(f"{role}: compile")
            graph = bundle.graph(role, request.precision)
            compiled = _compiled(core, bundle.path / graph.file, _config(request))
            progress(f"{role}: write")
            files[role] = f"{role}.blob"
            (folder / files[role]).write_bytes(_bytes(compiled.export_model()))
            del compiled
        return Built(files=files, realised=f"INFERENCE_PRECISION_HINT {PRECISION_HINTS[request.precision]}")

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Map each blob and import it."""
        config = _config(request)
        if request.threads:
            config["INFERENCE_NUM_THREADS"] = request.threads
        core = _module().Core()

        def load(role: str) -> Engine:
            return OpenVINOEngine(role, bundle.graph(role, request.precision), core, folder / built.files[role], config)

        return load_roles(built.files, load)


def _version(openvino: Any) -> str:
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def _bytes(blob: Any) -> bytes:  # export_model returned BytesIO before 2024
    return blob if isinstance(blob, bytes) else bytes(blob.getbuffer())


def _compiled(core: Any, path: Path, config: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise SaccadeError(f"openvino cannot compile {path}: {str(error).strip().splitlines()[-1]}") from error


def _extents(port: Any) -> list[int | None]:
    return [None if extent.is_dynamic else extent.get_length() for extent in port.partial_shape]


class OpenVINOEngine(Engine):
    """One imported blob with one infer request."""

    def __init__(self, role: str, graph: GraphFile, core: Any, blob: Path, config: dict[str, Any]) -> None:
        super().__init__(role, graph)
        openvino = _module()
        # OpenVINO wants a writable array; mode "c" (private pages) gives one without copying and without touching the
        # file. It stays mapped as long as the engine lives: the weights are read from it.
        self._blob = np.memmap(blob, dtype=np.uint8, mode="c")
        try:
            compiled = core.import_model(openvino.Tensor(np.asarray(self._blob), shared_memory=True), "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SaccadeError(f"openvino cannot import {blob}: {reason}; delete its folder and build again") from error
        self.check_ports({port.get_any_name(): _extents(port) for port in (*compiled.inputs, *compiled.outputs)}, blob)
        self._request = compiled.create_infer_request()

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return {name: results[name] for name in self.outputs}

    def _close(self) -> None:
        del self._request, self._blob
