"""ONNX Runtime: compiles at load, from the bundle's own graph files; a build proves that it can and writes a receipt."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saccade.bundle import Bundle, GraphFile
from saccade.engines.engine import Backend, Built, Capabilities, Engine, EngineRequest, Progress, load_roles
from saccade.errors import SaccadeError, raise_interrupt

INSTALL = "pip install '.[onnxruntime]' in the clone"
INSTALL_CUDA = "pip uninstall onnxruntime, then pip install '.[onnxruntime-gpu]' in the clone"
# Precision -> graph file, by device. The CPU provider computes fp16 graphs in fp32 between casts, so it has no fp16.
CPU_VARIANTS = {"fp32": "fp32", "int8": "int8"}
GPU_VARIANTS = {"fp32": "fp32", "fp16": "fp16"}
VARIANTS = CPU_VARIANTS | GPU_VARIANTS
_OFFERED = f"{', '.join(CPU_VARIANTS)} on the CPU and {', '.join(GPU_VARIANTS)} on a GPU"


def _module() -> Any:
    """Import the binding, or say how to get it."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise_interrupt(error)
        raise SaccadeError(f"onnxruntime cannot be imported ({error}); {INSTALL}") from error
    return onnxruntime


def _providers(onnxruntime: Any, request: EngineRequest) -> list[Any]:
    """Return the one execution provider that was asked for; ONNX Runtime itself would fall back to another silently."""
    offered = CPU_VARIANTS if request.device == "cpu" else GPU_VARIANTS
    if request.precision not in offered:
        where = "the CPU" if request.device == "cpu" else "a GPU"
        raise SaccadeError(f"onnxruntime offers {_OFFERED}, not {request.precision} on {where}; use another --engine")
    if request.device == "cpu":
        return ["CPUExecutionProvider"]
    if not request.device.isdigit():
        raise SaccadeError(f"onnxruntime runs on --device cpu or the index of a GPU, not {request.device!r}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise SaccadeError(f"onnxruntime here has no CUDA execution provider for --device {request.device}; {INSTALL_CUDA}")
    return [("CUDAExecutionProvider", {"device_id": request.device, "use_tf32": "0"})]


class OnnxRuntimeBackend(Backend):
    """See `saccade.engines.engine.Backend`.

    Fixed shapes gain nothing in fp32 and cost an int8 graph ten times its speed (1.31), so it has no static engines.
    """

    offers = frozenset({"streams"})

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising."""
        try:
            onnxruntime = _module()
        except SaccadeError as error:
            return Capabilities(engine="onnxruntime", version=None, can_build=False, can_run=False, missing=str(error))
        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return Capabilities(
            engine="onnxruntime",
            version=onnxruntime.__version__,
            can_build=True,
            can_run=True,
            precisions=tuple(VARIANTS if cuda else CPU_VARIANTS),
            devices=("cpu", "0") if cuda else ("cpu",),
        )

    def variant(self, precision: str) -> str:
        """Return the graph file of a precision."""
        if precision not in VARIANTS:
            raise SaccadeError(f"onnxruntime offers {_OFFERED}, not {precision}; use another --engine")
        return VARIANTS[precision]

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return the version and the provider; the receipt speaks of nothing else, since no compiled file is kept."""
        onnxruntime = _module()
        provider = _providers(onnxruntime, request)[0]
        return {
            "version": onnxruntime.__version__,
            "provider": provider if isinstance(provider, str) else provider[0],
            "device": request.device,
            "precision": request.precision,
        }

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Open a session on each graph, so that what cannot run is known now."""
        for role in bundle.roles:
            progress(f"{role}: open a session")
            OnnxRuntimeEngine(role, bundle, request).close()
        return Built(files={}, realised=f"types of the {VARIANTS[request.precision]} graph")

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Open the sessions."""
        return load_roles(bundle.roles, lambda role: OnnxRuntimeEngine(role, bundle, request))


class OnnxRuntimeEngine(Engine):
    """One session on one graph file."""

    def __init__(self, role: str, bundle: Bundle, request: EngineRequest) -> None:
        onnxruntime = _module()
        providers = _providers(onnxruntime, request)
        graph: GraphFile = bundle.graph(role, VARIANTS[request.precision])
        super().__init__(role, graph)
        path = bundle.path / graph.file
        try:
            self._session = onnxruntime.InferenceSession(str(path), _options(onnxruntime, request), providers=providers)
        except Exception as error:  # its exceptions share no base class of their own
            raise SaccadeError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from error
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if self._session.get_providers()[0] != wanted:
            raise SaccadeError(f"onnxruntime could not start {wanted}; check the driver with 'saccade doctor'")
        ports = (*self._session.get_inputs(), *self._session.get_outputs())
        self.check_ports({port.name: port.shape for port in ports}, path)

    def twin(self) -> Engine:
        """Return another engine on the same session, which may be run from several threads."""
        return self._sharing()

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._session.run(list(self.outputs), dict(feed))
        return dict(zip(self.outputs, results, strict=True))

    def _close(self) -> None:
        del self._session


def _options(onnxruntime: Any, request: EngineRequest) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads
    if request.streams > 1:  # each thread that runs the session brings itself and shares the pool of the rest
        options.intra_op_num_threads = max(1, (request.threads or len(os.sched_getaffinity(0))) // request.streams)
    if request.device != "cpu":  # or nodes that CUDA lacks would run on the CPU, silently
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 3  # errors only: its warnings speak of graph optimisations that a user cannot change
    # Two sessions take turns here. A pool that goes on spinning after its run takes the cores from the other's:
    # 71 ms a frame at 518 px against 31 ms on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
