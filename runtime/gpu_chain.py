"""The chain on a GPU: image in, features out, nothing on the host in between, and one CUDA graph launch a frame."""
from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from saccade.bundle import Bundle
from saccade.engines.device_engine import DeviceEngine, rounded
from saccade.engines.store import Receipt
from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime.budget import Budget, buckets
from saccade.runtime.chain import Look, Output, Pipeline
from saccade.runtime.device import LEGACY_STREAM, Device
from saccade.runtime.device_arrays import DeviceArray, DeviceImage, follow, is_on_device, stream_handle
from saccade.runtime.gpu_batch import Batch, device_batch, listed, stacked
from saccade.runtime.gpu_frame import Frame, Networks, Shape, check_types
from saccade.runtime.gpu_frames import Frames, uploaded
from saccade.runtime.gpu_slot import Slot
from saccade.runtime.images import Fit, ImageLike
from saccade.runtime.pipeline import Clock, check_frames
from saccade.runtime.reference import NEIGHBOURS, not_finite

ON_THE_HOST = "a stream takes frames on the host; call the pipeline for those on the device"
SLOTS = 2  # frames under way in a stream of frames: one is uploaded while the other runs


class UnderWay(NamedTuple):
    """A frame that a stream has been given."""

    slot: Slot
    frame: Frame
    clock: Clock
    start: int  # nanoseconds


class GpuPipeline(Pipeline):
    """A bundle's networks on one GPU, called as `Pipeline` is. One thread at a time; `saccade.load` again for another.

    Images on the host give NumPy arrays. Images on the device, anything with `__cuda_array_interface__` or DLPack, give
    `DeviceArray`s in the pipeline's own memory, which the next call of the same shapes overwrites; they are not resized.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, DeviceEngine],
        receipt: Receipt,
        device: Device,
        *,
        graphs: bool = True,
        clock: Callable[[], float] = time.perf_counter_ns,
    ) -> None:
        super().__init__(bundle, dict(engines), receipt)
        check_types(engines)
        self.device, self._graphs = device, graphs
        self.budget = Budget(clock)
        self._busy, self._closed = threading.Lock(), False
        with device.current(), contextlib.ExitStack() as undo:
            self._stream, self._uploads = (_new_stream(device, undo) for _ in range(2))
            self._slots: list[Slot] = []
            for _ in range(SLOTS):
                undo.callback(self._new_slot().close)
            table = uploaded(device, self._table, self._stream)
            gather_type = engines["extractor"].inputs["patches"].dtype
            gather_table = uploaded(device, rounded(self._table, gather_type), self._stream)
            undo.pop_all()
        self._free_slots, self._last = deque(self._slots), self._slots[0]
        networks = Networks(device, bundle.model, engines, table, gather_table)
        self.frames = Frames(networks, self._positions_on, self._stream, self._drain)

    def __call__(
        self,
        images: Any,
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
        budget_ms: float | None = None,
        stream: object = None,
    ) -> Output:
        """Run the chain on one image or several; the options of `Pipeline` and two more.

        `budget_ms` chooses k: the largest whose frame took no longer when it was measured, once for each batch and grid.
        `stream` is where to run, a handle or a guest's stream object. Images on the device are then waited for by that
        stream alone and the call returns before the frame is done: `wait` says whether its scores were finite.
        """
        with self._entered():
            handle = self._stream if stream is None else self._foreign(stream)
            clock = Clock()
            batch = self._batch(images, size, fit, clock, handle)
            dense = dense or self.bundle.manifest.task == "segment"
            self._check_dense(dense)
            if budget_ms is None:
                kept = self.kept(batch.grid, k, k_ratio, dense)
            else:
                kept = self._within(budget_ms, k, k_ratio, batch, dense)
            under_way = self._submit(Shape("run", len(batch.images), kept, batch.grid, dense), batch, handle, clock)
            if not batch.on_device:
                return self._output(under_way)
            if stream is None:
                self._finish(under_way)
                return self._device_output(under_way.frame, clock, None)
            return self._device_output(under_way.frame, clock, handle)

    def look(
        self, images: Any, *, size: int | tuple[int, int] | None = None, fit: Fit = "squash"
    ) -> Look:
        """Run the selector alone and return its map, resized to the grid, and its prefix rows."""
        with self._entered():
            clock = Clock()
            batch = self._batch(images, size, fit, clock, self._stream)
            under_way = self._submit(Shape("look", len(batch.images), 1, batch.grid, False), batch, self._stream, clock)
            names = ("score_map", "prefix", "raw_score_map")
            if batch.on_device:
                self._finish(under_way)
                arrays = {name: self._device_array(under_way.frame, name, None) for name in names}
            else:
                arrays = self._host_arrays(under_way, names)
            return Look(**arrays, timings_ms=clock.timings_ms)

    def stream(
        self,
        frames: Iterable[ImageLike],
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
    ) -> Iterator[Output]:
        """Yield the output of each frame in order; the next frame is fitted and uploaded while this one runs.

        Frames lie on the host: those on the device have nothing to upload, call the pipeline with `stream=` for them.
        """
        check_frames(frames)
        if is_on_device(frames):
            raise SaccadeError(ON_THE_HOST)
        dense = dense or self.bundle.manifest.task == "segment"
        self._check_dense(dense)

        def submitted(image: ImageLike) -> UnderWay:
            with self._entered():
                clock = Clock()
                batch = self._batch(image, size, fit, clock, self._stream)
                if batch.on_device:
                    raise SaccadeError(ON_THE_HOST)
                kept = self.kept(batch.grid, k, k_ratio, dense)
                return self._submit(Shape("run", len(batch.images), kept, batch.grid, dense), batch, self._stream, clock)

        return self._in_order(frames, submitted)

    def _in_order(self, frames: Iterable[ImageLike], submitted: Callable[[ImageLike], UnderWay]) -> Iterator[Output]:
        pending: deque[UnderWay] = deque()
        try:
            for image in frames:
                pending.append(submitted(image))
                if len(pending) == SLOTS:
                    yield self._collected(pending.popleft())
            while pending:
                yield self._collected(pending.popleft())
        finally:
            for each in pending:  # nobody wants them any more; who takes the slot next waits for its frame
                each.slot.unchecked = None
                self._free_slots.append(each.slot)

    def _collected(self, under_way: UnderWay) -> Output:
        with self._entered():
            return self._output(under_way)

    def upload(self, images: Sequence[np.ndarray] | np.ndarray) -> DeviceArray:
        """Return uint8 images (H, W, 3) of one size on the device, (B, H, W, 3), to be given to calls."""
        array = stacked(images)
        with self._entered():
            memory = uploaded(self.device, array, self._stream)
            return DeviceArray(self.device, memory, 0, array.shape, array.dtype.str)

    def wait(self) -> None:
        """Wait for all frames given to streams so far; raises SaccadeError where one's scores were not finite."""
        with self._entered():
            for slot in self._slots:
                self._settle(slot)

    def close(self) -> None:
        """Wait for what is under way and free everything but the memory of arrays given out."""
        with self._busy, self.device.current():
            if self._closed:
                return
            self._closed = True
            with contextlib.ExitStack() as stack:  # each also where another fails
                stack.callback(super().close)
                stack.callback(self.device.destroy_stream, self._stream)
                stack.callback(self.device.destroy_stream, self._uploads)
                for slot in self._slots:
                    stack.callback(slot.close)
                stack.callback(self.frames.close)
                stack.callback(self._drain)

    def _drain(self) -> None:
        """Wait for everything under way."""
        for slot in self._slots:
            slot.wait()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the pipeline for this thread, with the device's context current."""
        if not self._busy.acquire(blocking=False):
            raise SaccadeError("another thread is running this pipeline; load the bundle once per thread")
        try:
            if self._closed:
                raise SaccadeError("the pipeline is closed; load the bundle again")
            with self.device.current():
                yield
        finally:
            self._busy.release()

    def _foreign(self, stream: object) -> int:
        """Return the handle of a guest's stream, if it can be used."""
        handle = stream_handle(stream) or LEGACY_STREAM
        self.device.check_stream(handle)
        return handle

    def _batch(
        self, images: Any, size: int | tuple[int, int] | None, fit: Fit, clock: Clock, stream: int
    ) -> Batch:
        """Return the images of a call where they lie; those on the host are decoded and fitted."""
        given, on_device = listed(images)
        if on_device:
            target = self._target(size, fit)
            return device_batch(given, target, fit, self.bundle.model.patch, self.device, stream)
        pixels = self.pixels(given, size, fit, clock)
        return Batch(pixels, False, self.grid_of(pixels[0]))

    # ---- a frame

    def _submit(
        self,
        shape: Shape,
        batch: Batch,
        stream: int,
        clock: Clock,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> UnderWay:
        """Give a frame to a stream; `given` are the arrays that replace the selector's in an extraction.

        Where the memory for it is not to be had, the frames kept for later calls make room.
        """
        try:
            return self._give(shape, batch, stream, clock, given or {})
        except OutOfMemoryError:
            if not self.frames.make_room():
                raise
        return self._give(shape, batch, stream, clock, given or {})

    def _give(self, shape: Shape, batch: Batch, stream: int, clock: Clock, given: Mapping[str, np.ndarray]) -> UnderWay:
        frame = self.frames.of(shape)
        slot = self._free_slots.popleft() if self._free_slots else self._new_slot()
        try:
            self._settle(slot)
            self.device.wait(stream, self._last.done)  # frames share the arrays of their shape, whatever stream they are on
            with clock.stage("upload"):
                images = self._on_device(batch, slot, stream)
                slot.show(frame, images, stream)
                slot.images = images
                for name, array in given.items():
                    slot.give(frame, name, array, stream)
            start = time.perf_counter_ns()
            if self._graphs and frame.graph is None:
                follow(self.device, self._stream, stream)
                frame.prepare(self._stream)
            frame.run(stream)
            slot.fetch(frame, frame.result_bytes if not batch.on_device else frame.place("status").nbytes, stream)
            self.device.record(slot.done, stream)
            slot.unchecked = None if shape.kind == "extract" else frame
            self._last = slot
        except BaseException:
            with contextlib.suppress(SaccadeError):  # nothing may still be reading what the next frame writes
                self.device.synchronize(self._uploads)
                self.device.synchronize(stream)
            if self._graphs and frame.graph is None:
                self.frames.forget(shape)
            self._free_slots.append(slot)
            raise
        if batch.on_device:  # nothing of the frame is fetched later
            self._free_slots.append(slot)
        return UnderWay(slot, frame, clock, start)

    def _new_slot(self) -> Slot:
        """Return one more slot: a stream of frames holds the others while its consumer makes a call."""
        self._slots.append(Slot(self.device))
        return self._slots[-1]

    def _on_device(self, batch: Batch, slot: Slot, stream: int) -> list[DeviceImage]:
        if batch.on_device:
            return cast(list[DeviceImage], batch.images)
        images = slot.upload(cast(list[np.ndarray], batch.images), self._uploads)
        self.device.wait(stream, slot.copied)
        return images

    def _settle(self, slot: Slot) -> None:
        """Wait for the frame that last used a slot, and refuse one whose scores nobody has looked at."""
        slot.wait()
        frame, slot.unchecked = slot.unchecked, None
        if frame is not None and slot.array(frame, "status").any():
            raise SaccadeError(
                "an earlier frame's score map holds NaN or infinity: the selector overflowed; "
                "run it in fp32 or export the bundle again"
            )

    def _finish(self, under_way: UnderWay) -> None:
        """Wait for a frame and refuse scores that are not finite, as the chain on a CPU does."""
        slot, frame, clock, start = under_way
        slot.wait()
        clock.timings_ms["gpu"] = (time.perf_counter_ns() - start) / 1e6
        checked, slot.unchecked = slot.unchecked, None
        if checked is None:
            return
        bad = np.flatnonzero(slot.array(frame, "status"))
        if len(bad):
            raise not_finite(self._device_array(frame, "raw_score_map", None).numpy()[bad[0]])

    def _host_arrays(self, under_way: UnderWay, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Wait for a frame and return copies of its results; its slot is free then."""
        try:
            self._finish(under_way)
            found = {name: under_way.slot.array(under_way.frame, name) for name in names}
            return {name: array.astype(np.int32 if name == "indices" else np.float32) for name, array in found.items()}
        finally:
            self._free_slots.append(under_way.slot)

    def _output(self, under_way: UnderWay) -> Output:
        names = [name for name in under_way.frame.results if name != "status"]
        return Output(**self._host_arrays(under_way, names), timings_ms=under_way.clock.timings_ms)

    def _device_output(self, frame: Frame, clock: Clock, stream: int | None) -> Output:
        """Return the results where they are; the dataclass is the CPU chain's, its arrays are `DeviceArray`s."""
        arrays = {name: self._device_array(frame, name, stream) for name in frame.results if name != "status"}
        return Output(**arrays, timings_ms=clock.timings_ms)

    def _device_array(self, frame: Frame, name: str, stream: int | None) -> Any:
        place = frame.results[name]
        return DeviceArray(self.device, frame.memory, place.offset, place.shape, place.dtype, stream)

    def _extract(
        self, pixels: list[np.ndarray], look: Look, indices: np.ndarray, dense: bool, clock: Clock
    ) -> Output:
        with self._entered():
            batch = Batch(pixels, False, self.grid_of(pixels[0]))
            shape = Shape("extract", len(pixels), indices.shape[1], batch.grid, dense)
            prefix_type = self.engines["extractor"].inputs["prefix"].dtype
            given = {"indices": indices, "prefix": look.prefix.astype(prefix_type, copy=False)}
            under_way = self._submit(shape, batch, self._stream, clock, given)
            names = [name for name in under_way.frame.results if name in ("cls", "logits", "tokens", "dense")]
            found = self._host_arrays(under_way, names)
            return Output(look.score_map, look.prefix, look.raw_score_map, clock.timings_ms, indices, **found)

    # ---- k from a budget

    def _within(self, budget_ms: float, k: int | None, k_ratio: float | None, batch: Batch, dense: bool) -> int:
        """Return the k that a budget buys; every bucket of this batch and grid is measured first, once."""
        if k is not None or k_ratio is not None:
            raise SaccadeError("give k, k_ratio or budget_ms, not several")
        cells = batch.grid[0] * batch.grid[1]
        most = int(self.receipt.conditions.get("max_k", cells))
        offered = buckets(cells, NEIGHBOURS if dense else 1, most)
        kind = (len(batch.images), batch.grid, dense, batch.on_device)

        def frame(k: int) -> None:
            under_way = self._submit(Shape("run", len(batch.images), k, batch.grid, dense), batch, self._stream, Clock())
            if batch.on_device:
                self._finish(under_way)
            else:
                self._output(under_way)

        return self.budget.k(budget_ms, kind, offered, frame)


def _new_stream(device: Device, undo: contextlib.ExitStack) -> int:
    stream = device.create_stream()
    undo.callback(device.destroy_stream, stream)
    return stream
