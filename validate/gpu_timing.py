"""Times on a GPU: kernels inside a graph, the stages of a frame, and whole frames of PyTorch to compare with."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.runtime.device import Device
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.gpu_frame import Frame, Step
from saccade.validate.bench_torch import OneGraph
from saccade.validate.gpu_model import TASK, TYPES, Subject
from saccade.validate.gpu_report import EAGER, GRAPHED, TOP_K, Times, times_of
from saccade.validate.torch_attention import with_torch_attention
from saccade.validate.torch_engine import on_stream

REPEATS = 20  # of one step inside a graph, so that its launch is not what is timed
WARM_UPS, TURNS = 5, 30
cuda: Any = torch.cuda  # its classes have no annotations
COPY_BYTES = 1 << 30  # many times any L2


def elapsed_ms(run: Callable[[], None], stream: int, device: torch.device) -> Times:
    """Time work on a stream by events."""
    times = []
    with on_stream(stream, device):
        for turn in range(WARM_UPS + TURNS):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= WARM_UPS:
                times.append(start.elapsed_time(end))
    return times_of(times)


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a copy on the device moves, those read and those written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    stream = cuda.Stream(device)
    taken = elapsed_ms(lambda: void(target.copy_(source)), stream.cuda_stream, device)
    return 2 * COPY_BYTES / (taken.median / 1e3)


def void(value: object) -> None:
    """Drop a result."""
    del value


def step_ms(step: Step, device: Device, stream: int, where: torch.device) -> Times:
    """Return the milliseconds of one step inside a CUDA graph."""

    def many(stream: int) -> None:
        for _ in range(REPEATS):
            step(stream)

    with device.current():
        many(stream)
        device.synchronize(stream)
        graph = device.capture(many, stream)
        try:
            return elapsed_ms(lambda: device.launch_graph(graph, stream), stream, where).divided(REPEATS)
        finally:
            device.destroy_graph(graph)


def frame_of(pipeline: GpuPipeline, images: Tensor, k: int, *, dense: bool = False) -> Frame:
    """Run once and return the frame that did it, with the images where its views say."""
    pipeline(images, k=k, size=(images.shape[1], images.shape[2]), dense=dense)
    return next(reversed(pipeline.frames.frames.values()))


def stages(pipeline: GpuPipeline, images: Tensor, k: int) -> dict[str, Times]:
    """Return the milliseconds of each step of a frame, and of several together as graphs of their own."""
    frame, where = frame_of(pipeline, images, k, dense=True), images.device
    with pipeline.device.current():
        stream = pipeline.device.create_stream()
    found = {name: step_ms(step, pipeline.device, stream, where) for name, step in frame.steps}
    named = dict(frame.steps)

    def select_and_gather(stream: int) -> None:
        for name in ("resize_scores", "rank", "gather"):
            named[name](stream)

    found[TOP_K] = step_ms(select_and_gather, pipeline.device, stream, where)
    pipeline.device.destroy_stream(stream)
    return found


class Unsplit(nn.Module):
    """Everything as upstream runs it: uint8 images on the device -> cls, all patches embedded before the top-k."""

    def __init__(self, subject: Subject, grid: tuple[int, int], k: int) -> None:
        super().__init__()
        self.graph = OneGraph(subject.checkpoint, TASK, grid, k)
        image = subject.bundle.manifest.image
        self.mean, self.std = (nn.Buffer(torch.tensor(each).view(1, 3, 1, 1)) for each in (image.mean, image.std))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, and run both networks."""
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        cls: Tensor = self.graph((pixels - self.mean) / self.std)[0]
        return cls


def call_ms(call: Callable[[], object]) -> Times:
    """Time a call that is waited for, on the host's clock."""
    times = []
    for turn in range(WARM_UPS + TURNS):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        call()
        torch.cuda.synchronize()
        if turn >= WARM_UPS:
            times.append((time.perf_counter_ns() - start) / 1e6)
    return times_of(times)


@torch.inference_mode()
def pytorch_frames(subject: Subject, images: Tensor, k: int) -> dict[str, Callable[[], Times]]:
    """Return, by name, the functions that time PyTorch in fp16 on these images: eager, compiled, and in a CUDA graph."""
    patch = subject.bundle.model.patch
    grid = (images.shape[1] // patch, images.shape[2] // patch)
    module = with_torch_attention(Unsplit(subject, grid, k)).eval().to(device=images.device, dtype=TYPES["fp16"])
    compiled = torch.compile(module, dynamic=False)

    def timed(step: Callable[[Tensor], Tensor]) -> Times:
        with torch.inference_mode():
            return call_ms(lambda: step(images))

    def in_a_graph(step: Callable[[Tensor], Tensor]) -> Times:
        graph = torch.cuda.CUDAGraph()
        side = cuda.Stream()
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                step(images)
            side.synchronize()
            with torch.cuda.graph(graph, stream=side):
                step(images)
        return call_ms(graph.replay)

    return {
        EAGER: lambda: timed(module),
        "PyTorch fp16, torch.compile": lambda: timed(compiled),
        "PyTorch fp16, in a CUDA graph": lambda: in_a_graph(module),
        GRAPHED: lambda: in_a_graph(compiled),
    }


def random_images(batch: int, size: int, device: torch.device) -> Tensor:
    """Return uint8 images on the device, (batch, size, size, 3)."""
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), np.uint8)
    return torch.from_numpy(pixels).to(device)
