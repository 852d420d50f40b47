"""The roof's models are chains of products with the networks' shapes, whose values stay in range."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest

from saccade.bundle import read_bundle
from saccade.validate import roof
from saccade.validate.bench_plan import ROOF, Side


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_product_model_passes_noise_through_all_its_weights(precision: str) -> None:
    model = roof.product_model(6, [(64, 192), (64, 64), (64, 256), (256, 64)], precision)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (result,) = compiled(np.random.default_rng(1).standard_normal((6, 64), dtype=np.float32)).values()
    assert result.shape == (6, 64)
    assert 0.5 < result.std() < 2
    assert sum(op.get_type_name() == "MatMul" for op in model.get_ops()) == 4
    assert sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops()) == (4 if precision == "int8" else 0)


def test_the_stacks_have_the_rows_of_the_batch_and_the_weights_of_every_block(small_bundle: Callable[[str], Path]) -> None:
    model = read_bundle(small_bundle("dinov2")).model
    found = roof.stacks(model, 8, 2)
    assert {name: (rows, len(products)) for name, (rows, products) in found.items()} == {
        "selector": (2 * (121 + 5), 4), "extractor": (2 * (8 + 5), 8), "hot": (2048, 1)
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_roof_times_each_stack_and_knows_its_work(
    precision: str, small_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roof, "HOT", 64)
    side = Side("r", str(small_bundle("dinov2")), "openvino", precision, None, (126, 126), 8, 1, 1, None, ROOF)
    with roof.open_roof(side) as (frame, versions, gflop):
        times = frame()
    assert times["frame"] == pytest.approx(sum(times[name] for name in gflop))
    assert gflop["hot"] == pytest.approx(2 * 64**3 / 1e9)
    assert gflop["extractor"] == pytest.approx(2 * 13 * 12 * 128**2 * 2 / 1e9)  # two blocks of 12 D^2 weights
    assert list(versions) == ["openvino"]
