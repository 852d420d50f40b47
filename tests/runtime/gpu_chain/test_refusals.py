"""What cannot run on a GPU is refused in one line before any launch."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_on_host import KERNELS, SQUARE, Open, on_device

from saccade.bundle import TensorSpec
from saccade.errors import SaccadeError
from saccade.runtime.gpu_frame import check_types

REFUSED: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "floats": (SQUARE.astype(np.float32), {}, r"arrays on the device must be uint8 .*, got f4 \[126, 126, 3\]"),
    "grey": (SQUARE[..., 0].copy(), {}, r"got u1 \[126, 126\]"),
    "planar": (SQUARE.transpose(2, 0, 1).copy(), {}, r"got u1 \[3, 126, 126\]"),
    "empty": (np.zeros((0, 126, 3), np.uint8), {}, r"the array is empty, \[0, 126, 3\]"),
    "every other pixel": (np.zeros((126, 252, 3), np.uint8)[:, ::2], {}, r"not three bytes .* \(strides \[756, 6, 1\]"),
    "channels apart": (np.zeros((3, 126, 126), np.uint8).transpose(1, 2, 0), {}, r"strides \[126, 1, 15876\]"),
    "another size": (SQUARE[:112].copy(), {}, r"image 0 is 126 x 112 px on the device, where .*; give 126 x 126"),
    "too small": (SQUARE[:9].copy(), {"size": None, "fit": "native"}, "smaller than one 14 px patch"),
    "k": (SQUARE, {"k": 82}, "this grid has 81 patches"),
    "budget for a dense output": (
        SQUARE[:14, :42].copy(), {"size": (14, 42), "budget_ms": 3, "dense": True},
        r"dense output blends 5 patches, and k 3 is the most here \(the grid has 3, the engines were built for 3\)",
    ),
    "stream": (SQUARE, {"stream": "fast"}, "stream 'fast' is no CUDA stream"),
    "negative stream": (SQUARE, {"stream": -1}, "stream -1 is no CUDA stream"),
    "budget and k": (SQUARE, {"k": 9, "budget_ms": 3}, "give k, k_ratio or budget_ms, not several"),
    "budget": (SQUARE, {"budget_ms": 0}, "budget_ms 0 is no time"),
    "budget that is no number": (SQUARE, {"budget_ms": np.float32("nan")}, r"budget_ms np.float32\(nan\) is no time"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_before_any_launch(open_gpu: Open, case: str) -> None:
    array, options, message = REFUSED[case]
    pipeline = open_gpu()
    image = on_device(pipeline, array)
    pipeline.device.calls.clear()
    with pytest.raises(SaccadeError, match=message):
        pipeline(image, **({"size": 126} | options))
    assert not set(pipeline.device.calls) & {*KERNELS, "launch_graph"}


def test_an_array_that_only_claims_to_lie_on_the_device_is_refused(open_gpu: Open) -> None:
    interface = {"shape": SQUARE.shape, "typestr": "|u1", "data": (SQUARE.ctypes.data, False), "version": 3}
    with pytest.raises(SaccadeError, match=f"image 0: {SQUARE.ctypes.data:#x} is no device memory"):
        open_gpu()(SimpleNamespace(__cuda_array_interface__=interface), size=126)


def test_an_array_with_a_mask_is_refused(open_gpu: Open) -> None:
    pipeline = open_gpu()
    image = on_device(pipeline, SQUARE.copy())
    image.__cuda_array_interface__["mask"] = on_device(pipeline, np.zeros_like(SQUARE))
    with pytest.raises(SaccadeError, match=r"image 0: .*\(it has a mask, which the kernels do not read\)"):
        pipeline(image, size=126)
    image.__cuda_array_interface__["mask"] = None
    pipeline(image, size=126)


class Unwilling:
    """A guest on the device whose `__dlpack__` does what is given."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.give()


def used_up() -> Any:
    torch = pytest.importorskip("torch")
    capsule = torch.zeros(3).__dlpack__()
    torch.utils.dlpack.from_dlpack(capsule)
    return capsule


def has_gradient() -> Any:
    raise BufferError("it requires grad")


UNWILLING = {
    "used up": (Unwilling(used_up), "Unwilling does not give its memory .*called with incorrect name"),
    "no capsule": (Unwilling(lambda: 5), "Unwilling does not give its memory .*called with invalid PyCapsule object"),
    "gradient": (Unwilling(has_gradient), r"does not give its memory \(it requires grad\); give a plain uint8 array"),
    "nothing": (SimpleNamespace(__cuda_array_interface__={}), r"does not give its memory \('shape'\)"),
    "no type": (SimpleNamespace(__cuda_array_interface__={"shape": (3,), "typestr": "|zz"}), "'|zz' not understood"),
}


@pytest.mark.parametrize("case", UNWILLING)
def test_a_guest_that_does_not_give_its_memory_is_refused(open_gpu: Open, case: str) -> None:
    array, message = UNWILLING[case]
    with pytest.raises(SaccadeError, match=f"image 0: .*{message}"):
        open_gpu()(array, size=126)


NO_IMAGES = {
    "floats": (np.zeros((9, 9, 3), np.float32), r"got float32 \[9, 9, 3\]"),
    "sizes": ([SQUARE, SQUARE[:9]], r"got uint8 \[126, 126, 3\] and uint8 \[9, 126, 3\]"),
    "none": ([], "got none"),
    "empty": (SQUARE[:0], r"got uint8 \[0, 126, 3\]"),
    "a path": ("photo.jpg", "got str"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_only_images_are_uploaded(open_gpu: Open, case: str) -> None:
    images, message = NO_IMAGES[case]
    with pytest.raises(SaccadeError, match=f"upload takes uint8 images .height, width, 3. of one size, {message}"):
        open_gpu().upload(images)  # type: ignore[arg-type]


def test_images_on_host_and_device_do_not_mix(open_gpu: Open) -> None:
    pipeline = open_gpu()
    with pytest.raises(SaccadeError, match="some images are on the host and some on the device"):
        pipeline([SQUARE, on_device(pipeline, SQUARE.copy())], size=126)


def test_a_stream_of_another_context_is_refused(open_gpu: Open) -> None:
    pipeline = open_gpu()
    pipeline.device.foreign_contexts.add(0xABC)
    with pytest.raises(SaccadeError, match="the stream 0xabc is not of GPU 0"):
        pipeline(SQUARE, size=126, stream=0xABC)


def test_a_closed_pipeline_is_refused(open_gpu: Open) -> None:
    pipeline = open_gpu()
    pipeline.close()
    pipeline.close()
    with pytest.raises(SaccadeError, match="the pipeline is closed"):
        pipeline(SQUARE, size=126)


def test_graphs_whose_types_no_kernel_has_are_refused(open_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = open_gpu()
    inputs = pipeline.engines["extractor"].inputs
    monkeypatch.setitem(inputs, "positions", TensorSpec("positions", "float16", ("batch", "k", 128)))
    with pytest.raises(SaccadeError, match="patches and positions must be of one type"):
        check_types(pipeline.engines)
    outputs = pipeline.engines["selector"].outputs
    for prefix in ("selector", "extractor"):
        tensors = outputs if prefix == "selector" else inputs
        monkeypatch.setitem(tensors, "prefix", TensorSpec("prefix", "bfloat16", ("batch", 5, 128)))
    monkeypatch.setitem(inputs, "positions", TensorSpec("positions", "float32", ("batch", "k", 128)))
    with pytest.raises(SaccadeError, match="the prefix must be float32 or float16"):
        check_types(pipeline.engines)
