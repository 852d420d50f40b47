"""A stand-in for TensorRT-RTX on a GPU: its memory is the host's, its engine adds one."""
from __future__ import annotations

import ctypes
import types
from typing import Any, ClassVar

import numpy as np

contexts: list[Any] = []  # all that were created


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


def bound(engine: Any, batch: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return the engine bound to arrays of ours, and the arrays."""
    x, y = np.full((batch, 3), batch, np.float32), np.zeros((batch, 3), np.float32)
    return engine.bind(batch, 1, {"x": x.ctypes.data, "y": y.ctypes.data}), x, y
