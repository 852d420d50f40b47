"""The stand-in finds what a GPU would crash on or silently get wrong; else the tests on it would prove nothing."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from saccade.runtime import launch
from saccade.runtime.device import LEGACY_STREAM, Memory, Pinned
from saccade.runtime.launch import Launch, SelectParams


@pytest.fixture
def device(new_device: Callable[..., Any]) -> Iterator[Any]:
    found = new_device()
    with found.current():
        yield found


@pytest.fixture
def fault(host_device: Any) -> Any:
    return lambda message: pytest.raises(host_device.DeviceFault, match=message)


def ranking(device: Any) -> tuple[SelectParams, list[Memory]]:
    """Return parameters of a 4x4 grid that fit their memory, and the memory."""
    arrays = [Memory(device, size) for size in (36, 64, 12, 4)]
    return SelectParams(*(each.address for each in arrays), 1, 3, 4, 4, 3), arrays


def test_what_fits_runs_when_somebody_waits_and_not_before(device: Any) -> None:
    params, arrays = ranking(device)
    status = ctypes.c_int32.from_address(arrays[3].address)
    device.launch(launch.RANK, params, params.rank_launch, LEGACY_STREAM)
    assert status.value == -1  # as it was allocated
    device.synchronize(LEGACY_STREAM)
    assert status.value == 1  # memory nobody wrote is NaN


@pytest.mark.parametrize(("field", "what"), [("maps", "maps"), ("scores", "scores"), ("indices", "indices")])
def test_a_kernel_that_leaves_its_memory_is_a_fault(device: Any, fault: Any, field: str, what: str) -> None:
    params, arrays = ranking(device)
    setattr(params, field, getattr(params, field) + 4)
    device.launch(launch.RANK, params, params.rank_launch, LEGACY_STREAM)
    with fault(f"saccade_rank: {what}: .* lie in no live allocation"):
        device.synchronize(LEGACY_STREAM)
    del arrays


def test_memory_that_is_freed_before_the_kernel_runs_is_a_fault(device: Any, fault: Any) -> None:
    params, arrays = ranking(device)
    graph = device.capture(
        lambda stream: device.launch(launch.RANK, params, params.rank_launch, stream), device.create_stream()
    )
    del arrays[0]
    device.launch_graph(graph, LEGACY_STREAM)
    with fault("saccade_rank: maps: 36 bytes .* lie in no live allocation"):
        device.synchronize(LEGACY_STREAM)


def test_a_wrong_launch_is_a_fault(device: Any, fault: Any) -> None:
    params, arrays = ranking(device)
    with fault(r"saccade_rank: launched as \(1, 1, 256\), it needs \(1, 1, 1024\)"):
        device.launch(launch.RANK, params, Launch(1, 1, 256), LEGACY_STREAM)
    with fault("no kernel saccade_sort"):
        device.launch("saccade_sort", params, Launch(1, 1, 256), LEGACY_STREAM)
    del arrays


KERNEL = {"rank": launch.RANK, "fill": launch.FILL}
BROKEN: dict[str, tuple[str, dict[str, int], str]] = {
    "k beyond the cells": ("rank", {"k": 17}, "it takes no more patches than cells, not {.*'k': 17"),
    "no patches": ("rank", {"k": 0}, "it takes extents from 1"),
    "a batch too large": ("rank", {"batch": 65536}, "it takes a batch to 65535"),
    "a grid too large": ("rank", {"rows": 257, "columns": 256}, "it takes cells to 65536"),
    "too few to blend": ("fill", {"k": 4}, "saccade_fill: it takes k from 5"),
    "an output over an input": ("rank", {"indices": 0}, "saccade_rank: its output indices lies over scores"),
    "an address in the middle": ("rank", {"maps": 2}, "saccade_rank: maps is not aligned"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_kernel_rules_out_and_does_not_check_is_a_fault(device: Any, fault: Any, case: str) -> None:
    kernel, changed, message = BROKEN[case]
    params, arrays = ranking(device)
    tokens, out = Memory(device, 4 * 16 * 8), Memory(device, 4 * 16 * 8)
    if kernel == "fill":
        params = launch.FillParams(tokens.address, arrays[2].address, out.address, 1, 5, 8, 4, 4)
    for field, value in changed.items():
        pointer = {"indices": arrays[1].address + 4, "maps": arrays[0].address + value}.get(field)
        setattr(params, field, value if pointer is None else pointer)
    with fault(message):
        device.launch(KERNEL[kernel], params, params.rank_launch if kernel == "rank" else params.launch, LEGACY_STREAM)


FORBIDDEN: dict[str, Callable[[Any, int], object]] = {
    "allocate": lambda device, stream: Memory(device, 8),
    "allocate_pinned": lambda device, stream: Pinned(device, 8),
    "synchronize": lambda device, stream: device.synchronize(stream),
    "synchronize_event": lambda device, stream: device.synchronize_event(0),
    "create_stream": lambda device, stream: device.create_stream(),
    "capture": lambda device, stream: device.capture(lambda stream: None, stream),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_capture_forbids_is_a_fault(device: Any, fault: Any, name: str) -> None:
    with fault(f"{name} during a capture"):
        device.capture(lambda stream: FORBIDDEN[name](device, stream), device.create_stream())


def test_a_default_stream_cannot_be_captured(device: Any, fault: Any) -> None:
    with fault("a default stream cannot be captured"):
        device.capture(lambda stream: None, LEGACY_STREAM)


def test_an_eager_stream_runs_at_once_and_first_what_it_waits_for(new_device: Callable[..., Any]) -> None:
    device, done = new_device(eager=[1]), []
    with device.current():
        lazy, eager, event = device.create_stream(), device.create_stream(), device.create_event()
        device.enqueue("lazy", (), lambda: done.append("lazy"), lazy)
        device.record(event, lazy)
        device.enqueue("late", (), lambda: done.append("late"), lazy)
        device.enqueue("first", (), lambda: done.append("first"), eager)
        assert done == ["first"]
        device.wait(eager, event)
        assert done == ["first", "lazy"]


@pytest.mark.parametrize("waits", [False, True])
def test_freeing_waits_only_where_it_is_told_to(new_device: Callable[..., Any], waits: bool) -> None:
    device, done = new_device(free_waits=waits), []
    with device.current():
        device.enqueue("work", (), lambda: done.append("work"), LEGACY_STREAM)
        Memory(device, 8).free()
    assert done == ["work"] * waits


def test_calls_outside_of_the_context_are_faults(new_device: Callable[..., Any], fault: Any) -> None:
    with fault("called outside of the device's context"):
        new_device().allocate(8)


def test_a_copy_reads_pinned_memory_when_it_runs(device: Any) -> None:
    source, target = Pinned(device, 4), Memory(device, 4)
    source.bytes[:] = 1
    device.copy_in(target.address, source.address, 4, LEGACY_STREAM)
    source.bytes[:] = 2  # too early
    result = np.empty(4, np.uint8)
    device.copy_out(result.ctypes.data, target.address, 4, LEGACY_STREAM)
    device.synchronize(LEGACY_STREAM)
    assert result.tolist() == [2, 2, 2, 2]


def test_a_copy_from_memory_that_is_not_pinned_is_a_fault(device: Any, fault: Any) -> None:
    source, target = np.zeros(4, np.uint8), Memory(device, 4)
    device.copy_in(target.address, source.ctypes.data, 4, LEGACY_STREAM)
    with fault("from memory that is not pinned"):
        device.synchronize(LEGACY_STREAM)


def test_streams_follow_each_other_only_where_they_are_told_to(device: Any) -> None:
    done: list[str] = []
    first, second, event = device.create_stream(), device.create_stream(), device.create_event()
    device.enqueue("a", (), lambda: done.append("a"), first)
    device.record(event, first)
    device.enqueue("late", (), lambda: done.append("late"), first)
    device.enqueue("b", (), lambda: done.append("b"), second)
    device.wait(second, event)
    device.enqueue("c", (), lambda: done.append("c"), second)
    device.synchronize(second)
    assert done == ["b", "a", "c"]
