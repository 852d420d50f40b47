"""The chain on a GPU that the host plays, its networks run by OpenVINO, and the chain on a CPU beside it."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import saccade
from saccade.runtime.chain import Pipeline
from saccade.runtime.gpu_chain import GpuPipeline

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside the tests
from gpu_on_host import REFERENCE, Open


@pytest.fixture(scope="session")
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
