"""Frames on streams of other libraries run in CUDA's order and wait for nobody without need."""
from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_on_host import Open, assert_equal, crops, on_device

from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.device import LEGACY_STREAM
from saccade.runtime.gpu_chain import GpuPipeline


@pytest.mark.parametrize("spelling", ["number", "pycuda", "torch", "cupy", "cuda.core"])
def test_a_guests_stream_runs_the_frame_and_nobody_waits_for_it(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], spelling: str
) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1)[0])
    with pipeline.device.current():
        handle = pipeline.device.create_stream()
    spellings = {
        "number": handle,
        "pycuda": SimpleNamespace(handle=handle),
        "torch": SimpleNamespace(cuda_stream=handle),
        "cupy": SimpleNamespace(ptr=handle),
        "cuda.core": SimpleNamespace(__cuda_stream__=lambda: (0, handle)),
    }
    uploaded = pipeline.upload(image)
    pipeline(uploaded, size=126, k=9)
    pipeline.device.calls.clear()
    out = pipeline(uploaded, size=126, k=9, stream=spellings[spelling])
    assert "synchronize" not in pipeline.device.calls
    queue = pipeline.device._streams[handle]
    assert "launch_graph" in [operation.name for operation in queue.queue[queue.done :]]  # not even begun
    assert_equal(out, cpu(image, size=126, k=9))
    pipeline.wait()
    pipeline.device.destroy_stream(handle)


@pytest.mark.parametrize("eager", [(), (0,), (2,), (3,)], ids=["lazy", "ours", "the first", "the second"])
def test_frames_on_several_streams_follow_each_other_where_they_share_memory(
    open_gpu: Open, new_device: Callable[..., Any], cpu: Pipeline, photographs: list[np.ndarray], eager: tuple[int, ...]
) -> None:
    pipeline = open_gpu(device=new_device(eager=eager))
    images = [np.ascontiguousarray(image) for image in crops(photographs, 4)]
    with pipeline.device.current():
        streams = [pipeline.device.create_stream() for _ in range(2)]
    uploaded = [pipeline.upload(image) for image in images]
    for i, image in enumerate(uploaded):
        out = pipeline(image, size=126, k=9, stream=streams[i % 2])
        pipeline(images[0], size=126, k=10)  # on the pipeline's own
    assert_equal(out, cpu(images[-1], size=126, k=9))
    pipeline.wait()
    for stream in streams:
        pipeline.device.destroy_stream(stream)
    assert_equal(out, cpu(images[-1], size=126, k=9))
    assert_equal(pipeline(images[0], size=126, k=9), cpu(images[0], size=126, k=9))


def test_a_frame_runs_after_those_before_it_whatever_their_shapes_and_streams(
    open_gpu: Open, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_gpu()
    image = pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0]))
    with pipeline.device.current():
        streams = [pipeline.device.create_stream() for _ in range(3)]
    for k in (7, 8, 9):
        pipeline(image, size=126, k=k)
    network, order = pipeline.engines["extractor"].network, []
    run = network.run
    monkeypatch.setattr(network, "run", lambda feed: order.append(feed["patches"].shape[1]) or run(feed))
    for k, stream in zip((7, 8, 9), streams, strict=True):  # contexts of one engine compute in the same memory
        pipeline(image, size=126, k=k, stream=stream)
    with pipeline.device.current():
        pipeline.device.synchronize(streams[-1])
    assert order == [7, 8, 9]
    pipeline.wait()
    for stream in streams:
        pipeline.device.destroy_stream(stream)


NEXT: dict[str, Callable[[GpuPipeline, Any, int], object]] = {
    "on the host": lambda pipeline, image, stream: pipeline(image.keep, size=126, k=9),
    "on the device": lambda pipeline, image, stream: pipeline(image, size=126, k=9),
    "on another stream": lambda pipeline, image, stream: (pipeline(image, size=126, k=9, stream=stream), pipeline.wait()),
}


@pytest.mark.parametrize("then", NEXT)
@pytest.mark.parametrize("named", [True, False], ids=["its stream", "the default stream"])
def test_outputs_are_read_by_what_the_guest_gave_its_stream_before_the_next_call_overwrites_them(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], then: str, named: bool
) -> None:
    pipeline, images = open_gpu(), [np.ascontiguousarray(image) for image in crops(photographs, 2)]
    device, read = pipeline.device, np.zeros((1, 9, 128), np.float32)
    with device.current():
        theirs, other = (device.create_stream() for _ in range(2))
    first, second = (on_device(pipeline, image) for image in images)
    stream = theirs if named else LEGACY_STREAM
    out = pipeline(first, size=126, k=9, **({"stream": stream} if named else {}))
    with device.current():
        device.enqueue("read", (), lambda: ctypes.memmove(read.ctypes.data, out.tokens.address, read.nbytes), stream)
    NEXT[then](pipeline, second, other)
    with device.current():
        device.synchronize(stream)
    np.testing.assert_array_equal(read, cpu(images[0], size=126, k=9).tokens)
    pipeline.wait()
    for each in (theirs, other):
        device.destroy_stream(each)


def test_a_reader_whose_stream_cannot_be_waited_for_is_named_at_each_call_until_it_can(
    open_gpu: Open, photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu()
    image = pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0]))
    with pipeline.device.current():
        stream = pipeline.device.create_stream()
    pipeline(image, size=126, k=9, stream=stream)
    pipeline.device.foreign_contexts.add(stream)
    for _ in range(2):
        with pytest.raises(SaccadeError, match="is not of GPU 0"):
            pipeline(image, size=126, k=9)
    pipeline.device.foreign_contexts.clear()
    pipeline(image, size=126, k=9)
    pipeline.wait()
    pipeline.device.destroy_stream(stream)


class Stream:
    """A stream of a guest's that is destroyed with its object, as pycuda does it."""

    def __init__(self, device: Any) -> None:
        with device.current():
            self.handle = device.create_stream()
        weakref.finalize(self, device.destroy_stream, self.handle)


def test_a_guests_stream_lives_until_it_is_waited_for_and_is_not_asked_after_that(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1)[0])
    uploaded, stream = pipeline.upload(image), Stream(pipeline.device)
    handle = stream.handle
    out = pipeline(uploaded, size=126, k=9, stream=stream)
    done: list[str] = []
    with pipeline.device.current():
        pipeline.device.enqueue("more", (), lambda: done.append("more"), handle)
    del stream
    gc.collect()
    assert handle in pipeline.device._streams
    assert out.cls.stream == out.cls.__cuda_array_interface__["stream"] == handle
    pipeline.wait()
    assert done == ["more"]
    assert handle not in pipeline.device._streams
    assert out.cls.stream is out.cls.__cuda_array_interface__["stream"] is None
    np.from_dlpack(out.cls)
    assert_equal(out, cpu(image, size=126, k=9))
    assert_equal(pipeline(uploaded, size=126, k=9), cpu(image, size=126, k=9))


def test_an_array_is_read_after_the_stream_that_writes_it(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1)[0])
    late = np.zeros_like(image)
    device = pipeline.device
    with device.current():
        writer = device.create_stream()
        device.enqueue("write", (), lambda: np.copyto(late, image), writer)
    assert_equal(pipeline(on_device(pipeline, late, writer), size=126, k=9), cpu(image, size=126, k=9))
    unnamed = np.zeros_like(image)
    with device.current():
        device.enqueue("write", (), lambda: np.copyto(unnamed, image), LEGACY_STREAM)
    assert_equal(pipeline(on_device(pipeline, unnamed), size=126, k=9), cpu(image, size=126, k=9))
    device.destroy_stream(writer)
