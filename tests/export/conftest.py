"""What the tests of conversion share: the chain's own inputs of each graph, and the variants made from them."""
from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from saccade import read_bundle
from saccade.bundle import Variant
from saccade.export.calibration import Statistics
from saccade.export.quantization import round_weights
from saccade.export.variants import RECIPES, Scales, write_variant
from saccade.validate.gate import Judge

KINDS = ("dinov2", "franca", "classify", "segment")
ROLES = ("selector", "extractor")
Feed = dict[str, np.ndarray]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return each kind of small bundle in turn; a file that needs fewer has a fixture of its own."""
    return request.param


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    """Return each graph's role in turn."""
    return request.param


@pytest.fixture(scope="session")
def feeds_of(small_bundle: Callable[[str], Path], photo_folder: Path) -> Callable[[str, str], list[Feed]]:
    """Return a function from kind and role to the graph's inputs on eight photographs. Read only."""

    @functools.cache
    def feeds(kind: str, role: str) -> list[Feed]:
        with Judge(read_bundle(small_bundle(kind))) as judge:
            found = [judge.feed(role, path) for path in sorted(photo_folder.iterdir())[:8]]
            return [{name: np.array(array) for name, array in feed.items()} for feed in found]

    return feeds


@pytest.fixture(scope="session")
def statistics_of(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]]
) -> Callable[[str, str], Statistics]:
    """Return a function from kind and role to the statistics of the fp32 graph's activations."""

    @functools.cache
    def statistics(kind: str, role: str) -> Statistics:
        return Statistics(small_bundle(kind) / f"{role}.onnx", feeds_of(kind, role))

    return statistics


@pytest.fixture(scope="session")
def scales_of(
    small_bundle: Callable[[str], Path], statistics_of: Callable[[str, str], Statistics]
) -> Callable[[str, str, str], Scales]:
    """Return a function from kind, role and number format to min-max ranges and the rounded weights."""

    @functools.cache
    def scales(kind: str, role: str, quantized: str) -> Scales:
        statistics = statistics_of(kind, role)
        weights = round_weights(small_bundle(kind) / f"{role}.onnx", quantized, statistics.covariances)
        return Scales(statistics.ranges("minmax"), weights)

    return scales


@pytest.fixture(scope="session")
def variant_of(
    tmp_path_factory: pytest.TempPathFactory,
    small_bundle: Callable[[str], Path],
    scales_of: Callable[[str, str, str], Scales],
) -> Callable[[str, str, Variant], Path]:
    """Return a function from kind, role and variant to that graph's file. Read only."""
    folder = tmp_path_factory.mktemp("variants")

    @functools.cache
    def write(kind: str, role: str, variant: Variant) -> Path:
        quantized = RECIPES[variant].quantized
        path = folder / f"{kind}.{role}.{variant}.onnx"
        scales = scales_of(kind, role, quantized) if quantized else None
        write_variant(small_bundle(kind) / f"{role}.onnx", path, variant, scales)
        return path

    return write


@pytest.fixture(scope="session")
def run_graph() -> Callable[[Path, Feed], Feed]:
    """Return a function that runs a graph file in ONNX Runtime as it is written."""

    def run(path: Path, feed: Feed) -> Feed:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    return run
