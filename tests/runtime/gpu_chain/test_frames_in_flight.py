"""A stream of frames gives each its own output in order, and leaves the pipeline as it found it."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_on_host import SQUARE, Open, assert_equal, crops

from saccade.errors import SaccadeError
from saccade.runtime.chain import Output, Pipeline
from saccade.runtime.gpu_in_flight import SLOTS

# Which streams of a pipeline run as soon as they can while the others wait: 0 computes, 1 uploads.
SCHEDULES = pytest.mark.parametrize("eager", [(), (0,), (1,), (0, 1)], ids=["lazy", "compute", "uploads", "both"])


@SCHEDULES
def test_a_stream_of_frames_gives_each_its_own_output_in_order(
    open_gpu: Open, new_device: Callable[..., Any], cpu: Pipeline, photographs: list[np.ndarray], eager: tuple[int, ...]
) -> None:
    frames = crops(photographs, 5)
    pipeline = open_gpu(device=new_device(eager=eager))
    for ours, frame in zip(pipeline.stream(frames, size=126, k=9), frames, strict=True):
        assert_equal(ours, cpu(frame, size=126, k=9))


def test_a_stream_uploads_the_next_frame_before_the_last_is_waited_for(
    open_gpu: Open, photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu()
    pipeline(photographs[0], size=126, k=9)
    taken: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for index, frame in enumerate(crops(photographs, 4)):
            taken.append(index)
            yield frame

    stream = pipeline.stream(frames(), size=126, k=9)
    pipeline.device.calls.clear()
    next(stream)
    assert taken == [0, 1]
    assert pipeline.device.calls.count("launch_graph") == 2
    stream.close()


@SCHEDULES
def test_calls_between_the_frames_of_a_stream_disturb_nothing(
    open_gpu: Open, new_device: Callable[..., Any], cpu: Pipeline, photographs: list[np.ndarray], eager: tuple[int, ...]
) -> None:
    pipeline, frames = open_gpu(device=new_device(eager=eager)), crops(photographs, 4)
    for ours, frame in zip(pipeline.stream(frames, size=126, k=9), frames, strict=True):
        assert_equal(pipeline(photographs[1], size=126, k=9), cpu(photographs[1], size=126, k=9))
        assert_equal(ours, cpu(frame, size=126, k=9))


def test_a_stream_left_early_leaves_it_usable(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    for _ in pipeline.stream(crops(photographs, 4), size=126, k=9):
        break
    assert_equal(pipeline(photographs[0], size=126, k=9), cpu(photographs[0], size=126, k=9))


def test_a_stream_left_in_the_middle_of_a_call_gives_its_slots_back(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu()
    stream = pipeline.stream(crops(photographs, 4), size=126, k=9)
    next(stream)
    with pipeline._entered():  # as when it is collected as garbage then
        stream.close()
    assert len(pipeline._flight._free_slots) == len(pipeline._flight._slots) == SLOTS
    for photograph in photographs:
        assert_equal(pipeline(photograph, size=126, k=9), cpu(photograph, size=126, k=9))


NO_FRAMES: dict[str, Any] = {"missing": Path("no-such.jpg"), "floats": SQUARE.astype(np.float32)}


@pytest.mark.parametrize("bad", ["missing", "floats"])
@pytest.mark.parametrize("good", range(4))
def test_a_stream_gives_every_frame_before_a_bad_one_as_on_a_cpu(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], bad: str, good: int
) -> None:
    frames = [*crops(photographs, good), NO_FRAMES[bad], photographs[0]]
    outputs: list[list[Output]] = []
    errors = []
    for pipeline in (open_gpu(), cpu):
        found: list[Output] = []
        with pytest.raises(SaccadeError) as caught:
            found.extend(pipeline.stream(frames, size=126, k=9))
        outputs.append(found)
        errors.append(str(caught.value))
    assert len(outputs[0]) == len(outputs[1]) == good
    for ours, theirs in zip(*outputs, strict=True):
        assert_equal(ours, theirs)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("frame", [Path("no-such.jpg"), SQUARE.astype(np.float32)], ids=["missing", "floats"])
def test_a_frame_that_is_none_ends_the_stream_and_nothing_else(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], frame: Any
) -> None:
    pipeline = open_gpu()
    with pytest.raises(SaccadeError, match=r"no-such\.jpg|image 0"):
        list(pipeline.stream([photographs[0], frame], size=126, k=9))
    assert len(pipeline._flight._free_slots) == len(pipeline._flight._slots)
    assert_equal(pipeline(photographs[0], size=126, k=9), cpu(photographs[0], size=126, k=9))


def test_frames_on_the_device_are_no_stream(open_gpu: Open) -> None:
    pipeline = open_gpu()
    there = pipeline.upload([SQUARE])
    for frames in (there, [there]):
        with pytest.raises(SaccadeError, match="a stream takes frames on the host"):
            next(pipeline.stream(frames, size=126))  # type: ignore[arg-type]


def test_one_image_is_no_stream(open_gpu: Open) -> None:
    with pytest.raises(SaccadeError, match="stream takes several frames"):
        open_gpu().stream(SQUARE)
