"""The frames of a pipeline, one for each shape it was called with lately, and the position tables they read."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from saccade.engines.device_engine import rounded
from saccade.runtime.device import Device, Memory, Pinned
from saccade.runtime.gpu_frame import Frame, Networks, Shape

MAX_FRAMES = 16  # shapes whose memory and graph are kept; the one used longest ago goes first
MAX_POSITION_BYTES = 256 << 20  # of position tables on the device; one at 2072 px is 67 MB


class Frames:
    """Makes frames, keeps the latest, and closes the others once nothing is in flight any more."""

    def __init__(
        self,
        networks: Networks,
        positions_on: Callable[[tuple[int, int]], np.ndarray],
        stream: int,
        drain: Callable[[], None],
    ) -> None:
        self._networks, self._positions_on, self._stream, self._drain = networks, positions_on, stream, drain
        self.frames: OrderedDict[Shape, Frame] = OrderedDict()
        self.tables: OrderedDict[tuple[int, int], Memory] = OrderedDict()

    def of(self, shape: Shape) -> Frame:
        """Return the frame of a shape; where it is new, the one used longest ago makes room."""
        if shape not in self.frames:
            positions = None if shape.kind == "look" else self._positions(shape.grid)
            self.frames[shape] = Frame(self._networks, shape, positions)
            while len(self.frames) > MAX_FRAMES:
                self._drain()
                self.frames.popitem(last=False)[1].close()
        self.frames.move_to_end(shape)
        return self.frames[shape]

    def forget(self, shape: Shape) -> None:
        """Close a frame that could not be prepared; nothing of it may be in flight."""
        self.frames.pop(shape).close()

    def _positions(self, grid: tuple[int, int]) -> Memory:
        """Return the position table of a grid on the device, in the type of the extractor's inputs."""
        if grid not in self.tables:
            table = rounded(self._positions_on(grid), self._networks.patch_type)
            while self.tables and sum(each.size for each in self.tables.values()) + table.nbytes > MAX_POSITION_BYTES:
                self.tables.popitem(last=False)  # a frame that reads it keeps it
            self.tables[grid] = uploaded(self._networks.device, table, self._stream)
        self.tables.move_to_end(grid)
        return self.tables[grid]

    def make_room(self) -> bool:
        """Close all frames that are kept for later calls and tell whether there were any."""
        self._drain()
        had_any = bool(self.frames)
        self.close()
        return had_any

    def close(self) -> None:
        """Close all frames; nothing may be in flight."""
        while self.frames:
            self.frames.popitem()[1].close()
        self.tables.clear()


def uploaded(device: Device, array: np.ndarray, stream: int) -> Memory:
    """Copy an array to the device and wait for it."""
    staging, memory = Pinned(device, array.nbytes), Memory(device, array.nbytes)
    staging.bytes[:] = np.frombuffer(array.tobytes(), np.uint8)
    device.copy_in(memory.address, staging.address, array.nbytes, stream)
    device.synchronize(stream)
    return memory
