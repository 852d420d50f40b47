"""A GPU through CUDA's driver, called as NVIDIA's cuda-python spells it.

Everything lies in the device's primary context, which the CUDA runtime, TensorRT and PyTorch use too.
"""
from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime.dlpack import CUDA
from saccade.runtime.launch import KERNELS, MIN_DRIVER, Launch

# cuda.h
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
POINTER_CONTEXT, POINTER_ORDINAL = 1, 9  # CUpointer_attribute
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
UNLOADABLE = (200, 209, 218, 222)  # invalid image, no binary for this GPU, invalid PTX, unsupported PTX version

_capture = threading.local()  # `pending`: what this thread would have freed during its capture, which forbids it


class _NoCollection:
    """Entered by any thread that captures: no garbage is collected until the last has left.

    What frees or waits in a destructor, as those of TensorRT's objects do, would void the capture of its thread.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._enabled:
                gc.enable()


_no_collection = _NoCollection()


def _release(driver: Any, device: Any, context: int, modules: list[Any]) -> None:
    """Give back what a device held; other libraries may keep the context, and with it any module left in it."""
    driver.cuCtxPushCurrent(context)
    for module in modules:
        driver.cuModuleUnload(module)
    driver.cuCtxPopCurrent()
    driver.cuDevicePrimaryCtxRelease(device)


class CudaDevice:
    """See `saccade.runtime.device.Device`. Any thread may use it, inside `current`."""

    def __init__(self, index: int, fatbin: bytes, driver: Any = None) -> None:
        self.index, self.name, self.dlpack_device = index, f"GPU {index}", (CUDA, index)
        self._driver = _cuda_python() if driver is None else driver
        self._device = self._find()
        self._context = int(self._call("cuDevicePrimaryCtxRetain", self._device))
        modules: list[Any] = []
        weakref.finalize(self, _release, self._driver, self._device, self._context, modules).atexit = False
        with self.current():
            modules.append(self._load(fatbin))
            self._kernels = {name: self._call("cuModuleGetFunction", modules[0], name.encode()) for name in KERNELS}

    def _find(self) -> Any:
        """Return the device of our index, or say why there is none."""
        try:
            status = int(self._driver.cuInit(0)[0])
        except RuntimeError as error:  # cuda-python found no libcuda
            raise SaccadeError(f"no NVIDIA driver here; use --engine openvino, or install driver r580 ({error})") from error
        count = 0 if status else int(self._call("cuDeviceGetCount"))
        if not 0 <= self.index < count:
            there = f"the driver answers with error {status}" if status else f"the driver lists {count}"
            raise SaccadeError(f"no GPU {self.index} here ({there}); check it with nvidia-smi")
        device = self._call("cuDeviceGet", self.index)
        text = self._call("cuDeviceGetName", 128, device).split(b"\0")[0].decode(errors="replace")
        self.name = f"GPU {self.index} ({text.strip()})"
        return device

    def _load(self, fatbin: bytes) -> Any:
        """Load the kernels; a driver that is older than their compiler cannot."""
        status, module = self._driver.cuModuleLoadData(fatbin)
        if int(status) in UNLOADABLE:
            version = int(self._call("cuDriverGetVersion"))
            need = "they need driver r580 (CUDA 13.0), see docs/gpu.md" if version < MIN_DRIVER else "'make cuda' again"
            says = f"its driver is for CUDA {version // 1000}.{version % 1000 // 10}"
            raise SaccadeError(f"{self.name} cannot load the compiled kernels ({self._reason(status)}); {says}: {need}")
        if int(status):
            raise self._error("cuModuleLoadData", status)
        return module

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver and return its one result, if it has one."""
        status, *results = getattr(self._driver, function)(*arguments)
        if int(status):
            raise self._error(function, status)
        return results[0] if results else None

    def _error(self, function: str, status: Any) -> SaccadeError:
        return SaccadeError(f"{self.name}: {function} failed ({self._reason(status)}); check it with nvidia-smi")

    def _reason(self, status: Any) -> str:
        text = self._driver.cuGetErrorString(status)[1]
        return text.decode() if isinstance(text, bytes) else f"error {int(status)}"

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make our context the calling thread's, and give the thread its own back."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """Return the address of device memory, or say how much is left."""
        status, address = self._driver.cuMemAlloc(size)
        if int(status) == OUT_OF_MEMORY:
            free, total = self._driver.cuMemGetInfo()[1:]
            raise OutOfMemoryError(
                f"{self.name}: {_mib(size)} of memory are not to be had, {_mib(free)} of {_mib(total)} are free; "
                "free GPU memory, or use a smaller batch, size or k"
            )
        if int(status):
            raise self._error("cuMemAlloc", status)
        return int(address)

    def free(self, address: int) -> None:
        """Free device memory."""
        self._free(self._driver.cuMemFree, address)

    def _free(self, function: Callable[[int], Any], address: int) -> None:
        """Free memory. That waits for the device, so during a capture of this thread it comes after it."""
        pending = getattr(_capture, "pending", None)
        if pending is not None:
            pending.append((self, function, address))
        else:
            function(address)  # an error would be that of a device already lost

    def allocate_pinned(self, size: int) -> int:
        """Return the address of pinned host memory."""
        return int(self._call("cuMemAllocHost", size))

    def free_pinned(self, address: int) -> None:
        """Free pinned memory."""
        self._free(self._driver.cuMemFreeHost, address)

    def create_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        return int(self._call("cuStreamCreate", NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream of ours."""
        self._call("cuStreamDestroy", stream)

    def check_stream(self, stream: int) -> None:
        """Refuse a stream of another context, and one that is being captured."""
        if int(self._call("cuStreamIsCapturing", stream)):
            raise SaccadeError(
                f"the stream {stream:#x} is being captured; saccade captures its own graph: call it outside of the capture"
            )
        if int(self._call("cuStreamGetCtx", stream)) != self._context:
            raise SaccadeError(
                f"the stream {stream:#x} is not of {self.name}'s primary context, which saccade, PyTorch and CuPy use; "
                "make it there (in pycuda: import pycuda.autoprimaryctx)"
            )

    def check_address(self, address: int, what: str) -> None:
        """Refuse memory of the host, of another GPU and of another context."""
        status, ordinal = self._driver.cuPointerGetAttribute(self._attribute(POINTER_ORDINAL), address)
        if int(status):
            raise SaccadeError(f"{what}: {address:#x} is no device memory; give a NumPy array, or copy it to {self.name}")
        if int(ordinal) != self.index:
            raise SaccadeError(f"{what}: it lies on GPU {int(ordinal)}, the pipeline on GPU {self.index}; copy it there")
        context = self._driver.cuPointerGetAttribute(self._attribute(POINTER_CONTEXT), address)[1]
        if int(context or 0) not in (0, self._context):  # 0: memory of a pool belongs to none
            raise SaccadeError(
                f"{what}: it lies in another context than {self.name}'s primary one; allocate it there "
                "(in pycuda: import pycuda.autoprimaryctx)"
            )

    def _attribute(self, number: int) -> Any:
        return self._driver.CUpointer_attribute(number)

    def create_event(self) -> int:
        """Return an event without a time, the cheaper kind."""
        return int(self._call("cuEventCreate", DISABLE_TIMING))

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """Let an event stand for everything given to a stream so far."""
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let a stream wait for an event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cuStreamSynchronize", stream)

    def synchronize_event(self, event: int) -> None:
        """Wait for an event."""
        self._call("cuEventSynchronize", event)

    def copy_in(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy from pinned host memory."""
        self._call("cuMemcpyHtoDAsync", address, source, size, stream)

    def copy_out(self, target: int, address: int, size: int, stream: int) -> None:
        """Copy to host memory."""
        self._call("cuMemcpyDtoHAsync", target, address, size, stream)

    def launch(self, kernel: str, params: ctypes.Structure, shape: Launch, stream: int) -> None:
        """Launch one of our kernels."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        function, where = self._kernels[kernel], ctypes.addressof(pointers)
        self._call("cuLaunchKernel", function, shape.x, shape.y, 1, shape.threads, 1, 1, 0, stream, where, 0)

    def capture(self, enqueue: Callable[[int], None], stream: int) -> int:
        """Return the executable graph of what `enqueue` gives to `stream`."""
        _capture.pending = []
        try:
            with _no_collection:
                graph = self._captured(enqueue, stream)
        finally:
            pending, _capture.pending = _capture.pending, None
            for device, function, address in pending:  # which may be another than this one
                with device.current():
                    function(address)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def _captured(self, enqueue: Callable[[int], None], stream: int) -> Any:
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode(THREAD_LOCAL))
        try:
            enqueue(stream)
        except BaseException:
            status, graph = self._driver.cuStreamEndCapture(stream)
            if not int(status):
                self._driver.cuGraphDestroy(graph)
            raise
        return self._call("cuStreamEndCapture", stream)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run a graph."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        self._call("cuGraphExecDestroy", graph)


def _cuda_python() -> Any:
    """Import the driver's bindings, or say how to get them."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise SaccadeError("cuda-python is missing; pip install '.[tensorrt]' in the clone") from error
    return driver


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
