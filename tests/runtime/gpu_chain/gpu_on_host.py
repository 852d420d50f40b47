"""What the tests of the chain on a GPU share: its kernels by name, images, guests' arrays, and how outputs are compared."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from saccade.runtime.chain import Output
from saccade.runtime.device_arrays import DeviceArray
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.gpu_output import DeviceOutput

SELECTOR = ["saccade_preprocess_fp32", "selector", "saccade_resize_scores", "saccade_rank"]
REFERENCE = -1  # the number of the chain on the CPU that others are compared with
KERNELS = [*SELECTOR, "saccade_gather_32bit", "extractor"]
SQUARE = np.zeros((126, 126, 3), np.uint8)
Open = Callable[..., GpuPipeline]


def crops(photographs: list[np.ndarray], count: int, size: tuple[int, int] = (126, 126)) -> list[np.ndarray]:
    """Return different crops of one size."""
    return [photographs[i % 2][20 * i : 20 * i + size[0], 30 * i : 30 * i + size[1]] for i in range(count)]


def assert_equal(ours: Output | DeviceOutput, theirs: Output) -> None:
    """Compare every array bit for bit."""
    assert ours.arrays().keys() == theirs.arrays().keys()
    for name, expected in (theirs.arrays() | {"raw_score_map": theirs.raw_score_map}).items():
        found = getattr(ours, name)
        found = found.numpy() if isinstance(found, DeviceArray) else found
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)


def on_device(pipeline: GpuPipeline, array: np.ndarray, stream: int | None = None) -> SimpleNamespace:
    """Return a guest's array on the device, of any layout; it is written once `stream` has come to it."""
    pipeline.device.adopt(base_of(array))
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3}
    interface |= {"strides": array.strides, "stream": stream}
    return SimpleNamespace(__cuda_array_interface__=interface, keep=array)


def base_of(array: np.ndarray) -> np.ndarray:
    return array if array.base is None else base_of(array.base)
