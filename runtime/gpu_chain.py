"""The chain on a GPU: image in, features out, nothing on the host in between, and one CUDA graph launch a frame."""
from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from saccade.bundle import Bundle
from saccade.engines.device_engine import DeviceEngine
from saccade.engines.store import Receipt
from saccade.errors import SaccadeError
from saccade.runtime.budget import Budget, buckets
from saccade.runtime.chain import Look, Output, Pipeline
from saccade.runtime.device import LEGACY_STREAM, Device
from saccade.runtime.device_arrays import DeviceArray, GuestStream, OnDevice, follow, is_on_device
from saccade.runtime.gpu_batch import Batch, device_batch, listed, stacked
from saccade.runtime.gpu_frame import Frame, Shape, check_types
from saccade.runtime.gpu_frames import uploaded
from saccade.runtime.gpu_in_flight import SLOTS, FramesInFlight, InFlight
from saccade.runtime.gpu_output import DeviceLook, DeviceOutput
from saccade.runtime.images import Fit, ImageLike
from saccade.runtime.kept import checked_k
from saccade.runtime.pipeline import Clock, check_frames
from saccade.runtime.reference import NEIGHBOURS

ON_THE_HOST = "a stream takes frames on the host; call the pipeline for those on the device"


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
        self.device = device
        self.budget = Budget(clock)
        self._busy, self._closed = threading.Lock(), False
        with device.current():
            self._flight = FramesInFlight(device, bundle.model, engines, self._table, self._positions_on, graphs=graphs)
        self.frames = self._flight.frames

    @overload
    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
        budget_ms: float | None = None,
        stream: object = None,
    ) -> Output: ...

    @overload
    def __call__(
        self,
        images: OnDevice | Sequence[OnDevice],
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
        budget_ms: float | None = None,
        stream: object = None,
    ) -> DeviceOutput: ...

    def __call__(
        self,
        images: object,
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
        budget_ms: float | None = None,
        stream: object = None,
    ) -> Output | DeviceOutput:
        """Run the chain on one image or several; the options of `Pipeline` and two more.

        `budget_ms` chooses k: the largest whose frame took no longer when it was measured, once for each kind of frame.
        `stream` is where to run, a handle or a guest's stream object. Images on the device are then waited for by that
        stream alone and the call returns before the frame is done: `wait` says whether its scores were finite. Where it is
        a plain handle, the stream has to stay until that `wait`: the next frame waits there for what reads this one.
        """
        with self._entered():
            guest = None if stream is None else self._flight.guest(stream)
            handle = self._flight.stream if guest is None else guest.handle
            clock = Clock()
            batch = self._batch(images, size, fit, clock, handle)
            dense = dense or self.bundle.manifest.task == "segment"
            self._check_dense(dense)
            if budget_ms is None:
                kept = self.kept(batch.grid, k, k_ratio, dense)
            else:
                kept = self._within(budget_ms, k, k_ratio, batch, dense, handle)
            flown = self._submit(Shape("run", len(batch.images), kept, batch.grid, dense), batch, handle, clock)
            if not batch.on_device:
                return self._output(flown)
            if guest is None:
                self._flight.finish(flown)
            flown.frame.reader = guest or GuestStream(LEGACY_STREAM)
            return DeviceOutput(**_device_arrays(flown.frame, guest), timings_ms=clock.timings_ms)

    @overload
    def look(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
    ) -> Look: ...

    @overload
    def look(
        self, images: OnDevice | Sequence[OnDevice], *, size: int | tuple[int, int] | None = None, fit: Fit = "squash"
    ) -> DeviceLook: ...

    def look(
        self, images: object, *, size: int | tuple[int, int] | None = None, fit: Fit = "squash"
    ) -> Look | DeviceLook:
        """Run the selector alone and return its map, resized to the grid, and its prefix rows."""
        with self._entered():
            clock, stream = Clock(), self._flight.stream
            batch = self._batch(images, size, fit, clock, stream)
            flown = self._submit(Shape("look", len(batch.images), 1, batch.grid, False), batch, stream, clock)
            if not batch.on_device:
                return Look(**self._flight.results(flown), timings_ms=clock.timings_ms)
            self._flight.finish(flown)
            flown.frame.reader = GuestStream(LEGACY_STREAM)
            return DeviceLook(**_device_arrays(flown.frame, None), timings_ms=clock.timings_ms)

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

        def submitted(image: ImageLike) -> InFlight:
            with self._entered():
                clock, stream = Clock(), self._flight.stream
                batch = self._batch(image, size, fit, clock, stream)
                if batch.on_device:
                    raise SaccadeError(ON_THE_HOST)
                kept = self.kept(batch.grid, k, k_ratio, dense)
                return self._submit(Shape("run", len(batch.images), kept, batch.grid, dense), batch, stream, clock)

        return self._in_order(frames, submitted)

    def _in_order(self, frames: Iterable[ImageLike], submitted: Callable[[ImageLike], InFlight]) -> Iterator[Output]:
        """Yield each frame's output; what a frame raises is raised in its turn, after those before it are given out."""
        pending: deque[InFlight] = deque()
        failed: Exception | None = None
        try:
            for image in frames:
                try:
                    pending.append(submitted(image))
                except Exception as error:
                    failed = error
                    break
                if len(pending) == SLOTS:
                    yield self._collected(pending.popleft())
            while pending:
                yield self._collected(pending.popleft())
            if failed is not None:
                raise failed
        finally:
            failed = None  # its traceback leads back here
            for each in pending:
                self._flight.abandon(each)

    def _collected(self, flown: InFlight) -> Output:
        with self._entered():
            return self._output(flown)

    def upload(self, images: Sequence[np.ndarray] | np.ndarray) -> DeviceArray:
        """Return uint8 images (H, W, 3) of one size on the device, (B, H, W, 3), to be given to calls."""
        array = stacked(images)
        with self._entered():
            memory = uploaded(self.device, array, self._flight.stream)
            return DeviceArray(self.device, memory, 0, array.shape, array.dtype.str)

    def wait(self) -> None:
        """Wait for all frames, and for all else that the streams of calls were given; those may be destroyed then.

        Raises SaccadeError where the scores of a frame on a guest's stream were not finite. A frame of an open `stream`
        keeps that for its own turn.
        """
        with self._entered():
            self._flight.wait()

    def close(self) -> None:
        """Wait for what is in flight and free everything but the memory of arrays given out."""
        with self._busy, self.device.current():
            if self._closed:
                return
            self._closed = True
            with contextlib.ExitStack() as stack:  # the first also where the second fails
                stack.callback(super().close)
                stack.callback(self._flight.close)

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

    def _submit(
        self,
        shape: Shape,
        batch: Batch,
        stream: int,
        clock: Clock,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> InFlight:
        """Give a frame to a stream, if the engines were built for its shape: else others would make room for nothing."""
        for name, asked in (("batch", shape.batch), ("k", shape.k)):
            most = int(self.receipt.conditions.get(f"max_{name}", asked))
            if asked > most:
                what = f"{name} {asked} is beyond the {most} that the engines were built for"
                raise SaccadeError(f"{what}; build them with --max-{name} {asked}, or give less")
        return self._flight.submit(shape, batch, stream, clock, given or {})

    def _output(self, flown: InFlight) -> Output:
        return Output(**self._flight.results(flown), timings_ms=flown.clock.timings_ms)

    def _extract(
        self, pixels: list[np.ndarray], look: Look, indices: np.ndarray, dense: bool, clock: Clock
    ) -> Output:
        with self._entered():
            batch = Batch(pixels, False, self.grid_of(pixels[0]))
            shape = Shape("extract", len(pixels), indices.shape[1], batch.grid, dense)
            prefix_type = self.engines["extractor"].inputs["prefix"].dtype
            given = {"indices": indices, "prefix": look.prefix.astype(prefix_type, copy=False)}
            found = self._flight.results(self._submit(shape, batch, self._flight.stream, clock, given))
            return Output(look.score_map, look.prefix, look.raw_score_map, clock.timings_ms, indices, **found)

    # ---- k from a budget

    def _within(
        self, budget_ms: float, k: int | None, k_ratio: float | None, batch: Batch, dense: bool, stream: int
    ) -> int:
        """Return the k that a budget buys; every bucket of this batch and grid is measured first, once.

        The frames that are measured run on the pipeline's own stream, after the images that `stream` waits for.
        """
        if k is not None or k_ratio is not None:
            raise SaccadeError("give k, k_ratio or budget_ms, not several")
        cells = batch.grid[0] * batch.grid[1]
        most = int(self.receipt.conditions.get("max_k", cells))
        offered = buckets(cells, NEIGHBOURS if dense else 1, most)
        kind = (len(batch.images), batch.grid, dense, batch.on_device)
        own = self._flight.stream
        follow(self.device, own, stream)

        def frame(k: int) -> None:
            flown = self._submit(Shape("run", len(batch.images), k, batch.grid, dense), batch, own, Clock())
            if batch.on_device:
                self._flight.finish(flown)
            else:
                self._output(flown)

        return checked_k(self.budget.k(budget_ms, kind, offered, frame), cells, dense=dense)


def _device_arrays(frame: Frame, guest: GuestStream | None) -> dict[str, Any]:
    """Return a frame's results where they are, written by the guest's stream, or there already."""
    return {name: frame.array(name, guest) for name in frame.results if name != "status"}
