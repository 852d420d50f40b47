"""Frames in flight on a GPU: given to streams in order, waited for, and the scores of each looked at once."""
from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast

import numpy as np

from saccade.bundle import Model
from saccade.engines.device_engine import DeviceEngine, rounded
from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime.device import Device
from saccade.runtime.device_arrays import DeviceImage, GuestStream, follow
from saccade.runtime.gpu_batch import Batch
from saccade.runtime.gpu_frame import Frame, Networks, Shape
from saccade.runtime.gpu_frames import Frames, uploaded
from saccade.runtime.gpu_slot import Slot
from saccade.runtime.pipeline import Clock
from saccade.runtime.reference import not_finite

SLOTS = 2  # frames in flight in a stream of frames: one is uploaded while the other runs


class InFlight(NamedTuple):
    """A frame that a stream has been given."""

    slot: Slot
    frame: Frame
    clock: Clock
    start: int  # nanoseconds
    on_device: bool  # its images, and so its results


class FramesInFlight:
    """The streams of a pipeline and what they have been given. One thread at a time, with the device's context current."""

    def __init__(
        self,
        device: Device,
        model: Model,
        engines: Mapping[str, DeviceEngine],
        table: np.ndarray,
        positions_on: Callable[[tuple[int, int]], np.ndarray],
        *,
        graphs: bool,
    ) -> None:
        self._device, self._graphs = device, graphs
        self._slots: list[Slot] = []
        self._guests: weakref.WeakSet[GuestStream] = weakref.WeakSet()
        with contextlib.ExitStack() as undo:
            self.stream, self._uploads = (_new_stream(device, undo) for _ in range(2))
            for _ in range(SLOTS):
                undo.callback(self._new_slot().close)
            gather_type = engines["extractor"].inputs["patches"].dtype
            tables = [uploaded(device, each, self.stream) for each in (table, rounded(table, gather_type))]
            undo.pop_all()
        self._free_slots, self._last = deque(self._slots), self._slots[0]
        self._networks = Networks(device, model, engines, *tables)
        self.frames = Frames(self._networks, positions_on, self.stream, self.drain)

    def submit(
        self, shape: Shape, batch: Batch, stream: int, clock: Clock, given: Mapping[str, np.ndarray]
    ) -> InFlight:
        """Give a frame to a stream; `given` are the arrays that replace the selector's in an extraction.

        Where the memory for it is not to be had, the frames kept for later calls make room.
        """
        try:
            return self._submit(shape, batch, stream, clock, given)
        except OutOfMemoryError:
            if not self.frames.make_room():
                raise
        return self._submit(shape, batch, stream, clock, given)

    def _submit(
        self, shape: Shape, batch: Batch, stream: int, clock: Clock, given: Mapping[str, np.ndarray]
    ) -> InFlight:
        frame = self.frames.of(shape)
        slot = self._free_slots.popleft() if self._free_slots else self._new_slot()
        try:
            slot.wait()
            _refuse_unseen([slot])
            self._device.wait(stream, self._last.done)  # frames share arrays and their engines' memory, on whatever stream
            self._wait_for_reader(frame, stream)
            with clock.stage("upload"):
                images = self._on_device(batch, slot, stream)
                slot.write_views(frame, images, stream)
                slot.images = images
                for name, array in given.items():
                    slot.write(frame, name, array, stream)
            start = time.perf_counter_ns()
            if self._graphs and frame.graph is None:
                follow(self._device, self.stream, stream)
                frame.prepare(self.stream)
            frame.run(stream)
            slot.fetch(frame, frame.place("status").nbytes if batch.on_device else frame.result_bytes, stream)
            self._device.record(slot.done, stream)
            slot.unseen = None if shape.kind == "extract" else frame
            self._last = slot
        except BaseException:
            with contextlib.suppress(SaccadeError):  # nothing may still be reading what the next frame writes
                self._device.synchronize(self._uploads)
                self._device.synchronize(stream)
            if self._graphs and frame.graph is None:
                self.frames.forget(shape)
            self._free_slots.append(slot)
            raise
        if batch.on_device:  # nothing of the frame is fetched later
            self._free_slots.append(slot)
        return InFlight(slot, frame, clock, start, batch.on_device)

    def _new_slot(self) -> Slot:
        """Return one more slot: a stream of frames holds the others while its consumer makes a call."""
        self._slots.append(Slot(self._device))
        return self._slots[-1]

    def _wait_for_reader(self, frame: Frame, stream: int) -> None:
        """Let a stream wait until the guest has read what a frame gave it last, and is to overwrite now."""
        reader = frame.reader
        if reader is not None and not reader.done and reader.handle != stream:
            self._device.check_stream(reader.handle)
            follow(self._device, stream, reader.handle)
        frame.reader = None

    def _on_device(self, batch: Batch, slot: Slot, stream: int) -> list[DeviceImage]:
        if batch.on_device:
            return cast(list[DeviceImage], batch.images)
        images = slot.upload(cast(list[np.ndarray], batch.images), self._uploads)
        self._device.wait(stream, slot.copied)
        return images

    def guest(self, stream: object) -> GuestStream:
        """Return a guest's stream, if it can be used."""
        found = GuestStream(stream)
        self._device.check_stream(found.handle)
        self._guests.add(found)
        return found

    def finish(self, flown: InFlight) -> None:
        """Wait for a frame and refuse scores that are not finite, as the chain on a CPU does."""
        slot, frame, clock, start, on_device = flown
        slot.wait()
        clock.timings_ms["gpu"] = (time.perf_counter_ns() - start) / 1e6
        unseen, slot.unseen = slot.unseen, None
        if unseen is not None and slot.array(frame, "status").any():
            bad = np.flatnonzero(slot.array(frame, "status"))[0]
            # In a stream of frames the next one may be writing to the device already.
            maps = frame.array("raw_score_map").numpy() if on_device else slot.array(frame, "raw_score_map")
            raise not_finite(maps[bad])

    def results(self, flown: InFlight) -> dict[str, np.ndarray]:
        """Wait for a frame of images on the host and return copies of its results; its slot is free then."""
        slot, frame = flown.slot, flown.frame
        try:
            self.finish(flown)
            found = {name: slot.array(frame, name) for name in frame.results if name != "status"}
            return {name: array.astype(np.int32 if name == "indices" else np.float32) for name, array in found.items()}
        finally:
            self._free_slots.append(slot)

    def abandon(self, flown: InFlight) -> None:
        """Give up a frame whose results nobody wants any more; who takes its slot next waits for it."""
        flown.slot.unseen = None
        self._free_slots.append(flown.slot)

    def wait(self) -> None:
        """Wait for all frames and for all that guests' streams were given, and refuse scores that nobody will look at.

        What is in flight in a stream of frames keeps its scores for the one who takes it.
        """
        self.drain()
        guests = [guest for guest in self._guests if not guest.done]
        for handle in {guest.handle for guest in guests}:
            self._device.synchronize(handle)
        for guest in guests:
            guest.let_go()
        _refuse_unseen(self._free_slots)

    def drain(self) -> None:
        """Wait for every frame."""
        for slot in self._slots:
            slot.wait()

    def close(self) -> None:
        """Wait for what is in flight and free everything but the memory of arrays given out."""
        with contextlib.ExitStack() as stack:  # each also where another fails
            stack.callback(self._networks.free)
            stack.callback(self._device.destroy_stream, self.stream)
            stack.callback(self._device.destroy_stream, self._uploads)
            for slot in self._slots:
                stack.callback(slot.close)
            stack.callback(self.frames.close)
            stack.callback(self.drain)


def _new_stream(device: Device, undo: contextlib.ExitStack) -> int:
    stream = device.create_stream()
    undo.callback(device.destroy_stream, stream)
    return stream


def _refuse_unseen(slots: Iterable[Slot]) -> None:
    """Look at the scores of frames that are done and given out, each once, and refuse those that were not finite."""
    bad = False
    for slot in slots:
        frame, slot.unseen = slot.unseen, None
        bad |= frame is not None and bool(slot.array(frame, "status").any())
    if bad:
        raise SaccadeError(
            "an earlier frame's score map holds NaN or infinity: the selector overflowed; "
            "run it in fp32 or export the bundle again"
        )
