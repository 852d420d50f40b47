"""A budget in milliseconds buys the largest k whose measured time fits."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_on_host import Open, assert_equal, crops, on_device

from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.gpu_chain import GpuPipeline


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
