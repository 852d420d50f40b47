"""The chain on a GPU that the host plays: bit for bit the numbers of the chain on a CPU, and CUDA's rules kept."""
from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import saccade
from saccade.bundle import TensorSpec
from saccade.engines.engine import default_request
from saccade.errors import SaccadeError
from saccade.runtime import loading
from saccade.runtime.chain import Output, Pipeline
from saccade.runtime.device import LEGACY_STREAM
from saccade.runtime.device_arrays import DeviceArray
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.gpu_frame import check_types
from saccade.runtime.gpu_frames import MAX_FRAMES
from saccade.runtime.gpu_in_flight import SLOTS
from saccade.runtime.gpu_output import DeviceLook, DeviceOutput
from saccade.validate.verify import verify

SELECTOR = ["saccade_preprocess_fp32", "selector", "saccade_resize_scores", "saccade_rank"]
REFERENCE = -1  # the number of the chain on the CPU that others are compared with
KERNELS = [*SELECTOR, "saccade_gather_32bit", "extractor"]
Open = Callable[..., GpuPipeline]


@pytest.fixture(scope="module")
def on_host(small_bundle: Callable[[str], Path]) -> Iterator[Callable[[str, int], Pipeline]]:
    """Return a function from a kind and a number to a chain on the CPU, opened once: that takes longer than most tests."""
    opened: dict[tuple[str, int], Pipeline] = {}

    def open_one(kind: str, number: int) -> Pipeline:
        if (kind, number) not in opened:
            found = saccade.load(small_bundle(kind), engine="openvino", threads=1, note=lambda line: None)
            assert isinstance(found, Pipeline)
            opened[kind, number] = found
        return opened[kind, number]

    yield open_one
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture
def open_gpu(
    on_host: Callable[[str, int], Pipeline], new_device: Callable[..., Any], host_device: Any
) -> Iterator[Open]:
    """Return a function that opens a bundle on a GPU of ours, its networks run by OpenVINO; memory is checked at the end."""
    opened: list[tuple[GpuPipeline, Any]] = []

    def open_one(kind: str = "dinov2", *, device: Any = None, max_k: int = 1 << 30, **options: Any) -> GpuPipeline:
        device = device or new_device()
        host = on_host(kind, len(opened))
        engines = {role: host_device.HostEngine(device, engine, max_k) for role, engine in host.engines.items()}
        receipt = msgspec.structs.replace(host.receipt, conditions=dict(host.receipt.conditions))  # tests change them
        opened.append((GpuPipeline(host.bundle, engines, receipt, device, **options), device))
        return opened[-1][0]

    yield open_one
    for pipeline, device in opened:
        pipeline.close()
        assert device.graphs == {}
        assert len(device._streams) == 1
        assert device._events == {}


@pytest.fixture
def cpu(on_host: Callable[[str, int], Pipeline]) -> Pipeline:
    return on_host("dinov2", REFERENCE)


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


# ---- the numbers


@pytest.mark.parametrize("kind", ["dinov2", "franca", "classify", "segment"])
@pytest.mark.parametrize("graphs", [True, False])
def test_every_task_has_the_bits_of_the_chain_on_a_cpu(
    open_gpu: Open, on_host: Callable[[str, int], Pipeline], photographs: list[np.ndarray], kind: str, graphs: bool
) -> None:
    pipeline, reference = open_gpu(kind, graphs=graphs), on_host(kind, REFERENCE)
    for images, options in ((crops(photographs, 1), {"k": 9}), (crops(photographs, 3), {"k_ratio": 0.5, "dense": True})):
        for _ in range(2):
            assert_equal(pipeline(images, size=126, **options), reference(images, size=126, **options))  # type: ignore


@pytest.mark.parametrize(("size", "k"), [((126, 126), 1), ((126, 126), 81), ((70, 196), 12), ((14, 14), 1), ((252, 98), 60)])
def test_any_grid_and_k_have_the_bits_of_the_chain_on_a_cpu(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], size: tuple[int, int], k: int
) -> None:
    assert_equal(open_gpu()(photographs, size=size, k=k), cpu(photographs, size=size, k=k))


def test_shapes_may_change_from_call_to_call(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    for batch, size, k in ((1, 126, 9), (2, 126, 9), (1, 70, 9), (1, 126, 20), (1, 126, 9), (2, 126, 9)):
        images = crops(photographs, batch)
        assert_equal(pipeline(images, size=size, k=k), cpu(images, size=size, k=k))


def test_photographs_are_fitted_as_for_a_cpu(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    for fit in ("squash", "crop"):
        assert_equal(pipeline(photographs, fit=fit, k=11), cpu(photographs, fit=fit, k=11))
    native = crops(photographs, 2, (131, 150))
    assert_equal(pipeline(native, fit="native", k=11), cpu(native, fit="native", k=11))


def test_look_gives_the_map_of_the_chain_on_a_cpu(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    ours, theirs = open_gpu().look(photographs, size=126), cpu.look(photographs, size=126)
    for name in ("score_map", "prefix", "raw_score_map"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("kind", ["dinov2", "segment"])
def test_extract_on_given_cells_gives_what_a_cpu_gives(
    open_gpu: Open, on_host: Callable[[str, int], Pipeline], photographs: list[np.ndarray], kind: str
) -> None:
    images, random = crops(photographs, 2), np.random.default_rng(0)
    cells = np.stack([random.permutation(81)[:10] for _ in images])
    prefix = random.standard_normal((2, 5, 128)).astype(np.float32)
    pipelines = open_gpu(kind), on_host(kind, REFERENCE)
    assert_equal(*(each.extract(images, cells, prefix, dense=True) for each in pipelines))


def test_the_self_test_of_a_bundle_passes(open_gpu: Open) -> None:
    result = verify(open_gpu())
    assert result.passed, result.measures


def test_outputs_belong_to_the_caller(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_gpu()
    first = pipeline(photographs[0], size=126, k=9)
    kept = {name: array.copy() for name, array in first.arrays().items()}
    pipeline(photographs[1], size=126, k=9)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(first, name), array)


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


# The tensors that are given and taken in 16 bits. The prefix is a result too, which NumPy would not have in bfloat16.
SMALL = {
    "float16": {"selector": ("lowres", "prefix"), "extractor": ("patches", "positions", "prefix")},
    "bfloat16": {"selector": ("lowres",), "extractor": ("patches", "positions")},
}


class Rounding:
    """A network of the host whose tensors in SMALL are rounded to 16 bits by torch, and where `typed` lie in memory so."""

    def __init__(self, network: Any, dtype: str, *, typed: bool) -> None:
        self.network, self.role, self.typed, self.dtype = network, network.role, typed, dtype
        self.names = SMALL[dtype][self.role]
        self.inputs, self.outputs = (self._specs(specs) for specs in (network.inputs, network.outputs))

    def _specs(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        small = {name: TensorSpec(name, self.dtype, specs[name].shape) for name in self.names if name in specs}  # type: ignore
        return specs | small if self.typed else specs

    def _wide(self, array: np.ndarray) -> np.ndarray:
        torch = pytest.importorskip("torch")
        kind = getattr(torch, self.dtype)
        tensor = torch.from_numpy(array.copy())
        found: np.ndarray = (tensor.view(kind) if self.typed else tensor.to(kind)).float().numpy()
        return found

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {name: self._wide(array) if name in self.names else array for name, array in feed.items()}
        found = {name: array.copy() for name, array in self.network.run(wide).items()}
        for name in set(found) & set(self.names):
            narrow = found[name].astype(self.dtype)
            found[name] = narrow if self.typed else narrow.astype(np.float32)
        return found

    def close(self) -> None:
        """The network is not ours."""


@pytest.mark.parametrize("dtype", SMALL)
def test_tensors_in_16_bits_are_the_float32_ones_rounded_once(
    on_host: Callable[[str, int], Pipeline], new_device: Callable[..., Any], host_device: Any, photographs: list[np.ndarray],
    dtype: str,
) -> None:  # fmt: skip
    device, host, plain = new_device(), on_host("dinov2", 0), on_host("dinov2", REFERENCE)
    small = {role: Rounding(network, dtype, typed=True) for role, network in host.engines.items()}
    engines = {role: host_device.HostEngine(device, network) for role, network in small.items()}
    rounded: Any = {role: Rounding(network, dtype, typed=False) for role, network in plain.engines.items()}
    reference = Pipeline(plain.bundle, rounded, plain.receipt)
    with GpuPipeline(host.bundle, engines, host.receipt, device) as pipeline, reference:
        images = crops(photographs, 2)
        ours, theirs = (each(images, size=126, k=9, dense=True) for each in (pipeline, reference))
        assert_equal(ours, theirs)
        kernel = f"saccade_preprocess_{'bf16' if dtype == 'bfloat16' else 'fp16'}"
        assert {kernel, "saccade_gather_16bit"} <= set(device.calls)
        forced = [each.extract(images, theirs.indices, theirs.prefix) for each in (pipeline, reference)]
        np.testing.assert_array_equal(forced[0].tokens, forced[1].tokens)


# ---- graphs


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


# ---- guests


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


# ---- what is refused, before any launch

SQUARE = np.zeros((126, 126, 3), np.uint8)
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


# ---- loading


def built_on(device: Any, pipeline: GpuPipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Let the store load a pipeline's engines as if they had been built for GPU 0."""
    monkeypatch.setattr(loading.store, "load", lambda *given: pipeline.engines)
    monkeypatch.setattr(loading, "read_fatbin", lambda: b"fatbin")
    monkeypatch.setattr(loading, "CudaDevice", device)
    request = default_request(pipeline.bundle, "tensorrt", "fp32", 0)  # type: ignore[arg-type]
    return pipeline.bundle, request, Path(), pipeline.receipt


def test_engines_on_a_device_are_opened_as_the_chain_there(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = open_gpu(), []

    def device(index: int, fatbin: bytes) -> Any:
        asked.append((index, fatbin))
        return first.device

    with loading.open_built(*built_on(device, first, monkeypatch)) as pipeline:
        assert isinstance(pipeline, saccade.GpuPipeline)
        assert_equal(pipeline(photographs[0], size=126, k=9), cpu(photographs[0], size=126, k=9))
    assert asked == [(0, b"fatbin")]


def test_engines_are_closed_where_the_device_cannot_be_opened(open_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def device(index: int, fatbin: bytes) -> Any:
        raise SaccadeError("no GPU 0 here")

    pipeline = open_gpu()
    with pytest.raises(SaccadeError, match="no GPU 0 here"):
        loading.open_built(*built_on(device, pipeline, monkeypatch))
    assert all(engine._closed for engine in pipeline.engines.values())


# ---- streams of frames


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


# ---- threads


def test_pipelines_in_parallel_threads_give_the_same_bits(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]
) -> None:
    frames = crops(photographs, 3)
    expected = [cpu(frame, size=126, k=9) for frame in frames]
    failures: list[BaseException] = []

    def work(pipeline: GpuPipeline) -> None:
        try:
            for _ in range(3):
                for frame, truth in zip(frames, expected, strict=True):
                    assert_equal(pipeline(frame, size=126, k=9), truth)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(open_gpu(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_pipeline_in_use_by_another_thread_is_refused(open_gpu: Open) -> None:
    pipeline = open_gpu()
    with pipeline._entered(), pytest.raises(SaccadeError, match="another thread is running this pipeline"):
        pipeline(SQUARE, size=126)


# ---- k from a budget


class Clock:
    """Nanoseconds that pass by what a frame costs: a tenth of a millisecond for each patch kept."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def open_with_costs(open_gpu: Open, **options: Any) -> GpuPipeline:
    clock = Clock()
    pipeline = open_gpu(clock=clock, **options)
    submit = pipeline._submit

    def timed(shape: Any, *arguments: Any) -> Any:
        clock.now += shape.k * 100_000
        return submit(shape, *arguments)

    pipeline._submit = timed
    return pipeline


def test_a_budget_buys_the_largest_k_that_fits(open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray]) -> None:
    pipeline = open_with_costs(open_gpu)
    out = pipeline(photographs[0], size=126, budget_ms=2.0)
    assert pipeline.budget.choice.measured_ms == {k: k / 10 for k in (1, 4, 8, 12, 16, 24, 32, 40, 60, 81)}
    assert str(pipeline.budget.choice) == "k 16 takes 1.60 ms of 2; k 24 takes 2.40 ms"
    assert_equal(out, cpu(photographs[0], size=126, k=16))


def test_a_budget_measures_images_that_are_still_being_written(
    open_gpu: Open, cpu: Pipeline, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, image = open_with_costs(open_gpu), np.ascontiguousarray(crops(photographs, 1)[0])
    device, late, seen = pipeline.device, np.zeros_like(image), []
    network = pipeline.engines["selector"].network
    run = network.run
    monkeypatch.setattr(network, "run", lambda feed: seen.append(bool(late.any())) or run(feed))
    with device.current():
        stream = device.create_stream()
        device.enqueue("write", (), lambda: np.copyto(late, image), stream)
    out = pipeline(on_device(pipeline, late, stream), size=126, budget_ms=2.0, stream=stream)
    pipeline.wait()
    assert len(seen) > 100
    assert all(seen)
    assert_equal(out, cpu(image, size=126, k=16))
    device.destroy_stream(stream)


def test_a_budget_for_a_dense_output_needs_what_the_fill_blends(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_with_costs(open_gpu, max_k=4)
    pipeline.receipt.conditions["max_k"] = "4"
    message = r"dense output blends 5 patches, and k 4 is the most here \(the grid has 81, the engines were built for 4\)"
    with pytest.raises(SaccadeError, match=message):
        pipeline(photographs[0], size=126, budget_ms=100, dense=True)
    pipeline(photographs[0], size=126, budget_ms=100)
    assert pipeline.budget.choice.k == 4


def test_buckets_are_measured_once_for_a_batch_and_a_grid(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_with_costs(open_gpu)
    for budget in (2.0, 100.0, 0.8):
        pipeline(photographs[0], size=126, budget_ms=budget)
    assert len(pipeline.budget.measured_ms) == 1
    assert str(pipeline.budget.choice) == "k 8 takes 0.80 ms of 0.8; k 12 takes 1.20 ms"
    pipeline(photographs, size=126, budget_ms=100)
    assert len(pipeline.budget.measured_ms) == 2
    assert str(pipeline.budget.choice) == "k 81 takes 8.10 ms of 100, the most there is"


def test_a_budget_that_nothing_fits_names_the_fastest(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    message = "budget_ms 0.05 is not to be had: the fastest measured, k 1, takes 0.10 ms"
    with pytest.raises(SaccadeError, match=message):
        open_with_costs(open_gpu)(photographs[0], size=126, budget_ms=0.05)


def test_a_budget_ends_where_the_memory_does(
    open_gpu: Open, new_device: Callable[..., Any], photographs: list[np.ndarray]
) -> None:
    pipeline = open_with_costs(open_gpu, device=new_device(capacity=7 << 18))
    pipeline(crops(photographs, 3), size=126, budget_ms=100)
    assert pipeline.budget.choice.k == max(pipeline.budget.choice.measured_ms) < 81
    assert str(pipeline.budget.choice).endswith(f"; the GPU has no memory for k {pipeline.budget.choice.beyond_memory}")
    with pytest.raises(SaccadeError, match="bytes of memory are not to be had"):
        pipeline(crops(photographs, 1) * 64, size=126, budget_ms=100)


def test_a_budget_stays_within_what_the_engine_and_the_fill_take(open_gpu: Open, photographs: list[np.ndarray]) -> None:
    pipeline = open_with_costs(open_gpu, max_k=20)
    pipeline.receipt.conditions["max_k"] = "20"
    pipeline(photographs[0], size=126, budget_ms=100, dense=True)
    assert list(pipeline.budget.choice.measured_ms) == [5, 8, 12, 16, 20]
