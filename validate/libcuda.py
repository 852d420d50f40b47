"""CUDA's driver by ctypes, spelt as cuda-python spells it: for a machine with a GPU and PyTorch where cuda-python is not.

Only the functions that `saccade.runtime.cuda_device` calls. Each returns (status, *results), as cuda-python's do.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from saccade.engines.cuda import CUDA_LIBRARY
from saccade.errors import SaccadeError

INT, UINT, SIZE, HANDLE = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
ADDRESS, FLAGS, TEXT = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p
# name -> (symbol, types of the results, which come first in C, types of the arguments)
FUNCTIONS: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
    "cuInit": ("cuInit", (), (UINT,)),
    "cuDriverGetVersion": ("cuDriverGetVersion", (INT,), ()),
    "cuDeviceGetCount": ("cuDeviceGetCount", (INT,), ()),
    "cuDeviceGet": ("cuDeviceGet", (INT,), (INT,)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (HANDLE,), (INT,)),
    "cuDevicePrimaryCtxRelease": ("cuDevicePrimaryCtxRelease_v2", (), (INT,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (), (HANDLE,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (HANDLE,), ()),
    "cuModuleLoadData": ("cuModuleLoadData", (HANDLE,), (TEXT,)),
    "cuModuleUnload": ("cuModuleUnload", (), (HANDLE,)),
    "cuModuleGetFunction": ("cuModuleGetFunction", (HANDLE,), (HANDLE, TEXT)),
    "cuMemAlloc": ("cuMemAlloc_v2", (ADDRESS,), (SIZE,)),
    "cuMemFree": ("cuMemFree_v2", (), (ADDRESS,)),
    "cuMemGetInfo": ("cuMemGetInfo_v2", (SIZE, SIZE), ()),
    "cuMemAllocHost": ("cuMemAllocHost_v2", (HANDLE,), (SIZE,)),
    "cuMemFreeHost": ("cuMemFreeHost", (), (HANDLE,)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (), (ADDRESS, HANDLE, SIZE, HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (), (HANDLE, ADDRESS, SIZE, HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", (HANDLE,), (UINT,)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (), (HANDLE,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (), (HANDLE,)),
    "cuStreamWaitEvent": ("cuStreamWaitEvent", (), (HANDLE, HANDLE, UINT)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (), (HANDLE, INT)),
    "cuEventCreate": ("cuEventCreate", (HANDLE,), (UINT,)),
    "cuEventDestroy": ("cuEventDestroy_v2", (), (HANDLE,)),
    "cuEventRecord": ("cuEventRecord", (), (HANDLE, HANDLE)),
    "cuEventSynchronize": ("cuEventSynchronize", (), (HANDLE,)),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", (HANDLE,), (HANDLE, FLAGS)),
    "cuGraphLaunch": ("cuGraphLaunch", (), (HANDLE, HANDLE)),
    "cuGraphDestroy": ("cuGraphDestroy", (), (HANDLE,)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (), (HANDLE,)),
    "cuLaunchKernel": ("cuLaunchKernel", (), (HANDLE, *(UINT,) * 7, HANDLE, HANDLE, HANDLE)),
}


class LibCuda:
    """In the place of `cuda.bindings.driver`."""

    CUpointer_attribute = CUstreamCaptureMode = int

    def __init__(self, library: Any = None) -> None:
        try:
            self._library = ctypes.CDLL(CUDA_LIBRARY) if library is None else library
        except OSError as error:
            raise SaccadeError(f"{CUDA_LIBRARY} not found: no NVIDIA driver here") from error

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if name not in FUNCTIONS:
            raise AttributeError(name)
        symbol, results, arguments = FUNCTIONS[name]
        function = self._function(symbol, *(ctypes.POINTER(kind) for kind in results), *arguments)

        def call(*values: Any) -> tuple[Any, ...]:
            found = [kind() for kind in results]
            status = function(*(ctypes.byref(each) for each in found), *values)
            return (status, *(each.value or 0 for each in found))

        setattr(self, name, call)
        return call

    def _function(self, symbol: str, *kinds: Any) -> Any:
        function = getattr(self._library, symbol)
        function.argtypes, function.restype = kinds, INT
        return function

    # Those whose results are not the first of their arguments.

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        """Return the device's name."""
        text = ctypes.create_string_buffer(length)
        return self._function("cuDeviceGetName", TEXT, INT, INT)(text, length, device), text.raw

    def cuGetErrorString(self, status: int) -> tuple[int, bytes | None]:  # noqa: N802
        """Return what a status means."""
        text = TEXT()
        return self._function("cuGetErrorString", INT, ctypes.POINTER(TEXT))(status, ctypes.byref(text)), text.value

    def cuStreamGetCtx(self, stream: int) -> tuple[int, int]:  # noqa: N802
        """Return the context of a stream."""
        context = HANDLE()
        status = self._function("cuStreamGetCtx", HANDLE, ctypes.POINTER(HANDLE))(stream, ctypes.byref(context))
        return status, context.value or 0

    def cuStreamIsCapturing(self, stream: int) -> tuple[int, int]:  # noqa: N802
        """Return whether a stream is being captured: 0, or something else."""
        state = INT()
        return self._function("cuStreamIsCapturing", HANDLE, ctypes.POINTER(INT))(stream, ctypes.byref(state)), state.value

    def cuStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        """Return the captured graph."""
        graph = HANDLE()
        status = self._function("cuStreamEndCapture", HANDLE, ctypes.POINTER(HANDLE))(stream, ctypes.byref(graph))
        return status, graph.value or 0

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[int, int]:  # noqa: N802
        """Return an attribute of an address: a context, or a 32-bit number."""
        value = ctypes.c_uint64()
        status = self._function("cuPointerGetAttribute", HANDLE, INT, ADDRESS)(ctypes.addressof(value), attribute, address)
        return status, value.value
