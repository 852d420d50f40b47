"""One TensorRT or TensorRT-RTX plan on one GPU: fed from host arrays, or bound to device memory on the caller's stream."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saccade import atomic
from saccade.bundle import GraphFile
from saccade.engines.cuda import Cuda
from saccade.engines.device_engine import Bound, DeviceEngine, shape_of
from saccade.engines.tensorrt_build import import_binding, process_log
from saccade.errors import EngineError, OutOfMemoryError, SaccadeError

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|could not be allocated", re.IGNORECASE)  # in what TensorRT logs


class TensorRTEngine(DeviceEngine):
    """One plan on one GPU; tensors are addressed by name, since their order is not fixed.

    `run` has device buffers (they only grow), a stream and an execution context of its own, made when it is first called.
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
        self._jit_cache, self._config = self._runtime_config()
        self._context: Any = None
        self._scratch = 0  # address of the memory in which all contexts compute
        self._stream: Any = None
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
            raise self.error("cannot load it", "build it again here")
        return engine

    def _check_tensors(self) -> None:
        """Compare the plan's tensors with the manifest's: a buffer of the wrong size would be written past its end."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {name: self._type_of(name) for name in names}
        expected = {name: spec.dtype for name, spec in (self.inputs | self.outputs).items()}
        if found != expected:
            raise EngineError(f"{self._name}: {self._plan} has other tensors than bundle.json says; build it again")

    def _type_of(self, name: str) -> str:
        """Return a tensor's type as the manifest spells it."""
        dtype = self._engine.get_tensor_dtype(name)
        if dtype == self._trt.DataType.BF16:  # nptype knows none for it
            return "bfloat16"
        return str(np.dtype(self._trt.nptype(dtype)))

    def _runtime_config(self) -> tuple[Any, Any]:
        """Return RTX's cache of kernels compiled for this GPU, and the config that holds it; TensorRT has neither.

        Kernels are compiled for the very shapes of a context before its first pass is done. RTX would else begin with slower
        ones that take any shape, and a graph captured then would keep them.
        """
        if not hasattr(self._trt, "IRuntimeCache"):
            return None, None
        config = self._engine.create_runtime_config()
        cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):  # none yet
            cache.deserialize(self._cache_path.read_bytes())  # False where another GPU or driver wrote it
        config.set_runtime_cache(cache)
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return cache, config

    def new_context(self) -> Any:
        """Return an execution context; RTX compiles for this GPU here (seconds) unless its cache knows the result.

        All are of the one optimization profile, which TensorRT lets contexts share from 10.0 on, and compute in the same
        memory, which is as large as the profile's largest shapes want it: no two of an engine may run at the same time.
        """
        self._log.errors.clear()
        how = self._config or self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self.error("cannot create its execution context", "free GPU memory, or build with smaller limits")
        if size := self._engine.device_memory_size_v2:
            self._scratch = self._scratch or int(self._cuda.call("cudaMalloc", size))
            context.set_device_memory(self._scratch, size)
        return context

    def bind(self, batch: int, k: int, addresses: Mapping[str, int]) -> Bound:
        """Return an execution context of these shapes and addresses."""
        if self._closed:
            raise SaccadeError(f"{self.role}: the engine is closed; load the bundle again")
        return TensorRTBound(self, batch, k, addresses)

    @property
    def _cache_path(self) -> Path:
        """Where the compiled kernels of this GPU are kept: beside the plan."""
        return self._plan.with_suffix(".jit-cache")

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._cuda.call("cudaSetDevice", self._cuda.device)  # the current device belongs to the calling thread
        if self._context is None:
            self._context, self._stream = self.new_context(), self._cuda.call("cudaStreamCreate")
        self._log.errors.clear()
        sources = {name: np.ascontiguousarray(array) for name, array in feed.items()}  # alive until the copies are done
        for name, array in sources.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self.limits_error(name, array.shape)
            self._copy("cudaMemcpyHostToDevice", self._bind(name, array.nbytes), array)
        for name, spec in self.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if name not in self._results or self._results[name].shape != shape:
                self._results[name] = np.empty(shape, spec.host_type)
            self._bind(name, self._results[name].nbytes)
        if not self._context.execute_async_v3(int(self._stream)):
            raise self.error("the run failed", "free GPU memory, or use a smaller batch")
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

    def limits_error(self, name: str, shape: tuple[int, ...]) -> SaccadeError:
        """Return the error for a shape outside the optimization profile, with the command that builds a larger one."""
        most = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
        beyond: list[str] = []
        needed: dict[str, int | str] = {}
        for extent, asked, limit in zip(self.inputs[name].shape, shape, most, strict=True):
            if isinstance(extent, str):
                needed[extent] = max(asked, limit)
                beyond += [f"{extent} {asked} is beyond the {limit}"] if asked > limit else []
        if not beyond:
            return self.error(f"input {name!r} {list(shape)} is outside its limits", "build with larger ones")
        what = f"{self._name}: {' and '.join(beyond)} that the engine was built for"
        if "height" in needed:
            needed["size"] = f"{needed.pop('height')}x{needed.pop('width')}"
        flags = "".join(f" --max-{extent} {value}" for extent, value in needed.items())
        return SaccadeError(f"{what}; '{self._build_command}{flags}' builds a larger one")

    def error(self, what: str, remedy: str) -> SaccadeError:
        """Return an error with the reason TensorRT logged."""
        kind = OutOfMemoryError if any(_OUT_OF_MEMORY.search(each) for each in self._log.errors) else EngineError
        return kind(f"{self._name}: {what} ({self._log.error_line('no reason given')}); {remedy}")

    def _close(self) -> None:
        """Free the GPU's memory and keep what TensorRT-RTX compiled for the next load."""
        if self._jit_cache is not None:
            with contextlib.suppress(SaccadeError):  # a read-only bundle: compiled again at the next load
                atomic.write_bytes(self._cache_path, bytes(self._jit_cache.serialize()))
        self._context = self._config = self._jit_cache = self._engine = self._runtime = None
        for address in [self._scratch, *(address for address, _ in self._buffers.values())]:
            self._cuda.call("cudaFree", address)  # of 0 does nothing
        self._scratch = 0
        self._buffers.clear()
        if self._stream is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None


class TensorRTBound:
    """One execution context of an engine; see `saccade.engines.device_engine.Bound`."""

    def __init__(self, engine: TensorRTEngine, batch: int, k: int, addresses: Mapping[str, int]) -> None:
        self._engine = engine
        self._context = engine.new_context()
        for name, spec in engine.inputs.items():
            shape = shape_of(spec, batch, k)
            if not self._context.set_input_shape(name, shape):
                raise engine.limits_error(name, shape)
        for name, spec in engine.outputs.items():
            found, expected = tuple(self._context.get_tensor_shape(name)), shape_of(spec, batch, k)
            if found != expected:  # it would be written past the end of its memory
                raise engine.error(f"output {name!r} is {list(found)}, not {list(expected)}", "build it again here")
        for name in (*engine.inputs, *engine.outputs):
            if not self._context.set_tensor_address(name, addresses[name]):
                raise engine.error(f"does not take the address of {name!r}", "build it again here")

    def enqueue(self, stream: int) -> None:
        """Give one pass to a stream."""
        if not self._context.execute_async_v3(stream):
            raise self._engine.error("the run failed", "free GPU memory, or use a smaller batch")

    def check_capturable(self, stream: int) -> None:
        """Ask RTX, which may still be compiling kernels for these shapes; TensorRT always can after its first pass."""
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(stream):
            raise self._engine.error("these shapes cannot be captured in a CUDA graph", "use another batch or k")

    def close(self) -> None:
        """Free the execution context."""
        self._context = None
