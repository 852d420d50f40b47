"""What an engine on a GPU offers beside `run`: to be given to a stream, with its tensors where the caller has them."""
from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from saccade.bundle import TensorSpec
from saccade.engines.engine import Engine
from saccade.errors import SaccadeError


class Bound(Protocol):
    """A network made ready for one shape and one set of addresses, with an execution context of its own.

    The first `enqueue` may allocate and compile; once it is done, any further one may be captured in a CUDA graph. The
    graph keeps the context: close it only after the graph is destroyed. All of one engine compute in the same memory: a pass
    of one has to be over before a pass of another begins.
    """

    def enqueue(self, stream: int) -> None:
        """Give one pass to a stream, without waiting for it. The device's context must be the thread's."""

    def check_capturable(self, stream: int) -> None:
        """Refuse where a pass cannot become part of a CUDA graph."""

    def close(self) -> None:
        """Free the execution context."""


class DeviceEngine(Engine):
    """A loaded network whose tensors may lie in device memory. The device's context must be the thread's."""

    @abc.abstractmethod
    def bind(self, batch: int, k: int, addresses: Mapping[str, int]) -> Bound:
        """Return the network made ready for `batch` images of `k` patches, each tensor at its device address, by name.

        Raises SaccadeError where the engine does not take that batch or k.
        """


def shape_of(spec: TensorSpec, batch: int, k: int) -> tuple[int, ...]:
    """Return a tensor's shape for a batch and a k."""
    sizes = {"batch": batch, "k": k}
    unknown = [extent for extent in spec.shape if isinstance(extent, str) and extent not in sizes]
    if unknown:
        raise SaccadeError(f"tensor {spec.name!r} varies in {unknown[0]!r}, only batch and k may; export the bundle again")
    return tuple(sizes[extent] if isinstance(extent, str) else extent for extent in spec.shape)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 values in a tensor's type, rounded once, as `TensorSpec.host_type` has it; NaN is none of them."""
    if dtype != "bfloat16":
        return array.astype(dtype, copy=False)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def bytes_of(spec: TensorSpec, batch: int, k: int) -> int:
    """Return how many bytes a tensor takes for a batch and a k."""
    return int(np.prod(shape_of(spec, batch, k))) * spec.host_type.itemsize
