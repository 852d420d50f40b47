"""One shape of frame on a GPU: its memory, the steps between and through both networks, and the CUDA graph of them.

Everything that a graph is captured with (buffers, position table, execution contexts) belongs to the frame and stays where
it is as long as the frame lives. What changes from frame to frame, the images' addresses, is read from device memory.
"""
from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from saccade.bundle import Model, host_type
from saccade.engines.device_engine import Bound, DeviceEngine, shape_of
from saccade.errors import SaccadeError
from saccade.runtime import launch
from saccade.runtime.device import Device, Memory
from saccade.runtime.device_arrays import DeviceArray, GuestStream
from saccade.runtime.launch import FillParams, GatherParams, ImageView, Params, PreprocessParams, SelectParams

ALIGNMENT = 256  # of each buffer, as cuMemAlloc aligns
VIEW_BYTES = ctypes.sizeof(ImageView)
Kind = Literal["run", "look", "extract"]
Step = Callable[[int], None]  # gives its work to a stream


class Shape(NamedTuple):
    """What a frame, and so a graph, is made for."""

    kind: Kind  # the whole chain, the selector alone, or the extractor on given cells
    batch: int
    k: int
    grid: tuple[int, int]
    dense: bool


class Place(NamedTuple):
    """Where an array lies in the frame's memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * np.dtype(host_type(self.dtype)).itemsize


class Layout:
    """Arrays side by side in one block."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.size = 0

    def add(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Append an array."""
        place = Place(self.size, shape, dtype)
        self.places[name] = place
        self.size += -(-place.nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Networks:
    """What all frames of a pipeline share."""

    device: Device
    model: Model
    engines: Mapping[str, DeviceEngine]
    table: Memory  # (3, 256) float32, what the preprocessing reads
    gather_table: Memory  # the same in the type of the extractor's inputs

    @property
    def lowres_type(self) -> str:
        """The type of the selector's input."""
        return self.engines["selector"].inputs["lowres"].dtype

    @property
    def patch_type(self) -> str:
        """The type of the extractor's inputs."""
        return self.engines["extractor"].inputs["patches"].dtype

    def free(self) -> None:
        """Free the tables; no frame may be left."""
        self.table.free()
        self.gather_table.free()


def check_types(engines: Mapping[str, DeviceEngine]) -> None:
    """Refuse tensors that the kernels cannot read or write as they are."""
    selector, extractor = engines["selector"], engines["extractor"]
    patches = extractor.inputs["patches"].dtype
    facts = [
        (selector.inputs["lowres"].dtype in launch.PREPROCESS, "lowres must be float32, float16 or bfloat16"),
        (patches in launch.GATHER, "patches must be float32, float16 or bfloat16"),
        (extractor.inputs["positions"].dtype == patches, "patches and positions must be of one type"),
        (selector.outputs["prefix"].dtype == extractor.inputs["prefix"].dtype, "both prefixes must be of one type"),
        (selector.outputs["prefix"].dtype != "bfloat16", "the prefix must be float32 or float16"),
        (selector.outputs["score_map"].dtype == "float32", "score_map must be float32"),
        (all(spec.dtype == "float32" for spec in extractor.outputs.values()), "the extractor's outputs must be float32"),
    ]
    for holds, what in facts:
        if not holds:
            raise SaccadeError(f"the graphs do not fit the CUDA kernels: {what}; convert the bundle again")


class Frame:
    """One shape's memory, steps and graph. Used by one thread at a time, with the device's context current."""

    def __init__(self, networks: Networks, shape: Shape, positions: Memory | None) -> None:
        self.shape, self._networks, self._device = shape, networks, networks.device
        self._positions = positions  # held: the graph reads it
        results, inner = _layouts(networks, shape)
        self.results, self.result_bytes = results.places, results.size
        start = {name: place._replace(offset=results.size + place.offset) for name, place in inner.places.items()}
        self._places = results.places | start
        self.memory = Memory(self._device, results.size + inner.size)
        self.graph: int | None = None
        self.seen_views = b""  # what was last copied to the views, in the order of the stream
        self.reader: GuestStream | None = None  # may still read the results, which it was given where they lie
        self._bound: list[Bound] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.steps = self._steps()
            undo.pop_all()

    def address(self, name: str) -> int:
        """Return where an array lies."""
        return self.memory.address + self._places[name].offset

    def place(self, name: str) -> Place:
        """Return an array's place."""
        return self._places[name]

    def array(self, name: str, writer: GuestStream | None = None) -> DeviceArray:
        """Return an array where it lies; `writer` is the stream to wait for, if it is not there already."""
        place = self._places[name]
        return DeviceArray(self._device, self.memory, place.offset, place.shape, place.dtype, writer)

    def enqueue(self, stream: int) -> None:
        """Give every step to a stream, one by one."""
        for _, step in self.steps:
            step(stream)

    def prepare(self, stream: int) -> None:
        """Run once, so that the networks have allocated and compiled what they need, and capture the graph.

        The images must lie where the views say. `stream` must be the pipeline's own: a default stream cannot be captured.
        """
        self.enqueue(stream)
        self._device.synchronize(stream)
        for bound in self._bound:
            bound.check_capturable(stream)
        self.graph = self._device.capture(self.enqueue, stream)

    def run(self, stream: int) -> None:
        """Give a frame to a stream: one graph launch, or each step where none was captured."""
        if self.graph is None:
            self.enqueue(stream)
        else:
            self._device.launch_graph(self.graph, stream)

    def close(self) -> None:
        """Destroy the graph, and then what it was captured with. The memory goes with the last array in it."""
        if self.graph is not None:
            self._device.destroy_graph(self.graph)
            self.graph = None
        while self._bound:
            self._bound.pop().close()

    def _steps(self) -> list[tuple[str, Step]]:
        kind, steps = self.shape.kind, []
        if kind != "extract":
            steps += [("preprocess", self._preprocess()), ("selector", self._network("selector")), *self._select()]
        if kind != "look":
            steps += [("gather", self._gather()), ("extractor", self._network("extractor"))]
            steps += [("fill", self._fill())] if self.shape.dense else []
        return steps

    def _kernel(self, name: str, params: Params, shape: launch.Launch) -> Step:
        device = self._device  # and not self: memory is to go with the last reference, not with the next collection
        return lambda stream: device.launch(name, params, shape, stream)

    def _network(self, role: str) -> Step:
        engine, shape = self._networks.engines[role], self.shape
        names = [*engine.inputs, *engine.outputs]
        bound = engine.bind(shape.batch, shape.k, {name: self.address(_buffer(role, name)) for name in names})
        self._bound.append(bound)
        return bound.enqueue

    def _preprocess(self) -> Step:
        networks = self._networks
        size, batch = networks.model.selector_size, self.shape.batch
        params = PreprocessParams(self.address("views"), networks.table.address, self.address("lowres"), batch, size)
        return self._kernel(launch.PREPROCESS[networks.lowres_type], params, params.launch)

    def _select(self) -> list[tuple[str, Step]]:
        arrays = [self.address(name) for name in ("raw_score_map", "score_map", "indices", "status")]
        size, shape = self._networks.model.map_size, self.shape
        params = SelectParams(*arrays, shape.batch, size, *shape.grid, shape.k)
        resize = self._kernel(launch.RESIZE_SCORES, params, params.launch)
        return [("resize_scores", resize), ("rank", self._kernel(launch.RANK, params, params.rank_launch))]

    def _gather(self) -> Step:
        assert self._positions is not None
        networks, shape, model = self._networks, self.shape, self._networks.model
        inputs = [self.address("views"), networks.gather_table.address, self._positions.address, self.address("indices")]
        outputs = [self.address("patches"), self.address("positions")]
        params = GatherParams(*inputs, *outputs, shape.batch, shape.k, model.patch, shape.grid[1], model.dim)
        return self._kernel(launch.GATHER[networks.patch_type], params, params.launch)

    def _fill(self) -> Step:
        shape, channels = self.shape, self.place("tokens").shape[2]
        arrays = [self.address(name) for name in ("tokens", "indices", "dense")]
        params = FillParams(*arrays, shape.batch, shape.k, channels, *shape.grid)
        return self._kernel(launch.FILL, params, params.launch)


def _buffer(role: str, tensor: str) -> str:
    """Return the buffer of a network's tensor: the selector's map is the raw one, before it is resized to the grid."""
    return "raw_score_map" if (role, tensor) == ("selector", "score_map") else tensor


def _layouts(networks: Networks, shape: Shape) -> tuple[Layout, Layout]:
    """Return what a call gives out, which one copy fetches, and the rest; only what this kind of frame writes or reads."""
    kind, batch, k, grid, dense = shape
    results, inner = Layout(), Layout()
    selector, extractor = networks.engines["selector"], networks.engines["extractor"]
    inner.add("views", (batch, VIEW_BYTES), "uint8")
    if kind != "extract":
        results.add("status", (batch,), "int32")  # first: it is fetched alone where the rest stays on the device
        results.add("score_map", (batch, *grid), "float32")
        for name, spec in selector.outputs.items():
            results.add(_buffer("selector", name), shape_of(spec, batch, k), spec.dtype)
        inner.add("lowres", shape_of(selector.inputs["lowres"], batch, k), networks.lowres_type)
    if kind == "extract":
        inner.add("prefix", shape_of(extractor.inputs["prefix"], batch, k), extractor.inputs["prefix"].dtype)
    (results if kind == "run" else inner).add("indices", (batch, k), "int32")
    if kind != "look":
        for name, spec in extractor.outputs.items():
            results.add(name, shape_of(spec, batch, k), spec.dtype)
        for name in ("patches", "positions"):
            inner.add(name, shape_of(extractor.inputs[name], batch, k), networks.patch_type)
    if dense:
        results.add("dense", (batch, results.places["tokens"].shape[2], *grid), "float32")
    return results, inner
