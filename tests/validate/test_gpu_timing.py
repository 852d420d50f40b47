"""What is timed on a GPU, in the order torch would do it, on a torch.cuda of ours that takes what the real one takes."""
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from saccade.validate import gpu_timing  # noqa: E402 - needs torch
from saccade.validate.gpu_report import EAGER, GRAPHED, Times  # noqa: E402
from saccade.validate.gpu_timing import REPEATS, TURNS, WARM_UPS  # noqa: E402
from saccade.validate.torch_engine import on_stream  # noqa: E402

CPU = torch.device("cpu")


class Cuda:
    """Records what is asked of torch.cuda, after the real function's signature has taken the arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.milliseconds = 0.0
        for name in ("Event", "Stream", "ExternalStream", "CUDAGraph", "synchronize", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, self.checked(name, getattr(torch.cuda, name), getattr(self, name)))

    def checked(self, name: str, real: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
        is_class = inspect.isclass(real)
        made_by = real.__init__ if name == "graph" else real.__new__ if is_class else real
        signature = inspect.signature(made_by)

        def call(*arguments: Any, **options: Any) -> Any:
            signature.bind(*([real] if is_class else []), *arguments, **options)
            return ours(*arguments, **options)

        return call

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        cuda = self

        class Event:
            at = -1.0

            def record(self) -> None:
                self.at = cuda.milliseconds
                cuda.done.append("record")

            def synchronize(self) -> None:
                cuda.done.append("wait for event")

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        return Event()

    def Stream(self, device: Any = None) -> Any:
        return self.ExternalStream(5)

    def ExternalStream(self, handle: int, device: Any = None) -> Any:
        cuda = self

        class Stream:
            cuda_stream = handle

            def synchronize(self) -> None:
                cuda.done.append("synchronize a stream")

        return Stream()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.done.append(f"on {stream.cuda_stream}")
        yield

    def synchronize(self) -> None:
        self.done.append("synchronize")

    def CUDAGraph(self) -> Any:
        class Graph:
            def replay(graph) -> None:
                self.done.append("replay")

        return Graph()

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.done.append("capture")
        yield
        self.done.append("captured")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_work_is_timed_by_events_on_its_stream_after_warm_ups(cuda: Cuda) -> None:
    def work() -> None:
        cuda.milliseconds += 2.0
        cuda.done.append("work")

    assert gpu_timing.elapsed_ms(work, 77, CPU) == Times(2.0, 2.0, 2.0, TURNS)
    assert cuda.done == ["on 77", *["record", "work", "record", "wait for event"] * (WARM_UPS + TURNS)]


def test_bandwidth_counts_the_bytes_read_and_those_written(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(gpu_timing, "elapsed_ms", lambda run, stream, device: run() or Times(0.5, 0, 0, 1))
    assert gpu_timing.copy_bandwidth(CPU) == 2 * (1 << 20) / 0.5e-3


def test_a_call_is_waited_for_before_it_is_timed_and_at_its_end(cuda: Cuda) -> None:
    found = gpu_timing.call_ms(lambda: cuda.done.append("call"))
    assert found.runs == TURNS
    assert 0 < found.p10 <= found.median <= found.p90
    assert cuda.done == ["synchronize", "call", "synchronize"] * (WARM_UPS + TURNS)


def test_a_step_is_timed_many_times_in_one_graph(new_device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    device, passes = new_device(), []
    monkeypatch.setattr(gpu_timing, "elapsed_ms", lambda run, stream, where: run() or Times(40.0, 20.0, 60.0, 1))
    with device.current():
        stream = device.create_stream()

    def step(stream: int) -> None:
        device.enqueue("step", (), lambda: passes.append(1), stream)

    assert gpu_timing.step_ms(step, device, stream, CPU) == Times(2.0, 1.0, 3.0, 1)
    device.destroy_stream(stream)
    assert len(passes) == 2 * REPEATS  # the warm run, and the graph
    assert device.graphs == {}


def test_torch_works_on_a_stream_of_somebody_else(cuda: Cuda) -> None:
    with on_stream(9, CPU):
        assert cuda.done == ["on 9"]


def test_pytorch_is_timed_eager_compiled_and_both_in_a_graph_after_warm_runs(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module(torch.nn.Module):
        def __init__(self, *given: Any) -> None:
            super().__init__()

        def forward(self, images: Any) -> Any:
            cuda.done.append("frame")
            return images

    class Subject:
        class bundle:
            class model:
                patch = 14

    monkeypatch.setattr(gpu_timing, "Unsplit", Module)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: lambda images: cuda.done.append("compiled") or images)
    images = torch.from_numpy(np.zeros((1, 28, 28, 3), np.uint8))
    ways = gpu_timing.pytorch_frames(Subject, images, 2)  # type: ignore[arg-type]
    expected = {
        EAGER: ["synchronize", "frame"],
        "PyTorch fp16, torch.compile": ["synchronize", "compiled"],
        "PyTorch fp16, in a CUDA graph": ["on 5", *["frame"] * 3, "synchronize a stream", "capture", "frame", "captured"],
        GRAPHED: ["on 5", *["compiled"] * 3, "synchronize a stream", "capture", "compiled", "captured"],
    }
    assert list(ways) == list(expected)
    for name, way in ways.items():
        cuda.done.clear()
        assert way().runs == TURNS
        assert cuda.done[: len(expected[name])] == expected[name]
        assert cuda.done[-2] == ("replay" if "CUDA graph" in name else "frame" if name == EAGER else "compiled")


def test_images_are_random_and_the_same_for_each_batch_size() -> None:
    images = gpu_timing.random_images(2, 28, CPU)
    assert (images.shape, images.dtype) == ((2, 28, 28, 3), torch.uint8)
    assert torch.equal(images, gpu_timing.random_images(2, 28, CPU))
