"""A frame is captured once as a graph, kept while there is room, and leaves nothing behind where it fails."""
from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_on_host import KERNELS, Open, assert_equal, crops, on_device

from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.gpu_frames import MAX_FRAMES


def test_a_frame_is_one_upload_one_graph_launch_and_one_download(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    pipeline(photographs[0], size=126, k=9)
    pipeline(photographs[0], size=126, k=9)
    calls = pipeline.device.calls
    calls.clear()
    pipeline(photographs[0], size=126, k=9)
    done = [call for call in calls if call not in ("wait", "synchronize")]
    assert done == ["copy_in", "copy_in", "launch_graph", "copy_out"]  # pixels; where they lie; the frame; its results


def test_images_that_stay_where_they_are_need_the_graph_launch_alone(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    image = on_device(pipeline, np.ascontiguousarray(crops(photographs, 1)[0]))
    pipeline(image, size=126, k=9)
    pipeline.device.calls.clear()
    pipeline(image, size=126, k=9)
    done = [call for call in pipeline.device.calls if call != "wait"]
    assert done == ["launch_graph", "copy_out"]  # the status of its scores is looked at


@pytest.mark.parametrize(("dense", "steps"), [(False, KERNELS), (True, [*KERNELS, "saccade_fill"])])
def test_the_graph_is_captured_after_one_warm_run_of_the_same_launches(
    open_gpu: Open, photographs: list[np.ndarray], dense: bool, steps: list[str]
) -> None:
    pipeline = open_gpu()
    pipeline(photographs[0], size=126, k=9, dense=dense)
    calls = pipeline.device.calls
    warm = calls.index(steps[0])
    assert calls[warm : warm + len(steps) + 1] == [*steps, "synchronize"]
    assert calls[warm + len(steps) + 1 :][: len(steps)] == steps
    (graph,) = pipeline.device.graphs.values()
    stream = pipeline.device._streams[pipeline._flight.stream]
    warmed = [operation for operation in stream.queue if operation.name in steps]
    assert [(each.name, each.arguments) for each in graph] == [(each.name, each.arguments) for each in warmed]


def test_each_shape_has_its_graph_and_its_contexts_until_the_pipeline_closes(
    open_gpu: Open, photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu()
    for k in (5, 6, 5, 6):
        pipeline(photographs[0], size=126, k=k)
    assert len(pipeline.device.graphs) == 2
    assert len(pipeline.engines["extractor"].open_contexts) == 2
    pipeline.close()
    assert pipeline.device.graphs == {}
    assert pipeline.engines["extractor"].open_contexts == []


def test_the_shape_used_longest_ago_makes_room_and_is_captured_again(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    pipeline, image = open_gpu(), photographs[0]
    for k in range(1, MAX_FRAMES + 1):
        pipeline(image, size=126, k=k)
    pipeline(image, size=126, k=1)
    graphs = set(pipeline.device.graphs)
    pipeline(image, size=126, k=MAX_FRAMES + 1)  # in the place of k = 2
    assert len(pipeline.device.graphs) == MAX_FRAMES == len(pipeline.engines["selector"].open_contexts)
    assert_equal(pipeline(image, size=126, k=1), cpu(image, size=126, k=1))
    assert len(set(pipeline.device.graphs) - graphs) == 1
    assert_equal(pipeline(image, size=126, k=2), cpu(image, size=126, k=2))
    assert len(set(pipeline.device.graphs) - graphs) == 2


def test_memory_is_given_back_with_the_last_array(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    out = pipeline(pipeline.upload(np.ascontiguousarray(crops(photographs, 1)[0])), size=126, k=9)
    tokens = out.tokens
    expected = tokens.numpy()
    pipeline.close()
    del out
    np.testing.assert_array_equal(tokens.numpy(), expected)
    device, held = pipeline.device, len(pipeline.device.memory)
    del tokens
    assert len(device.memory) == held - 1


def test_closing_frees_all_memory_but_that_of_arrays_given_out(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline, image = open_gpu(), np.ascontiguousarray(crops(photographs, 1)[0])
    device, guest = pipeline.device, pipeline.upload(image)
    out = pipeline(guest, size=126, k=9, dense=True)
    list(pipeline.stream(crops(photographs, 3), size=70, k=5))
    pipeline.extract([image], np.arange(6)[None], np.zeros((1, 5, 128), np.float32))
    gone = weakref.ref(guest)
    del guest
    pipeline.close()
    assert gone() is None
    assert (len(device.memory), device.pinned) == (1, {})
    out.tokens.numpy()
    del out
    assert device.memory == {}


def test_position_tables_are_read_by_graphs_that_outlive_their_place_in_the_cache(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.runtime.gpu_frames.MAX_POSITION_BYTES", 1)
    pipeline, image = open_gpu(), photographs[0]
    for size in (126, 70, 126, 84, 70):
        assert_equal(pipeline(image, size=size, k=5), cpu(image, size=size, k=5))
    assert len(pipeline.frames.tables) == 1


def test_too_little_memory_is_one_line_and_leaves_the_pipeline_usable(
    open_gpu: Open, cpu: Pipeline, new_device: Callable[..., Any], photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu(device=new_device(capacity=4 << 20))
    with pytest.raises(SaccadeError, match="bytes of memory are not to be had"):
        pipeline(crops(photographs, 8), size=252, k=300, dense=True)
    assert_equal(pipeline(photographs[0], size=126, k=5), cpu(photographs[0], size=126, k=5))


@pytest.mark.parametrize("failing", range(5))
def test_memory_that_is_not_to_be_had_leaves_nothing_behind_wherever_it_was_asked_for(
    open_gpu: Open, cpu: Pipeline, new_device: Callable[..., Any], photographs: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch, failing: int,
) -> None:  # fmt: skip
    pipeline, device = open_gpu(), new_device()

    def refuse(device: Any, count: int) -> None:
        """Let the allocation of that number fail."""
        numbers = itertools.count()

        def only_some(allocate: Any) -> Any:
            def or_not(size: int) -> int:
                if next(numbers) == count:
                    raise SaccadeError("no memory")
                return int(allocate(size))

            return or_not

        for name in ("allocate", "allocate_pinned"):
            monkeypatch.setattr(device, name, only_some(getattr(device, name)))

    refuse(device, failing)
    if failing < 4:  # two tables, each through pinned memory
        with pytest.raises(SaccadeError, match="no memory"):
            GpuPipeline(pipeline.bundle, pipeline.engines, pipeline.receipt, device)
        gc.collect()
        assert (len(device._streams), device._events, device.memory, device.pinned) == (1, {}, {}, {})
    refuse(pipeline.device, failing)  # position table, frame, and the pinned memory of a slot
    with contextlib.suppress(SaccadeError):
        pipeline(crops(photographs, 2), size=70, k=5)
    assert_equal(pipeline(photographs[0], size=126, k=5), cpu(photographs[0], size=126, k=5))


def test_frames_kept_for_later_make_room_where_there_is_no_memory(
    open_gpu: Open, cpu: Pipeline, new_device: Callable[..., Any], photographs: list[np.ndarray]
) -> None:
    pipeline = open_gpu(device=new_device(capacity=6 << 20))
    images = crops(photographs, 4, (252, 252))
    for k in (200, 210, 200, 220):  # two of them do not fit side by side
        assert_equal(pipeline(images, size=252, k=k), cpu(images, size=252, k=k))
        assert len(pipeline.device.graphs) == 1
    pipeline(photographs[0], size=70, k=3)  # this one does
    assert len(pipeline.device.graphs) == 2


@pytest.mark.parametrize("failing", [1, 4], ids=["in the warm run", "in the capture"])
def test_a_frame_that_cannot_be_prepared_leaves_nothing_behind(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    pipeline = open_gpu()
    passes = itertools.count(1)  # of two networks, twice
    enqueue = pipeline.device.enqueue

    def or_not(*arguments: Any) -> None:
        if next(passes) == failing:
            raise SaccadeError("the run failed")
        enqueue(*arguments)

    monkeypatch.setattr(pipeline.device, "enqueue", or_not)
    with pytest.raises(SaccadeError, match="the run failed"):
        pipeline(photographs[0], size=126, k=5)
    assert (len(pipeline.frames.frames), pipeline.engines["extractor"].open_contexts) == (0, [])
    assert_equal(pipeline(photographs[0], size=126, k=5), cpu(photographs[0], size=126, k=5))


def test_what_an_engine_does_not_take_is_refused_before_any_launch(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu(max_k=20)
    pipeline.device.calls.clear()
    with pytest.raises(SaccadeError, match="k 21 is beyond the 20 that the engine was built for"):
        pipeline(photographs[0], size=126, k=21)
    assert not set(pipeline.device.calls) & {*KERNELS, "launch_graph"}
    assert pipeline.engines["selector"].open_contexts == []


@pytest.mark.parametrize(
    ("images", "k", "message"),
    [(1, 21, "k 21 is beyond the 20 that the engines were built for; build them with --max-k 21"),
     (3, 9, "batch 3 is beyond the 2 that the engines were built for; build them with --max-batch 3")],
)  # fmt: skip
def test_a_shape_beyond_the_engines_limits_makes_no_frame_leave(
    open_gpu: Open, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, images: int, k: int, message: str
) -> None:
    monkeypatch.setattr("saccade.runtime.gpu_frames.MAX_FRAMES", 2)
    pipeline = open_gpu(max_k=20)
    pipeline.receipt.conditions.update(max_k="20", max_batch="2")
    for kept in (3, 4):
        pipeline(photographs[0], size=126, k=kept)
    pipeline.device.capacity = 0  # where an allocation fails, others make room
    with pytest.raises(SaccadeError, match=message):
        pipeline(crops(photographs, images), size=126, k=k)
    assert [shape.k for shape in pipeline.frames.frames] == [3, 4]


def test_a_frame_that_cannot_be_made_lets_no_other_leave(
    open_gpu: Open, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.runtime.gpu_frames.MAX_FRAMES", 2)
    pipeline = open_gpu(max_k=20)
    for k in (3, 4):
        pipeline(photographs[0], size=126, k=k)
    with pytest.raises(SaccadeError, match="k 21 is beyond the 20 that the engine was built for"):
        pipeline(photographs[0], size=126, k=21)
    assert [shape.k for shape in pipeline.frames.frames] == [3, 4]


def test_a_frame_holds_and_fetches_only_what_its_kind_writes(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline, images = open_gpu(), crops(photographs, 1)
    out = pipeline(images, size=126, k=9)
    pipeline.extract(images, out.indices, out.prefix)
    pipeline.look(images, size=126)
    run, extract, look = pipeline.frames.frames.values()
    of_the_selector = {"status", "score_map", "raw_score_map", "prefix"}
    assert set(look.results) == of_the_selector
    assert set(extract.results) == {"cls", "tokens"}
    assert set(run.results) == {*of_the_selector, "indices", "cls", "tokens"}
    assert extract.result_bytes == 4 * (9 + 1) * 128
    assert {"score_map", "lowres"}.isdisjoint(extract._places)
