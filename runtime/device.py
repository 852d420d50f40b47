"""A GPU as the chain uses it: the few calls of CUDA's driver, so that a test can stand in for one.

Streams, events and graphs are CUDA's own handles, and addresses are plain numbers: what an engine, or an application that
embeds the chain, passes to its own library. Launches, copies and waits of a stream return before the work is done; the
`synchronize*` wait for it, `free*` may wait for the whole device, and a copy to memory that is not pinned for itself.
"""
from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from saccade.runtime.launch import Launch

LEGACY_STREAM = 1  # CU_STREAM_LEGACY, the default stream of most libraries, under a number that is no null


class Device(Protocol):
    """One GPU. Raises SaccadeError, in one line, for whatever the driver refuses."""

    index: int
    name: str
    dlpack_device: tuple[int, int]  # (DLDeviceType, index)

    def current(self) -> AbstractContextManager[None]:
        """Make this device's context the calling thread's, and give the thread its own back."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory, or raise OutOfMemoryError; see `Memory`, which frees them."""

    def free(self, address: int) -> None:
        """Free device memory that nothing in flight uses."""

    def allocate_pinned(self, size: int) -> int:
        """Return the address of `size` bytes of host memory that copies need not stage; see `Pinned`."""

    def free_pinned(self, address: int) -> None:
        """Free pinned memory that nothing in flight uses."""

    def create_stream(self) -> int:
        """Return a stream that waits for no other by itself."""

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream of `create_stream`."""

    def check_stream(self, stream: int) -> None:
        """Refuse a stream that belongs to another context or is being captured."""

    def check_address(self, address: int, what: str) -> None:
        """Refuse an address that is no memory of this device; `what` names the array in the error."""

    def create_event(self) -> int:
        """Return an event."""

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""

    def record(self, event: int, stream: int) -> None:
        """Let `event` stand for everything given to `stream` so far."""

    def wait(self, stream: int, event: int) -> None:
        """Let what is given to `stream` from now on wait for `event`."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything given to `stream` is done."""

    def synchronize_event(self, event: int) -> None:
        """Wait for an event; one that was never recorded is over."""

    def copy_in(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy from pinned host memory to the device."""

    def copy_out(self, target: int, address: int, size: int, stream: int) -> None:
        """Copy from the device to host memory; one that is not pinned may be waited for."""

    def launch(self, kernel: str, params: ctypes.Structure, shape: Launch, stream: int) -> None:
        """Launch one of our kernels. `params` are read before this returns."""

    def capture(self, enqueue: Callable[[int], None], stream: int) -> int:
        """Return a graph of what `enqueue` gives to `stream`, which is not run. Nothing in it may allocate or wait."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run a graph on any stream of this device."""

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""


class Memory:
    """A block of device memory, freed when nothing refers to it any more: an array given out keeps it."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        with device.current():
            self.address = device.allocate(size)
        self._finalizer = weakref.finalize(self, _free, device, self.address)
        self._finalizer.atexit = False

    def free(self) -> None:
        """Free it now; nothing may use it any more."""
        self._finalizer()


class Pinned:
    """A block of pinned host memory as a NumPy array of bytes, freed when the last view of it is gone."""

    def __init__(self, device: Device, size: int) -> None:
        with device.current():
            self.address = device.allocate_pinned(size)
        block = (ctypes.c_uint8 * size).from_address(self.address)
        weakref.finalize(block, _free_pinned, device, self.address).atexit = False
        self.bytes: np.ndarray = np.frombuffer(memoryview(block), np.uint8)


def _free(device: Device, address: int) -> None:
    with device.current():
        device.free(address)


def _free_pinned(device: Device, address: int) -> None:
    with device.current():
        device.free_pinned(address)
