"""Frames through lanes: in order, one lane a frame, as many at once as there are lanes, and the chain's own numbers."""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import saccade
from saccade.errors import SaccadeError
from saccade.runtime.stream import in_order


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4))
def test_results_come_in_the_order_of_the_frames_however_long_each_takes(delays: list[int], lanes: int) -> None:
    def lane(frame: tuple[int, int]) -> int:
        time.sleep(frame[1] / 1000)
        return frame[0]

    frames = list(enumerate(delays))
    assert list(in_order(frames, [lane] * lanes)) == list(range(len(frames)))


def test_no_lane_runs_two_frames_at_once_and_all_lanes_run() -> None:
    together = threading.Barrier(3, timeout=30)  # passed only while three frames are under way
    busy = [threading.Lock() for _ in range(3)]

    def lane(index: int) -> Callable[[int], int]:
        def run(frame: int) -> int:
            assert busy[index].acquire(blocking=False)
            together.wait()
            busy[index].release()
            return frame

        return run

    assert list(in_order(range(9), [lane(index) for index in range(3)])) == list(range(9))


def test_an_endless_source_is_read_no_further_than_one_frame_ahead() -> None:
    taken = itertools.count()
    results = in_order(taken, [lambda frame: frame] * 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(taken) <= 5 + 2 + 1
    results.close()  # type: ignore[attr-defined]  # a generator


def test_what_a_lane_raises_comes_in_its_frames_turn() -> None:
    def lane(frame: int) -> int:
        if frame == 2:
            raise SaccadeError("frame 2 is damaged; leave it out")
        return frame

    results = in_order(range(5), [lane] * 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(SaccadeError, match="frame 2 is damaged"):
        next(results)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_stream_gives_the_bits_of_single_calls(
    engine: str, small_bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    sizes = (126, 98, 126, 140, 98)
    with saccade.load(small_bundle("dinov2"), engine=engine, threads=2, streams=2, note=lambda line: None) as pipe:
        alone = [pipe(photographs[index % 2], size=size, k=7) for index, size in enumerate(sizes)]
        for _ in range(2):  # a second stream after the first
            frames: Iterator[np.ndarray] = itertools.islice(itertools.cycle(photographs), 5)
            streamed = list(pipe.stream(frames, size=126, k=7))
            assert len(streamed) == 5
            for index in (0, 2):
                for name, array in alone[index].arrays().items():
                    np.testing.assert_array_equal(streamed[index].arrays()[name], array)


def test_a_stream_stopped_early_leaves_a_pipeline_that_runs(
    small_bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    with saccade.load(small_bundle("dinov2"), streams=2, note=lambda line: None) as pipe:
        stream = pipe.stream(itertools.cycle(photographs), k=7)
        first = next(stream)
        stream.close()  # type: ignore[attr-defined]  # a generator
        np.testing.assert_array_equal(pipe(photographs[0], k=7).indices, first.indices)


@pytest.mark.parametrize("streams", [0, -1, 65, True, "2", 1.5])
def test_streams_that_cannot_be_are_refused(streams: object, small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match=r"streams .* is out of range; give 1 to 64"):
        saccade.load(small_bundle("dinov2"), streams=streams)  # type: ignore[arg-type]


def test_an_engine_of_one_frame_at_a_time_refuses_streams(small_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="tensorrt-rtx runs one frame at a time; leave streams at 1, or use openvino or"):
        saccade.load(small_bundle("dinov2"), engine="tensorrt-rtx", streams=2)


@pytest.mark.parametrize("one", [np.zeros((14, 14, 3), np.uint8), "photo.png", b"bytes", Path("photo.png")], ids=type)
def test_a_single_image_is_no_stream(one: object, small_bundle: Callable[[str], Path]) -> None:
    refusal = "stream takes several frames, one after the other; call the pipeline itself"
    with saccade.load(small_bundle("dinov2"), note=lambda line: None) as pipe, pytest.raises(SaccadeError, match=refusal):
        pipe.stream(one)  # type: ignore[arg-type]
