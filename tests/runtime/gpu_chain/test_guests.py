"""Arrays of other libraries are read and given on the device without a copy."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_on_host import Open, assert_equal, crops, on_device

from saccade.runtime.chain import Pipeline
from saccade.runtime.device import LEGACY_STREAM
from saccade.runtime.device_arrays import DeviceArray
from saccade.runtime.gpu_output import DeviceLook, DeviceOutput


def layouts(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return one picture in memory as guests may have it."""
    wide = np.zeros((image.shape[0], image.shape[1] + 10, 3), np.uint8)
    wide[:, 4:-6] = image
    bgr = np.ascontiguousarray(image[..., ::-1])
    return {"packed": image.copy(), "crop": wide[:, 4:-6], "bgr": bgr[..., ::-1], "upside down": image[::-1].copy()[::-1]}


@pytest.mark.parametrize("layout", ["packed", "crop", "bgr", "upside down"])
def test_an_array_on_the_device_is_read_where_it_lies(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], layout: str
) -> None:
    pipeline = open_gpu()
    image = np.ascontiguousarray(crops(photographs, 1)[0])
    pipeline.device.calls.clear()
    out = pipeline(on_device(pipeline, layouts(image)[layout]), size=126, k=9, dense=True)
    assert isinstance(out, DeviceOutput)
    assert all(isinstance(array, DeviceArray) for array in out.arrays().values())
    assert_equal(out, cpu(image, size=126, k=9, dense=True))


def test_a_batch_on_the_device_is_one_array_or_several(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline, images = open_gpu(), [np.ascontiguousarray(image) for image in crops(photographs, 3)]
    expected = cpu(images, size=126, k=9)
    assert_equal(pipeline(on_device(pipeline, np.stack(images)), size=126, k=9), expected)
    assert_equal(pipeline([on_device(pipeline, image) for image in images], size=126, k=9), expected)
    assert_equal(pipeline(pipeline.upload(images), size=126, k=9), expected)
    look = pipeline.look(pipeline.upload(images), size=126)
    assert isinstance(look, DeviceLook)
    np.testing.assert_array_equal(look.score_map.numpy(), expected.score_map)


def test_native_reads_whole_patches_of_an_array_on_the_device(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1, (131, 150))[0])
    assert_equal(pipeline(on_device(pipeline, image), fit="native", k=9), cpu(image, fit="native", k=9))


def test_an_array_comes_through_dlpack_too(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1)[0])
    uploaded, streams = pipeline.upload(image), []

    class Guest:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: Any = None) -> Any:
            streams.append(stream)
            return uploaded.__dlpack__()

    assert_equal(pipeline(Guest(), size=126, k=9), cpu(image, size=126, k=9))
    assert streams == [pipeline._flight.stream]


def test_outputs_are_taken_by_numpy_and_torch_without_a_copy(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    pipeline = open_gpu()
    out = pipeline(pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0])), size=126, k=9)
    for taken in (np.from_dlpack(out.tokens), torch.from_dlpack(out.tokens)):
        np.testing.assert_array_equal(np.asarray(taken), out.tokens.numpy())
        assert (taken.ctypes.data if isinstance(taken, np.ndarray) else taken.data_ptr()) == out.tokens.address
    indices = np.from_dlpack(out.indices)
    assert (indices.dtype, indices.shape) == (np.int32, (1, 9))


def test_the_array_interface_of_an_output_names_its_memory_and_its_stream(
    open_gpu: Open, photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu()
    image = pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0]))
    interface = pipeline(image, size=126, k=9).cls.__cuda_array_interface__
    assert interface["stream"] is None  # the call has waited
    assert (interface["shape"], interface["typestr"], interface["version"]) == ((1, 128), "<f4", 3)
    assert pipeline(image, size=126, k=9, stream=LEGACY_STREAM).cls.__cuda_array_interface__["stream"] == LEGACY_STREAM
