"""What the engines need of CUDA: which GPUs the driver offers, and the few runtime calls of cuda-python."""
from __future__ import annotations

import ctypes
import sys
from typing import Any

from msgspec import Struct

from saccade.errors import OutOfMemoryError, SaccadeError

CUDA_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


class Gpu(Struct, frozen=True):
    """One device as the driver describes it."""

    name: str
    compute_capability: str  # as TensorRT-RTX spells it: "SM89"
    driver: str  # the newest CUDA version it supports


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs the driver offers, or none and the reason.

    Asked of the driver alone, and before anything of TensorRT: some of its libraries crash where there is no device
    (lean 11.4 returns a runtime after "CUDA initialization failure" and dies in the next call).
    """
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        return (), f"{CUDA_LIBRARY} not found"
    count, version = ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return (), f"the CUDA driver answers with error {status}"
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_gpu(cuda, index, driver) for index in range(count.value)), "the CUDA driver lists none"


def _gpu(cuda: ctypes.CDLL, index: int, driver: str) -> Gpu:
    """Describe one device of an initialised driver."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    digits = []
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        digits.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), f"SM{''.join(digits)}", driver)


class Cuda:
    """The few calls of cuda-python that an engine needs, raising instead of returning a status."""

    def __init__(self, engine: str, device: int) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise SaccadeError(f"{engine}: cuda-python is missing; pip install '.[{engine}]' in the clone") from error
        self._runtime, self._engine, self.device = runtime, engine, device
        self.call("cudaSetDevice", device)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return its one result, if it has one."""
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            what = f"{self._engine}: {function} on GPU {self.device} failed ({status.name})"
            if status.name == "cudaErrorMemoryAllocation":
                raise OutOfMemoryError(f"{what}; free GPU memory")
            raise SaccadeError(f"{what}; check it with nvidia-smi")
        return results[0] if results else None

    def copy_kind(self, name: str) -> Any:
        """Return the direction of a copy by its name."""
        return getattr(self._runtime.cudaMemcpyKind, name)
