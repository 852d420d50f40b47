"""Where one frame in flight meets the host: pinned memory for what goes in and comes out, and when it is done.

A pipeline has two, so that the next frame's pixels are uploaded while this one runs, and more only where a stream of frames
holds those and its consumer makes a call.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.runtime.device import Device, Memory, Pinned
from saccade.runtime.device_arrays import DeviceImage
from saccade.runtime.gpu_frame import Frame
from saccade.runtime.launch import ImageView


class Slot:
    """One frame's staging. Its memory only grows; it is free again once `done` has passed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.copied, self.done = device.create_event(), device.create_event()
        self._pinned: dict[str, Pinned] = {}
        self._pixels: Memory | None = None
        self.images: Sequence[DeviceImage] = ()  # those of a guest stay as long as the frame may read them
        self.unseen: Frame | None = None  # the frame whose status nobody has looked at yet

    def wait(self) -> None:
        """Wait until the frame is done."""
        self._device.synchronize_event(self.done)

    def pinned(self, use: str, size: int) -> Pinned:
        """Return pinned memory of at least this size, the same for each use."""
        known = self._pinned.get(use)
        if known is None or len(known.bytes) < size:
            known = self._pinned[use] = Pinned(self._device, size)
        return known

    def upload(self, images: Sequence[np.ndarray], stream: int) -> list[DeviceImage]:
        """Copy images of one size to the device on `stream`, and let `copied` stand for that."""
        height, width = images[0].shape[:2]
        size = height * width * 3
        staging = self.pinned("pixels", size * len(images))
        for index, image in enumerate(images):
            staging.bytes[index * size : (index + 1) * size].reshape(height, width, 3)[...] = image
        if self._pixels is None or self._pixels.size < size * len(images):
            self._pixels = Memory(self._device, size * len(images))
        self._device.copy_in(self._pixels.address, staging.address, size * len(images), stream)
        self._device.record(self.copied, stream)
        start = self._pixels.address
        return [DeviceImage(start + i * size, 3 * width, height, width, False, self._pixels) for i in range(len(images))]

    def write_views(self, frame: Frame, images: Sequence[DeviceImage], stream: int) -> None:
        """Tell the frame's kernels where the images lie, unless they lie where the last ones did."""
        views = b"".join(
            bytes(ImageView(each.pixels, each.row_stride, each.height, each.width, each.bgr)) for each in images
        )
        if views != frame.seen_views:
            self._copy_in(frame, "views", views, stream)
            frame.seen_views = views

    def write(self, frame: Frame, name: str, array: np.ndarray, stream: int) -> None:
        """Copy a host array into the frame's array of that name."""
        self._copy_in(frame, name, array.tobytes(), stream)

    def _copy_in(self, frame: Frame, name: str, content: bytes, stream: int) -> None:
        staging = self.pinned(name, len(content))
        staging.bytes[: len(content)] = np.frombuffer(content, np.uint8)
        self._device.copy_in(frame.address(name), staging.address, len(content), stream)

    def fetch(self, frame: Frame, size: int, stream: int) -> None:
        """Copy the first `size` bytes of a frame's results to the host."""
        self._device.copy_out(self.pinned("results", size).address, frame.memory.address, size, stream)

    def array(self, frame: Frame, name: str) -> np.ndarray:
        """Return one of the fetched results; it is overwritten by the next frame here."""
        place = frame.results[name]
        raw = self._pinned["results"].bytes[place.offset : place.offset + place.nbytes]
        return raw.view(place.dtype).reshape(place.shape)

    def close(self) -> None:
        """Free the memory and destroy the events; what is in flight must be done."""
        self._pinned.clear()
        self._pixels, self.images, self.unseen = None, (), None
        self._device.destroy_event(self.copied)
        self._device.destroy_event(self.done)
