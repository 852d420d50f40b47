"""Scores that are not finite are an error once, of the frame that made them, whenever it is waited for."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from gpu_on_host import Open, assert_equal, crops, on_device

from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.device import LEGACY_STREAM
from saccade.runtime.gpu_chain import GpuPipeline


def test_scores_that_are_not_finite_are_the_error_of_a_cpu_and_the_next_frame_runs(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_gpu()
    network = pipeline.engines["selector"].network
    run = network.run

    def overflow(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {name: array.copy() for name, array in run(feed).items()}
        found["score_map"][-1, 3, 4] = np.inf
        return found

    monkeypatch.setattr(network, "run", overflow)
    message = "score map holds NaN or infinity in 1 of 1936 values: the selector overflowed"
    for call in (pipeline, pipeline.look):
        with pytest.raises(SaccadeError, match=message):
            call(crops(photographs, 2), size=126)
    image = on_device(pipeline, np.ascontiguousarray(crops(photographs, 1)[0]))
    with pytest.raises(SaccadeError, match=message):
        pipeline(image, size=126)
    monkeypatch.setattr(network, "run", run)
    assert_equal(pipeline(photographs[0], size=126, k=9), cpu(photographs[0], size=126, k=9))


def test_scores_of_a_frame_nobody_waited_for_are_refused_later(
    open_gpu: Open, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_gpu()
    image = pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0]))
    network = pipeline.engines["selector"].network
    run = network.run
    pipeline(image, size=126, k=9)
    monkeypatch.setattr(network, "run", lambda feed: {name: array * np.float32("nan") for name, array in run(feed).items()})
    pipeline(image, size=126, k=9, stream=LEGACY_STREAM)
    with pytest.raises(SaccadeError, match="an earlier frame's score map holds NaN or infinity"):
        pipeline.wait()
    monkeypatch.setattr(network, "run", run)
    pipeline.wait()
    pipeline(image, size=126, k=9)


def spoil(pipeline: GpuPipeline, monkeypatch: pytest.MonkeyPatch, infinities: Iterable[int]) -> None:
    """Let the score maps of the next frames hold so many infinities, one number for each frame after its graph is there."""
    network, left = pipeline.engines["selector"].network, iter(infinities)
    run = network.run

    def some_infinite(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {name: array.copy() for name, array in run(feed).items()}
        found["score_map"][0, 0, : next(left, 0)] = np.inf
        return found

    monkeypatch.setattr(network, "run", some_infinite)


def test_waiting_leaves_a_bad_frame_of_an_open_stream_to_whoever_takes_it(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, frames = open_gpu(), crops(photographs, 4)
    pipeline(frames[0], size=126, k=9)
    spoil(pipeline, monkeypatch, [0, 3])
    stream = pipeline.stream(frames, size=126, k=9)
    assert_equal(next(stream), cpu(frames[0], size=126, k=9))
    pipeline.wait()
    with pytest.raises(SaccadeError, match="NaN or infinity in 3 of 1936 values"):
        next(stream)
    pipeline.wait()


def test_waiting_says_once_that_any_of_the_frames_was_bad(
    open_gpu: Open, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = open_gpu()
    image = pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0]))
    pipeline(image, size=126, k=9)
    spoil(pipeline, monkeypatch, [1, 1])
    for _ in range(2):
        pipeline(image, size=126, k=9, stream=LEGACY_STREAM)
    with pytest.raises(SaccadeError, match="an earlier frame's score map holds NaN or infinity"):
        pipeline.wait()
    pipeline.wait()


def test_the_error_of_a_bad_frame_counts_its_own_scores_and_not_the_next_frames(
    open_gpu: Open, new_device: Callable[..., Any], photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, frames = open_gpu(device=new_device(eager=[0])), crops(photographs, 3)
    pipeline(frames[0], size=126, k=9)
    spoil(pipeline, monkeypatch, [2, 7])
    with pytest.raises(SaccadeError, match="NaN or infinity in 2 of 1936 values"):
        next(pipeline.stream(frames, size=126, k=9))
