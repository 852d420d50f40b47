"""Arrays on the GPU that pass between the chain and its guests (pycuda, PyTorch, CuPy, ...), none of which is imported."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from saccade.errors import SaccadeError
from saccade.runtime import dlpack
from saccade.runtime.device import LEGACY_STREAM, Device, Memory
from saccade.runtime.dlpack import GuestArray


class HasArrayInterface(Protocol):
    """An array of PyTorch, CuPy, pycuda, Numba, ..."""

    @property
    def __cuda_array_interface__(self) -> Any:
        """Where it lies; see Numba's manual."""


class HasDLPack(Protocol):
    """An array of any library that knows DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return a capsule."""

    def __dlpack_device__(self) -> Any:
        """Return (DLDeviceType, index)."""


OnDevice = HasArrayInterface | HasDLPack  # what a call takes from the device


class GuestStream:
    """A stream of a guest's that was given frames. Where it is an object and no plain handle, it lives until `let_go`."""

    def __init__(self, stream: object) -> None:
        self.handle = stream_handle(stream) or LEGACY_STREAM
        self.done = False  # once all that it was given has been waited for; the handle may be nobody's by now
        self._owner: object = stream

    def let_go(self) -> None:
        """Forget the stream, which has been waited for."""
        self.done, self._owner = True, None


class DeviceArray:
    """A dense array in the pipeline's memory on the GPU.

    It offers `__cuda_array_interface__` and DLPack, so that torch.as_tensor, cupy.asarray and pycuda take it without a
    copy. What lies in it is there once the stream of the call has come to it, and the next call of these shapes on the
    same pipeline overwrites it, after what that stream was given until then; for a call without one it is the default
    stream. The memory stays as long as the array does.
    """

    def __init__(
        self,
        device: Device,
        memory: Memory,
        offset: int,
        shape: tuple[int, ...],
        dtype: str,
        writer: GuestStream | None = None,
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.address = memory.address + offset
        self._device, self._memory, self._writer = device, memory, writer

    @property
    def stream(self) -> int | None:
        """The handle of the stream that writes it; None once it is known to be there."""
        return None if self._writer is None or self._writer.done else self._writer.handle

    @property
    def size(self) -> int:
        """How many items it has."""
        return math.prod(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device.dlpack_device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule, once `stream` (the taker's) waits for what is being written; -1: no waiting."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("saccade gives its arrays where they are, without a copy")
        if self.stream is not None and stream != -1:
            with self._device.current():
                follow(self._device, stream or LEGACY_STREAM, self.stream)
        return dlpack.capsule_of(self.address, self.shape, self.dtype, self.__dlpack_device__(), self._memory)

    def numpy(self) -> np.ndarray:
        """Return a copy on the host, once it is there."""
        result = np.empty(self.shape, self.dtype)
        stream = LEGACY_STREAM if self.stream is None else self.stream
        with self._device.current():
            self._device.copy_out(result.ctypes.data, self.address, result.nbytes, stream)
            self._device.synchronize(stream)
        return result


def follow(device: Device, stream: int, other: int) -> None:
    """Let what is given to `stream` from now on wait for what has been given to `other`."""
    if stream == other:
        return
    event = device.create_event()
    try:
        device.record(event, other)
        device.wait(stream, event)
    finally:
        device.destroy_event(event)  # CUDA keeps what still waits for it


@dataclass(frozen=True)
class DeviceImage:
    """One uint8 image on the GPU as the kernels read it."""

    pixels: int
    row_stride: int
    height: int
    width: int
    bgr: bool
    owner: object  # keeps the memory

    @property
    def shape(self) -> tuple[int, int, int]:
        """As that of an image on the host."""
        return self.height, self.width, 3

    def cut(self, height: int, width: int) -> DeviceImage:
        """Return its upper left corner."""
        return DeviceImage(self.pixels, self.row_stride, height, width, self.bgr, self.owner)


def is_on_device(array: object) -> bool:
    """Tell whether something is an array in a GPU's memory."""
    where = getattr(array, "__dlpack_device__", None)  # asked first: PyTorch's other protocol raises where it has a gradient
    if where is not None and where()[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        return True
    return not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__")


def device_images(array: Any, name: str, device: Device, stream: int) -> list[DeviceImage]:
    """Return an image (H, W, 3), or each of a batch (B, H, W, 3), with `stream` waiting until they are written.

    Rows may lie apart, as in a crop; the three bytes of a pixel and the pixels of a row must be packed.
    """
    found = _guest_array(array, name, device, stream)
    if found.dtype != "|u1" or len(found.shape) not in (3, 4) or found.shape[-1] != 3:
        raise SaccadeError(
            f"{name}: arrays on the device must be uint8 (height, width, 3) RGB, got {found.dtype[1:]} {list(found.shape)}"
        )
    if 0 in found.shape:
        raise SaccadeError(f"{name}: the array is empty, {list(found.shape)}")
    *_, pixel, channel = found.strides
    if (pixel, channel) not in ((3, 1), (3, -1)):
        raise SaccadeError(f"{name}: its pixels are not three bytes in a row (strides {list(found.strides)}); copy it first")
    device.check_address(found.address, name)
    batch, (height, width) = found.shape[:-3], found.shape[-3:-1]
    starts = [found.address + i * found.strides[0] for i in range(batch[0])] if batch else [found.address]
    bgr = channel < 0  # a view backwards points at the last of the three bytes
    return [DeviceImage(start - 2 * bgr, found.strides[-3], height, width, bgr, found.owner) for start in starts]


def _guest_array(array: Any, name: str, device: Device, stream: int) -> GuestArray:
    """Describe an array, by whichever of both protocols it has, and let `stream` wait for it."""
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            return dlpack.array_of(array.__dlpack__(stream=stream))
        if interface.get("mask") is not None:
            raise ValueError("it has a mask, which the kernels do not read")
        shape, kind = tuple(interface["shape"]), np.dtype(interface["typestr"])
        strides = interface.get("strides") or dlpack.dense_strides(shape, kind.itemsize)
        found = GuestArray(int(interface["data"][0]), shape, tuple(strides), kind.str, array)
        # Who names no stream means the default one: PyTorch and pycuda, unless their user works on streams of his own.
        writer = int(interface.get("stream") or LEGACY_STREAM)
    except (BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:  # a gradient, a capsule that is used up
        what = f"{type(array).__name__} does not give its memory ({' '.join(str(error).split()) or type(error).__name__})"
        raise SaccadeError(f"{name}: {what}; give a plain uint8 array") from error
    follow(device, stream, writer)
    return found


def stream_handle(stream: object) -> int:
    """Return the handle of a CUDA stream: a number, or an object of pycuda, PyTorch, CuPy, cuda.core, ..."""
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int(protocol()[1])
    for name in ("cuda_stream", "handle", "ptr"):
        if isinstance(getattr(stream, name, None), int):
            return int(getattr(stream, name))
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise SaccadeError(f"stream {stream!r} is no CUDA stream; give its handle, or an object that has one")
    return stream
