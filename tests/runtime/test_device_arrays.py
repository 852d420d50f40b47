"""Arrays to and from other libraries: described as they lie, and kept as long as they are used."""
from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.runtime import dlpack
from saccade.runtime.device import LEGACY_STREAM, Memory
from saccade.runtime.device_arrays import DeviceArray, GuestStream, is_on_device, stream_handle

torch = pytest.importorskip("torch")
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([np.uint8, np.int32, np.float16, np.float32])


class Owner:
    """Something that memory belongs to."""


def numbered(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


@given(shapes, dtypes)
def test_a_capsule_is_read_by_torch_and_numpy_as_the_array_it_was_made_of(shape: tuple[int, ...], dtype: type) -> None:
    array = numbered(shape, dtype)

    class Capsule:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return dlpack.capsule_of(array.ctypes.data, shape, array.dtype, (1, 0), array)

    for taken in (np.from_dlpack(Capsule()), torch.from_dlpack(Capsule()).numpy()):
        assert (taken.dtype, taken.ctypes.data) == (array.dtype, array.ctypes.data)
        np.testing.assert_array_equal(taken, array)


@given(shapes, dtypes, st.data())
def test_a_capsule_of_torch_is_read_as_it_lies(shape: tuple[int, ...], dtype: type, data: st.DataObject) -> None:
    array = numbered(shape, dtype)
    axes = data.draw(st.permutations(range(len(shape))))
    tensor = torch.from_numpy(array).permute(*axes)[..., data.draw(st.integers(0, shape[axes[-1]] - 1)) :]
    found = dlpack.array_of(tensor.__dlpack__())
    assert found.address == tensor.data_ptr()
    assert (found.shape, np.dtype(found.dtype)) == (tuple(tensor.shape), array.dtype)
    long = [axis for axis, extent in enumerate(found.shape) if extent > 1]  # the stride of one item means nothing
    assert [found.strides[axis] for axis in long] == [tensor.stride(axis) * array.itemsize for axis in long]


@given(shapes, st.sampled_from([1, 2, 4]))
def test_dense_strides_are_numpys(shape: tuple[int, ...], size: int) -> None:
    assert dlpack.dense_strides(shape, size) == np.zeros(shape, f"V{size}").strides


def test_what_is_in_a_capsule_lives_as_long_as_it_or_its_taker() -> None:
    array, owner = np.zeros(3, np.float32), Owner()
    gone = weakref.ref(owner)
    capsule = dlpack.capsule_of(array.ctypes.data, (3,), array.dtype, (1, 0), owner)
    del owner
    assert gone() is not None
    tensor = torch.utils.dlpack.from_dlpack(capsule)
    del capsule
    gc.collect()
    assert gone() is not None
    del tensor
    assert gone() is None


def test_a_capsule_that_nobody_takes_lets_go_of_its_memory() -> None:
    owner = Owner()
    gone = weakref.ref(owner)
    capsule = dlpack.capsule_of(4096, (3,), np.dtype(np.float32), (1, 0), owner)
    del owner, capsule
    assert gone() is None


def test_a_taken_array_keeps_its_memory_on_the_device(new_device: Callable[..., Any]) -> None:
    device = new_device()
    memory = Memory(device, 64)
    array = DeviceArray(device, memory, 16, (2, 3), "float32")
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == memory.address + 16
    del memory, array
    assert len(device.memory) == 1
    del tensor
    assert device.memory == {}


def test_a_taker_gets_a_stream_that_waits_for_what_is_being_written(new_device: Callable[..., Any]) -> None:
    device = new_device()
    array = DeviceArray(device, Memory(device, 64), 0, (4,), "uint8", GuestStream(LEGACY_STREAM))
    with device.current():
        taker = device.create_stream()
    for stream, waits in ((-1, 0), (LEGACY_STREAM, 0), (taker, 1)):
        device.calls.clear()
        array.__dlpack__(stream=stream)
        assert device.calls.count("wait") == waits


@pytest.mark.parametrize("options", [{"copy": True}, {"dl_device": (1, 3)}])
def test_a_copy_and_another_device_are_not_to_be_had(new_device: Callable[..., Any], options: dict[str, Any]) -> None:
    device = new_device()
    array = DeviceArray(device, Memory(device, 64), 0, (4,), "uint8")
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(**options)


def test_arrays_of_the_host_are_not_on_a_device() -> None:
    for array in (np.zeros(3), torch.zeros(3), "photo.jpg", [1, 2]):
        assert not is_on_device(array)
    assert is_on_device(SimpleNamespace(__cuda_array_interface__={}))
    assert is_on_device(SimpleNamespace(__dlpack_device__=lambda: (2, 0)))
    assert not is_on_device(SimpleNamespace(__dlpack_device__=lambda: (1, 0)))


@pytest.mark.parametrize("stream", [None, True, 1.5, "0", -3, SimpleNamespace(handle="7")])
def test_what_is_no_stream_is_refused(stream: object) -> None:
    with pytest.raises(SaccadeError, match="is no CUDA stream; give its handle, or an object that has one"):
        stream_handle(stream)
