"""TensorRT and TensorRT-RTX: one module for both bindings, on the API that 10.x, 11.x and RTX 1.x share.

The two differ in where they build: TensorRT on the GPU the engine is for, TensorRT-RTX anywhere, for the compute
capabilities that are named; the rest of its compilation happens on the user's GPU when an engine is loaded.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from saccade import atomic
from saccade.bundle import Bundle, GraphFile
from saccade.engines.cuda import Cuda, Gpu, find_gpus
from saccade.engines.engine import (
    LIMITS,
    Backend,
    Built,
    Capabilities,
    Engine,
    EngineRequest,
    Progress,
    build_command,
    load_roles,
)
from saccade.engines.tensorrt_build import Finished, Job, build_in_child, import_binding, process_log
from saccade.errors import SaccadeError

# Precision -> graph file: int8 wants fp16 around it, or attention does not fuse.
VARIANTS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8-fp16", "fp8": "fp8"}
PRECISIONS = tuple(VARIANTS)
NOT_TARGETS = ("NONE", "CURRENT")  # members of trt.ComputeCapability that name no hardware
DEFAULT_TARGETS = "default"  # TensorRT-RTX's own choice of compute capabilities


class TensorRTBackend(Backend):
    """The backend of "tensorrt" or of "tensorrt-rtx"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_rtx = name == "tensorrt-rtx"

    def capabilities(self) -> Capabilities:
        """Say what can be built and run here, without raising and without touching a GPU."""
        try:
            trt = import_binding(self.name)
        except SaccadeError as error:
            return Capabilities(engine=self.name, version=None, can_build=False, can_run=False, missing=str(error))
        gpus, reason = find_gpus()
        devices = self._usable(trt, gpus)
        return Capabilities(
            engine=self.name,
            version=trt.__version__,
            can_build=self.is_rtx or bool(devices),
            can_run=bool(devices),
            precisions=PRECISIONS,
            devices=devices,
            missing=None if devices else self._no_gpu_line(gpus, reason),
        )

    def variant(self, precision: str) -> str:
        """Return the graph file of a precision."""
        return VARIANTS[precision]

    def conditions(self, request: EngineRequest) -> dict[str, str]:
        """Return what a built engine depends on beside the graphs: versions, hardware, optimization profile."""
        trt = import_binding(self.name)
        if self.is_rtx:
            hardware = {"compute_capabilities": " ".join(self._targets(trt, request)) or DEFAULT_TARGETS}
        else:
            hardware = self._build_gpu(trt, request)
        limits = {"max_batch": request.max_batch, "max_k": request.max_k, "opt_k": min(request.opt_k, request.max_k)}
        profile = {name: str(value) for name, value in limits.items()}
        return {"binding": trt.__name__, "version": trt.__version__, **hardware, **profile}

    def serves(self, built: Mapping[str, str], wanted: Mapping[str, str], request: EngineRequest) -> bool:
        """Whether a built engine takes what is asked: as large a batch and k or larger, on all the targets or more.

        Where an engine is tuned changes its speed and not what it takes. A run asks for no limits, and of the targets
        only for the GPU it runs on.
        """
        lenient = {*LIMITS, "compute_capabilities"}
        if any(built.get(name) != wanted.get(name) for name in (built.keys() | wanted.keys()) - lenient):
            return False
        if not self._targets_serve(built.get("compute_capabilities", ""), wanted.get("compute_capabilities", ""), request):
            return False
        limits = (("max_batch", request.max_batch), ("max_k", request.max_k))
        return all(_limit(built, name) >= (1 if request.any_limits else asked) for name, asked in limits)

    def _targets_serve(self, built: str, wanted: str, request: EngineRequest) -> bool:
        """Compare the compute capabilities of an RTX engine; TensorRT's are fixed by its GPU."""
        if built == wanted or not request.any_limits:
            return built == wanted or (DEFAULT_TARGETS not in (built, wanted) and set(wanted.split()) <= set(built.split()))
        gpus = find_gpus()[0]
        if built == DEFAULT_TARGETS or not request.device.isdecimal() or int(request.device) >= len(gpus):
            return True  # no such GPU here, so nothing will run either
        return gpus[int(request.device)].compute_capability in built.split()

    def build(self, bundle: Bundle, request: EngineRequest, folder: Path, progress: Progress) -> Built:
        """Build one plan per graph into `folder`; on failure or interrupt none is left there."""
        self.conditions(request)  # refuses what this machine or this engine cannot do, before anything slow
        files = {role: f"{role}.engine" for role in bundle.manifest.graphs}
        audit = {}
        try:
            for role, file in files.items():
                job = self._job(bundle, request, role, folder / file)
                audit[role] = _finding(build_in_child(job, progress))
        except BaseException:
            for file in files.values():
                (folder / file).unlink(missing_ok=True)
            raise
        return Built(files=files, realised=f"strongly typed {request.precision} graphs, TF32 off", audit=audit)

    def load(self, bundle: Bundle, request: EngineRequest, folder: Path, built: Built) -> dict[str, Engine]:
        """Load both plans onto the GPU `request.device`."""
        trt = import_binding(self.name)
        device = self._device(trt, request)
        remedy = build_command(bundle, request)

        def load(role: str) -> Engine:
            graph = bundle.graph(role, VARIANTS[request.precision])
            return TensorRTEngine(role, graph, self.name, folder / built.files[role], device, remedy)

        return load_roles(built.files, load)

    def _job(self, bundle: Bundle, request: EngineRequest, role: str, plan: Path) -> Job:
        """Describe one build for the child."""
        graph = bundle.graph(role, VARIANTS[request.precision])
        return Job(
            engine=self.name,
            role=role,
            precision=request.precision,
            onnx=str(bundle.path / graph.file),
            plan=str(plan),
            inputs=graph.inputs,
            outputs=graph.outputs,
            max_batch=request.max_batch,
            max_k=request.max_k,
            opt_k=request.opt_k,
            compute_capabilities=self._targets(import_binding(self.name), request) if self.is_rtx else (),
            device=None if self.is_rtx else int(request.device),
            parent=os.getpid(),
        )

    def _targets(self, trt: Any, request: EngineRequest) -> tuple[str, ...]:
        """Return the compute capabilities an RTX engine is built for: known names, each once, in TensorRT's order."""
        known = _target_names(trt)
        for name in request.compute_capabilities:
            if name not in known:
                raise SaccadeError(f"{self.name}: no compute capability {name!r}; choose from {', '.join(known)}")
        return tuple(name for name in known if name in request.compute_capabilities)

    def _build_gpu(self, trt: Any, request: EngineRequest) -> dict[str, str]:
        """Return the GPU that a TensorRT engine is built on and for."""
        if request.compute_capabilities:
            raise SaccadeError(
                f"{self.name}: builds for the GPU it runs on, so it takes no --compute-capability; "
                f"leave it out, or use --engine tensorrt-rtx"
            )
        gpu = find_gpus()[0][self._device(trt, request)]
        return {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}

    def _device(self, trt: Any, request: EngineRequest) -> int:
        """Return the index of the GPU to use, or say why there is none."""
        gpus, reason = find_gpus()
        usable = self._usable(trt, gpus)
        if not usable:
            raise SaccadeError(self._no_gpu_line(gpus, reason))
        if request.device not in usable:
            raise SaccadeError(f"{self.name}: no device {request.device!r} for it; give --device {' or '.join(usable)}")
        return int(request.device)

    def _usable(self, trt: Any, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
        """Return the indices of the GPUs it runs on: RTX lists what it compiles for (no Hopper, no Jetson in 1.7)."""
        known = [gpu.compute_capability for gpu in gpus] if not self.is_rtx else _target_names(trt)
        return tuple(str(index) for index, gpu in enumerate(gpus) if gpu.compute_capability in known)

    def _no_gpu_line(self, gpus: tuple[Gpu, ...], reason: str) -> str:
        """Say why nothing runs here, and what can be done instead."""
        if gpus:
            found = ", ".join(f"{gpu.name} {gpu.compute_capability}" for gpu in gpus)
            return f"{self.name}: does not support this GPU ({found}); use --engine tensorrt"
        if self.is_rtx:
            return (
                f"{self.name}: no NVIDIA GPU here ({reason}); engines can be built and copied to a machine with one; "
                f"to run here use --engine openvino"
            )
        return (
            f"{self.name}: no NVIDIA GPU here ({reason}), and it builds only on the GPU it runs on; "
            f"go to that machine, or use --engine tensorrt-rtx, which builds anywhere"
        )


def _target_names(trt: Any) -> list[str]:
    """Return the compute capabilities TensorRT-RTX compiles for, by name."""
    return [name for name in trt.ComputeCapability.__members__ if name not in NOT_TARGETS]


def _limit(conditions: Mapping[str, str], name: str) -> int:
    """Return a limit that a receipt holds as text, 0 where it holds none."""
    text = conditions.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _finding(finished: Finished) -> dict[str, Any]:
    """Return what goes into the receipt about one engine: the fields of its audit, and the seconds spent."""
    audit: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(finished.audit))
    return audit | {"seconds": finished.seconds}


class TensorRTEngine(Engine):
    """One plan on one GPU, fed from host arrays; tensors are addressed by name, since their order is not fixed.

    Owns its device buffers (they only grow), one stream and one execution context.
    """

    def __init__(self, role: str, graph: GraphFile, engine: str, plan: Path, device: int, build_command: str) -> None:
        super().__init__(role, graph)
        self._build_command = build_command
        self._cuda = Cuda(engine, device)
        self._trt = import_binding(engine)
        self._log = process_log(self._trt, keep_lines=False)
        self._name, self._plan = f"{engine}: {role}", plan
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._deserialize()
        self._check_tensors()
        self._jit_cache: Any = None
        self._context = self._create_context()
        self._stream = self._cuda.call("cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> device address, bytes
        self._results: dict[str, np.ndarray] = {}

    def _deserialize(self) -> Any:
        """Return the engine on the device; a plan for other hardware or another version is refused with the reason."""
        data = self._plan.read_bytes()
        if hasattr(self._runtime, "get_engine_validity"):  # RTX only
            validity, bits = self._runtime.get_engine_validity(data)
            if validity == self._trt.EngineValidity.INVALID:
                flags = self._trt.EngineInvalidityDiagnostics.__members__.items()
                why = ", ".join(name for name, flag in flags if int(flag) & int(bits)) or "no reason given"
                raise SaccadeError(f"{self._name}: {self._plan} does not fit this machine ({why}); build it again here")
        self._log.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._error("cannot load it", "build it again here")
        return engine

    def _check_tensors(self) -> None:
        """Compare the plan's tensors with the manifest's: a buffer of the wrong size would be written past its end."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {name: np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        expected = {name: np.dtype(spec.dtype) for name, spec in (self.inputs | self.outputs).items()}
        if found != expected:
            raise SaccadeError(f"{self._name}: {self._plan} has other tensors than bundle.json says; build it again")

    def _create_context(self) -> Any:
        """Return an execution context; RTX compiles for this GPU here (seconds) unless its cache knows the result."""
        if not hasattr(self._trt, "IRuntimeCache"):  # RTX only
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._jit_cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):  # none yet
                self._jit_cache.deserialize(self._cache_path.read_bytes())  # False where another GPU or driver wrote it
            config.set_runtime_cache(self._jit_cache)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self._error("cannot create its execution context", "free GPU memory, or build with smaller limits")
        return context

    @property
    def _cache_path(self) -> Path:
        """Where the compiled kernels of this GPU are kept: beside the plan."""
        return self._plan.with_suffix(".jit-cache")

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._cuda.call("cudaSetDevice", self._cuda.device)  # the current device belongs to the calling thread
        self._log.errors.clear()
        sources = {name: np.ascontiguousarray(array) for name, array in feed.items()}  # alive until the copies are done
        for name, array in sources.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self._limits_error(name, array.shape)
            self._copy("cudaMemcpyHostToDevice", self._bind(name, array.nbytes), array)
        for name, spec in self.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if name not in self._results or self._results[name].shape != shape:
                self._results[name] = np.empty(shape, spec.dtype)
            self._bind(name, self._results[name].nbytes)
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._error("the run failed", "free GPU memory, or use a smaller batch")
        for name, array in self._results.items():
            self._copy("cudaMemcpyDeviceToHost", self._buffers[name][0], array)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return self._results

    def _bind(self, name: str, size: int) -> int:
        """Give a tensor a device buffer of at least `size` bytes and return its address."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size:
            if address:
                del self._buffers[name]
                self._cuda.call("cudaFree", address)
            address = self._cuda.call("cudaMalloc", size)
            self._buffers[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address

    def _copy(self, direction: str, address: int, array: np.ndarray) -> None:
        """Copy between a device buffer and a host array, in the order of the stream."""
        ends = (array.ctypes.data, address) if direction == "cudaMemcpyDeviceToHost" else (address, array.ctypes.data)
        self._cuda.call("cudaMemcpyAsync", *ends, array.nbytes, self._cuda.copy_kind(direction), self._stream)

    def _limits_error(self, name: str, shape: tuple[int, ...]) -> SaccadeError:
        """Return the error for a shape outside the optimization profile, with the command that builds a larger one."""
        most = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
        beyond, flags = [], ""
        for extent, asked, limit in zip(self.inputs[name].shape, shape, most, strict=True):
            if isinstance(extent, str):
                flags += f" --max-{extent} {max(asked, limit)}"
                beyond += [f"{extent} {asked} is beyond the {limit}"] if asked > limit else []
        if not beyond:
            return self._error(f"input {name!r} {list(shape)} is outside its limits", "build with larger ones")
        what = f"{self._name}: {' and '.join(beyond)} that the engine was built for"
        return SaccadeError(f"{what}; '{self._build_command}{flags}' builds a larger one")

    def _error(self, what: str, remedy: str) -> SaccadeError:
        """Return an error with the reason TensorRT logged."""
        return SaccadeError(f"{self._name}: {what} ({self._log.error_line('no reason given')}); {remedy}")

    def _close(self) -> None:
        """Free the GPU's memory and keep what TensorRT-RTX compiled for the next load."""
        if self._jit_cache is not None:
            with contextlib.suppress(SaccadeError):  # a read-only bundle: compiled again at the next load
                atomic.write_bytes(self._cache_path, bytes(self._jit_cache.serialize()))
        self._context = self._engine = self._runtime = self._jit_cache = None
        for address, _ in self._buffers.values():
            self._cuda.call("cudaFree", address)
        self._buffers.clear()
        if self._stream is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None
