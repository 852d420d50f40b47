"""Engines built for a GPU are opened as the chain there, and closed where that fails."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_on_host import Open, assert_equal

import saccade
from saccade.engines.engine import default_request
from saccade.errors import SaccadeError
from saccade.runtime import loading
from saccade.runtime.chain import Pipeline
from saccade.runtime.gpu_chain import GpuPipeline


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
