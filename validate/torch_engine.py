"""The modules that `export` traces, run by torch behind the interface of an engine on device memory.

For GPUs where TensorRT is not to be had: it proves the chain there. It is no engine of `saccade build`.
"""
from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.bundle import GraphFile, TensorSpec
from saccade.engines.device_engine import DeviceEngine, bytes_of, shape_of
from saccade.errors import SaccadeError
from saccade.export import modules

MAX_SHAPES = 64  # that torch.compile makes code for; beyond its own 8 it would silently run eagerly


def in_precision(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """Move a module to a device and a type; the selector's head stays float32, as in converted graphs."""
    module = module.to(device=device, dtype=dtype)
    head = getattr(module, "head", None)
    if isinstance(head, modules.MapHead):
        head.float().register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
    return module


class TorchEngine(DeviceEngine):
    """One module with float32 at its boundary, as the bundle's graphs have it."""

    def __init__(self, role: str, graph: GraphFile, module: nn.Module, *, compiled: bool = False) -> None:
        super().__init__(role, graph)
        self.parameter = next(module.parameters())  # its type and device are the module's
        self.pools: list[object] = []
        self.forward: Callable[..., tuple[Tensor, ...]] = module
        if compiled:
            torch._dynamo.config.recompile_limit = MAX_SHAPES
            self.forward = torch.compile(module, dynamic=False)

    def bind(self, batch: int, k: int, addresses: Mapping[str, int]) -> TorchBound:
        """Return the module on tensors at these addresses."""
        if self._closed:
            raise SaccadeError(f"{self.role}: the engine is closed")
        return TorchBound(self, batch, k, addresses)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = self.compute([torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self.inputs])
            return {name: value.float().cpu().numpy() for name, value in zip(self.outputs, found, strict=True)}

    def compute(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Run the module in its own type."""
        parameter = self.parameter
        return self.forward(*(each.to(device=parameter.device, dtype=parameter.dtype) for each in inputs))


class TorchBound:
    """A module on fixed tensors; see `saccade.engines.device_engine.Bound`.

    What it allocates on the way comes from a pool of its own: a captured graph goes on writing there, so nobody else may.
    """

    def __init__(self, engine: TorchEngine, batch: int, k: int, addresses: Mapping[str, int]) -> None:
        self._engine, self._device = engine, engine.parameter.device
        self._pool = torch.cuda.MemPool() if self._device.type == "cuda" else None
        engine.pools.append(self._pool)

        def at(spec: TensorSpec) -> Tensor:
            return tensor_at(addresses[spec.name], spec, batch, k, self._device)

        self._inputs = [at(spec) for spec in engine.inputs.values()]
        self._outputs = [at(spec) for spec in engine.outputs.values()]

    @torch.inference_mode()
    def enqueue(self, stream: int) -> None:
        """Run the module on a stream."""
        with self._on(stream):
            for out, found in zip(self._outputs, self._engine.compute(self._inputs), strict=True):
                out.copy_(found)

    def _on(self, stream: int) -> AbstractContextManager[None]:
        stack = contextlib.ExitStack()
        if self._pool is not None:
            stack.enter_context(on_stream(stream, self._device))
            stack.enter_context(torch.cuda.use_mem_pool(self._pool, device=self._device))
        return stack  # type: ignore[return-value]

    def check_capturable(self, stream: int) -> None:
        """Everything these modules do can be captured."""

    def close(self) -> None:
        """Drop the tensors. The pool stays with the engine: torch keeps workspaces in it."""
        self._inputs, self._outputs = [], []


def on_stream(stream: int, device: torch.device) -> AbstractContextManager[object]:
    """Let torch work on a stream that is somebody else's."""
    external: Any = torch.cuda.ExternalStream
    return torch.cuda.stream(external(stream, device=device))


def tensor_at(address: int, spec: TensorSpec, batch: int, k: int, device: torch.device) -> Tensor:
    """Return a tensor in memory that is somebody else's, on the host or on a GPU."""
    shape, kind = shape_of(spec, batch, k), np.dtype(spec.dtype)
    if device.type == "cpu":
        memory: Any = (ctypes.c_uint8 * bytes_of(spec, batch, k)).from_address(address)
        return torch.from_numpy(np.frombuffer(memory, kind).reshape(shape))
    interface = {"shape": shape, "typestr": kind.str, "data": (address, False), "strides": None, "version": 2}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device=device)
