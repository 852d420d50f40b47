"""A GPU played by the host: its memory is ours, and its kernels are the CUDA sources compiled for the CPU.

It is as lazy as a GPU may be. What a stream is given is done when somebody waits for it and not before, so pinned memory
that is overwritten too early, or a wait that was forgotten, shows in the numbers. Streams may also be `eager`, each for
itself: done as soon as they can be, while the others lag behind. Every allocation is registered: kernels and copies may
touch nothing else, neither when they are given nor when they run, and freeing waits for nothing unless `free_waits`. What
CUDA forbids in a capture raises, and what the kernels do not check themselves.
"""
from __future__ import annotations

import contextlib
import ctypes
import itertools
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade.engines.device_engine import DeviceEngine, bytes_of, shape_of
from saccade.engines.engine import Engine
from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime import launch
from saccade.runtime.device import LEGACY_STREAM
from saccade.runtime.launch import ImageView, Launch
from saccade.runtime.reference import NEIGHBOURS

ROOT = Path(__file__).parents[2]
INCLUDES = [f"-I{ROOT / folder}" for folder in ("runtime/cuda", "runtime/native/include", "runtime/native/src")]
GARBAGE = 0xFF  # NaN as float32, and an index far outside
MAX_BATCH, MAX_GRID_CELLS = 65535, 1 << 16  # as launch.hpp has them
OUTPUTS = {
    **dict.fromkeys(launch.PREPROCESS.values(), ("lowres",)),
    **dict.fromkeys(launch.GATHER.values(), ("patches", "kept_positions")),
    launch.RESIZE_SCORES: ("scores",), launch.RANK: ("indices", "status"), launch.FILL: ("out",),
}  # fmt: skip


class DeviceFault(AssertionError):
    """What a GPU would crash on, or silently get wrong."""


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Compile the kernels' sources for the CPU."""
    library = folder / "cuda_host.so"
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC"]
    source = Path(__file__).with_name("cuda_host.cpp")
    subprocess.run(["g++", *flags, *INCLUDES, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@dataclass
class Operation:
    """Something a stream was given: what to do, and what it is called with, to compare a graph with its warm-up."""

    name: str
    arguments: tuple[object, ...]
    run: Callable[[], None]


@dataclass
class Stream:
    queue: list[Operation] = field(default_factory=list)
    done: int = 0  # how many operations were run
    eager: bool = False
    capture: list[Operation] | None = None


@dataclass
class Block:
    """One allocation, with a margin on either side that nobody may write to."""

    MARGIN = 256
    whole: np.ndarray

    @classmethod
    def of(cls, size: int) -> Block:
        return cls(np.full(size + 2 * cls.MARGIN, GARBAGE, np.uint8))

    @property
    def address(self) -> int:
        return int(self.whole.ctypes.data) + self.MARGIN

    @property
    def size(self) -> int:
        return len(self.whole) - 2 * self.MARGIN

    def check_margins(self) -> None:
        if (self.whole[: self.MARGIN] != GARBAGE).any() or (self.whole[-self.MARGIN :] != GARBAGE).any():
            raise DeviceFault("something wrote beside an allocation")


class HostDevice:
    """See `saccade.runtime.device.Device`. `calls` lists the names of what was done, in the order it was asked for."""

    def __init__(
        self,
        kernels: ctypes.CDLL,
        capacity: int = 1 << 33,
        *,
        eager: Collection[int] = (),  # streams by the number of their creation here
        free_waits: bool = False,  # as the driver does it, which its manual does not promise
    ) -> None:
        self.index, self.name, self.dlpack_device = 0, "GPU 0 (host)", (1, 0)
        self.calls: list[str] = []
        self.graphs: dict[int, list[Operation]] = {}
        self.capacity, self.foreign_contexts = capacity, set[int]()
        self._eager, self._free_waits, self._created = eager, free_waits, 0
        self._kernels = kernels
        self._numbers = itertools.count(1000)
        self._streams = {LEGACY_STREAM: Stream()}
        self._events: dict[int, tuple[Stream, int] | None] = {}
        self.memory: dict[int, Block] = {}
        self.pinned: dict[int, Block] = {}
        self._lock = threading.RLock()
        self._depth = threading.local()

    # ---- context

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def _check_current(self) -> None:
        if not getattr(self._depth, "value", 0):
            raise DeviceFault("called outside of the device's context")

    def _refuse_in_capture(self, what: str) -> None:
        self._check_current()
        if any(stream.capture is not None for stream in self._streams.values()):
            raise DeviceFault(f"{what} during a capture")

    # ---- memory

    def allocate(self, size: int) -> int:
        self._refuse_in_capture("allocate")
        if sum(block.size for block in self.memory.values()) + size > self.capacity:
            raise OutOfMemoryError(f"{self.name}: {size} bytes of memory are not to be had")
        return self._registered(self.memory, size)

    def _registered(self, kind: dict[int, Block], size: int) -> int:
        if size <= 0:
            raise DeviceFault(f"an allocation of {size} bytes")
        block = Block.of(size)
        kind[block.address] = block
        return block.address

    def free(self, address: int) -> None:
        self._refuse_in_capture("free")
        self._free(self.memory, address)

    def allocate_pinned(self, size: int) -> int:
        self._refuse_in_capture("allocate_pinned")
        return self._registered(self.pinned, size)

    def free_pinned(self, address: int) -> None:
        self._refuse_in_capture("free_pinned")
        self._free(self.pinned, address)

    def _free(self, kind: dict[int, Block], address: int) -> None:
        for stream in self._streams.values() if self._free_waits else ():
            self._drain(stream)
        kind.pop(address).check_margins()

    def adopt(self, array: np.ndarray) -> None:
        """Register a guest's array as memory of this device."""
        block = Block(np.concatenate([np.full(Block.MARGIN, GARBAGE, np.uint8)] * 2))
        block.guest = array  # type: ignore[attr-defined]
        self.memory[int(array.ctypes.data)] = block

    def _check_range(self, kind: dict[int, Block], address: int, size: int, what: str) -> None:
        for start, block in kind.items():
            guest = getattr(block, "guest", None)
            extent = block.size if guest is None else guest.nbytes
            if start <= address and address + size <= start + extent:
                return
        raise DeviceFault(f"{what}: {size} bytes at {address:#x} lie in no live allocation")

    def check_address(self, address: int, what: str) -> None:
        self._check_current()
        try:
            self._check_range(self.memory, address, 1, what)
        except DeviceFault as error:
            raise SaccadeError(f"{what}: {address:#x} is no device memory") from error

    # ---- streams and events

    def create_stream(self) -> int:
        self._refuse_in_capture("create_stream")
        handle = next(self._numbers)
        self._streams[handle] = Stream(eager=self._created in self._eager)
        self._created += 1
        return handle

    def destroy_stream(self, stream: int) -> None:
        self._drain(self._streams.pop(stream))

    def check_stream(self, stream: int) -> None:
        if stream in self.foreign_contexts:
            raise SaccadeError(f"the stream {stream:#x} is not of {self.name}'s primary context")

    def create_event(self) -> int:
        handle = next(self._numbers)
        self._events[handle] = None
        return handle

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._refuse_in_capture("record")
        where = self._streams[stream]
        self._events[event] = (where, len(where.queue))

    def wait(self, stream: int, event: int) -> None:
        recorded = self._events[event]
        if recorded is not None:
            other, count = recorded
            self._give(stream, Operation("wait", (), lambda: self._drain(other, count)))

    def synchronize(self, stream: int) -> None:
        self._refuse_in_capture("synchronize")
        self.calls.append("synchronize")
        self._drain(self._streams[stream])

    def synchronize_event(self, event: int) -> None:
        self._refuse_in_capture("synchronize_event")
        recorded = self._events[event]
        if recorded is not None:
            self._drain(*recorded)

    def _give(self, stream: int, operation: Operation) -> None:
        self._check_current()
        self.calls.append(operation.name)
        where = self._streams[stream]
        (where.queue if where.capture is None else where.capture).append(operation)
        if where.eager:
            self._drain(where)

    def _drain(self, stream: Stream, count: int | None = None) -> None:
        """Do what a stream was given, up to its `count`-th operation."""
        with self._lock:
            while stream.done < (len(stream.queue) if count is None else count):
                operation = stream.queue[stream.done]
                stream.done += 1
                operation.run()

    # ---- work

    def copy_in(self, address: int, source: int, size: int, stream: int) -> None:
        def run() -> None:
            self._check_range(self.memory, address, size, "copy_in")
            self._check_range(self.pinned, source, size, "copy_in from memory that is not pinned")
            ctypes.memmove(address, source, size)

        self._check_range(self.memory, address, size, "copy_in")
        self._give(stream, Operation("copy_in", (address, source, size), run))

    def copy_out(self, target: int, address: int, size: int, stream: int) -> None:
        def run() -> None:
            self._check_range(self.memory, address, size, "copy_out")
            ctypes.memmove(target, address, size)

        self._check_range(self.memory, address, size, "copy_out")
        self._give(stream, Operation("copy_out", (target, address, size), run))

    def launch(self, kernel: str, params: ctypes.Structure, shape: Launch, stream: int) -> None:
        frozen, self_shape = type(params).from_buffer_copy(params), (ctypes.c_uint32 * 3)()
        if not self._kernels.launch_shape(kernel.encode(), ctypes.byref(frozen), self_shape):
            raise DeviceFault(f"no kernel {kernel}")
        if tuple(self_shape) != tuple(shape):
            raise DeviceFault(f"{kernel}: launched as {tuple(shape)}, it needs {tuple(self_shape)}")
        check_preconditions(kernel, frozen)

        def run() -> None:
            for name, address, size in touched(kernel, frozen):
                self._check_range(self.memory, address, size, f"{kernel}: {name}")
            if hasattr(frozen, "images"):
                self._check_views(kernel, frozen)
            self._kernels.launch(kernel.encode(), ctypes.byref(frozen), 2)

        self._give(stream, Operation(kernel, (bytes(frozen),), run))

    def _check_views(self, kernel: str, params: Any) -> None:
        for view in (ImageView * params.batch).from_address(params.images):
            first, last = view.pixels, view.pixels + (view.height - 1) * view.row_stride
            self._check_range(self.memory, min(first, last), abs(last - first) + 3 * view.width, f"{kernel}: an image")

    def enqueue(self, name: str, arguments: tuple[object, ...], run: Callable[[], None], stream: int) -> None:
        """Give a stream anything else: a network."""
        self._give(stream, Operation(name, arguments, run))

    # ---- graphs

    def capture(self, enqueue: Callable[[int], None], stream: int) -> int:
        self._refuse_in_capture("capture")
        where = self._streams[stream]
        if stream == LEGACY_STREAM:
            raise DeviceFault("a default stream cannot be captured")
        where.capture = []
        try:
            enqueue(stream)
        finally:
            captured, where.capture = where.capture, None
        handle = next(self._numbers)
        self.graphs[handle] = captured
        return handle

    def launch_graph(self, graph: int, stream: int) -> None:
        operations = self.graphs[graph]

        def run() -> None:
            for operation in operations:
                operation.run()

        self._give(stream, Operation("launch_graph", (graph,), run))

    def destroy_graph(self, graph: int) -> None:
        self._refuse_in_capture("destroy_graph")
        del self.graphs[graph]


def touched(kernel: str, params: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the name, address and bytes of each array that a kernel reads or writes; images apart."""
    p, width = params, 2 if kernel.endswith(("16", "16bit")) else 4
    if "preprocess" in kernel:
        sizes = {"images": 32 * p.batch, "table": 3072, "lowres": p.batch * 3 * p.size**2 * width}
    elif kernel in (launch.RESIZE_SCORES, launch.RANK):
        cells = p.batch * p.rows * p.columns
        sizes = {"maps": 4 * p.batch * p.map_size**2, "scores": 4 * cells}
        if kernel == launch.RANK:
            sizes |= {"indices": 4 * p.batch * p.k, "status": 4 * p.batch}
    elif "gather" in kernel:
        kept = p.batch * p.k
        sizes = {"images": 32 * p.batch, "table": 768 * width, "indices": 4 * kept, "positions": p.dim * width}
        sizes |= {"patches": kept * 3 * p.patch**2 * width, "kept_positions": kept * p.dim * width}
    else:
        sizes = {"tokens": 4 * p.batch * p.k * p.channels, "indices": 4 * p.batch * p.k}
        sizes |= {"out": 4 * p.batch * p.channels * p.rows * p.columns}
    for name, size in sizes.items():
        yield name, getattr(p, name), size


def check_preconditions(kernel: str, params: Any) -> None:
    """Raise for parameters that `launch.hpp` rules out and the kernels do not look at."""
    cells = getattr(params, "rows", 1) * getattr(params, "columns", 1)
    extents = {name: value for name, kind in params._fields_ if kind is ctypes.c_int32 and name not in ("unused", "bgr")
               for value in [getattr(params, name)]}
    facts = {
        "extents from 1": min(extents.values()) >= 1,
        f"a batch to {MAX_BATCH}": params.batch <= MAX_BATCH,
        f"cells to {MAX_GRID_CELLS}": cells <= MAX_GRID_CELLS,
        "no more patches than cells": kernel not in (launch.RESIZE_SCORES, launch.RANK) or params.k <= cells,
        f"k from {NEIGHBOURS}": kernel != launch.FILL or params.k >= NEIGHBOURS,
    }
    for what, holds in facts.items():
        if not holds:
            raise DeviceFault(f"{kernel}: it takes {what}, not {extents}")
    spans = {name: (address, address + size) for name, address, size in touched(kernel, params)}
    for name, (start, end) in spans.items():
        if start % 4 if name not in ("patches", "kept_positions", "positions", "lowres") else start % 2:
            raise DeviceFault(f"{kernel}: {name} is not aligned")
        for other, (first, last) in spans.items():
            if name in OUTPUTS[kernel] and other != name and start < last and first < end:
                raise DeviceFault(f"{kernel}: its output {name} lies over {other}")


class HostBound:
    """A network of the host, bound to arrays in the device's memory."""

    def __init__(self, engine: HostEngine, batch: int, k: int, addresses: dict[str, int]) -> None:
        self._engine = engine
        self._arrays: dict[str, Any] = {}
        self._ranges: list[tuple[str, int, int]] = []
        for name, spec in (engine.inputs | engine.outputs).items():
            shape, size = shape_of(spec, batch, k), bytes_of(spec, batch, k)
            memory = (ctypes.c_uint8 * size).from_address(addresses[name])
            self._arrays[name] = np.frombuffer(memory, spec.host_type).reshape(shape)
            self._ranges.append((name, addresses[name], size))
        self.capturable = False  # before the first pass it may still allocate
        self.closed = False

    def enqueue(self, stream: int) -> None:
        if self.closed:
            raise DeviceFault("a closed network was enqueued")
        self._engine.device.enqueue(self._engine.role, tuple(self._ranges), self._run, stream)

    def _run(self) -> None:
        if self.closed:
            raise DeviceFault("a graph outlived its network")
        for name, address, size in self._ranges:
            self._engine.device._check_range(self._engine.device.memory, address, size, name)
        found = self._engine.network.run({name: self._arrays[name] for name in self._engine.inputs})
        for name, value in found.items():
            self._arrays[name][...] = value
        self.capturable = True

    def check_capturable(self, stream: int) -> None:
        if not self.capturable:
            raise DeviceFault("captured before a first pass was done")

    def close(self) -> None:
        self._engine.open_contexts.remove(self)
        self.closed = True


class HostEngine(DeviceEngine):
    """A CPU engine as a network on the device. Closing it leaves the CPU engine to its owner."""

    def __init__(self, device: HostDevice, network: Engine, max_k: int = 1 << 30) -> None:
        self.device, self.network, self.max_k = device, network, max_k
        self.role, self.inputs, self.outputs = network.role, network.inputs, network.outputs
        self.open_contexts: list[HostBound] = []

    def bind(self, batch: int, k: int, addresses: Any) -> HostBound:
        self.device._refuse_in_capture("bind")
        if k > self.max_k:
            raise SaccadeError(f"{self.role}: k {k} is beyond the {self.max_k} that the engine was built for")
        self.open_contexts.append(HostBound(self, batch, k, addresses))
        return self.open_contexts[-1]

    def _run(self, feed: Any) -> dict[str, np.ndarray]:
        return self.network.run(feed)

    def _close(self) -> None:
        if self.open_contexts:
            raise DeviceFault(f"{self.role} was closed before its contexts")
