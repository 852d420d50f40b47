"""The frames a pipeline keeps where the device's memory is short: those used longest ago make room for a new one."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saccade
from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime.gpu_chain import GpuPipeline


@pytest.fixture
def gpu(small_bundle: Callable[[str], Path], new_device: Callable[..., Any], host_device: Any) -> Iterator[GpuPipeline]:
    """A pipeline on a GPU of ours, its networks run by OpenVINO."""
    device = new_device()
    host = saccade.load(small_bundle("dinov2"), engine="openvino", threads=1, note=lambda line: None)
    engines = {role: host_device.HostEngine(device, engine) for role, engine in host.engines.items()}
    with GpuPipeline(host.bundle, engines, host.receipt, device) as pipeline:
        yield pipeline


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (126, 126, 3), np.uint8)


def used(pipeline: GpuPipeline) -> int:
    return sum(block.size for block in pipeline.device.memory.values())  # type: ignore[attr-defined]


def kept(pipeline: GpuPipeline) -> list[int]:
    return [shape.k for shape in pipeline.frames.frames]


def test_the_frame_used_longest_ago_makes_room_where_memory_is_short(gpu: GpuPipeline, image: np.ndarray) -> None:
    expected = gpu(image, k=39, size=126).arrays()
    for k in (40, 41, 40):
        gpu(image, k=k, size=126)
    gpu.device.capacity = used(gpu) + 1000  # type: ignore[attr-defined]
    gpu(image, k=38, size=126)
    assert kept(gpu) == [41, 40, 38]
    found = gpu(image, k=39, size=126).arrays()
    assert kept(gpu) == [40, 38, 39]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_as_many_frames_as_needed_make_room(gpu: GpuPipeline, image: np.ndarray) -> None:
    for k in (3, 4, 5):
        gpu(image, k=k, size=126)
    gpu.device.capacity = used(gpu) + 1000  # type: ignore[attr-defined]
    gpu([image, image], k=5, size=126)
    assert len(kept(gpu)) < 3
    assert next(reversed(gpu.frames.frames)).batch == 2


def test_an_execution_context_that_finds_no_memory_makes_room_too(
    gpu: GpuPipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in (3, 4):
        gpu(image, k=k, size=126)
    extractor: Any = gpu.engines["extractor"]
    bind = extractor.bind

    def in_little_memory(*arguments: Any) -> Any:
        if len(extractor.open_contexts) > 1:
            raise OutOfMemoryError("no memory for a third context")
        return bind(*arguments)

    monkeypatch.setattr(extractor, "bind", in_little_memory)
    gpu(image, k=5, size=126)
    assert kept(gpu) == [4, 5]
    assert len(gpu.engines["selector"].open_contexts) == 2  # type: ignore[attr-defined]


def test_with_nothing_left_to_close_the_shortage_is_the_error(gpu: GpuPipeline, image: np.ndarray) -> None:
    gpu(image, k=3, size=126)
    gpu.device.capacity = 4 << 20  # type: ignore[attr-defined]
    with pytest.raises(OutOfMemoryError, match="bytes of memory are not to be had"):
        gpu([image] * 64, k=81, size=126)
    assert kept(gpu) == []
    gpu.device.capacity = 1 << 33  # type: ignore[attr-defined]
    gpu(image, k=3, size=126)


def test_any_other_error_closes_nothing(gpu: GpuPipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(image, k=3, size=126)
    monkeypatch.setattr(gpu.engines["extractor"], "max_k", 8)
    with pytest.raises(SaccadeError, match="beyond the 8 that the engine was built for"):
        gpu(image, k=9, size=126)
    assert kept(gpu) == [3]
