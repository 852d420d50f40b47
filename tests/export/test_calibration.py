"""Ranges and covariances: what ONNX Runtime's outputs say directly, and what no range can be taken from."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.export import calibration
from saccade.export.calibration import (
    LEVELS,
    METHODS,
    Activations,
    Statistics,
    channel_maxima,
    clip_of,
    smallest_error_clip,
)
from saccade.export.histogram import BINS, Histogram

KINDS = ("dinov2", "franca")
LAYERS = {
    "selector": ("attn.qkv", "attn.proj", "mlp.fc1"),
    "extractor": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
}

Feed = dict[str, np.ndarray]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def activations(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]], kind: str, role: str
) -> dict[str, np.ndarray]:
    """Return what the layers of the blocks read on all images, (rows, channels), by ONNX Runtime alone."""
    model = onnx.load(small_bundle(kind) / f"{role}.onnx")
    layers = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith(".weight")]
    names = list(dict.fromkeys(n.input[0] for n in layers if any(layer in n.input[1] for layer in LAYERS[role])))
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(names, feed) for feed in feeds_of(kind, role)]
    return {name: np.concatenate([run[i].reshape(-1, run[i].shape[-1]) for run in runs]) for i, name in enumerate(names)}


@pytest.fixture
def statistics(statistics_of: Callable[[str, str], Statistics], kind: str, role: str) -> Statistics:
    return statistics_of(kind, role)


def test_minmax_is_the_largest_value_of_all_images(statistics: Statistics, activations: dict[str, np.ndarray]) -> None:
    expected = {name: float(np.abs(values).max()) for name, values in activations.items()}
    assert statistics.ranges("minmax") == pytest.approx(expected, rel=1e-6)


def test_channel_maxima_are_the_largest_of_each_channel(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]], kind: str, role: str,
    activations: dict[str, np.ndarray],
) -> None:  # fmt: skip
    found = channel_maxima(small_bundle(kind) / f"{role}.onnx", iter(feeds_of(kind, role)))
    assert found.keys() == activations.keys()
    for name, values in activations.items():
        np.testing.assert_allclose(found[name], np.abs(values).max(axis=0), rtol=1e-5, atol=1e-6)


def test_the_covariance_is_the_mean_of_products(statistics: Statistics, activations: dict[str, np.ndarray]) -> None:
    for name, values in activations.items():
        exact = values.astype(np.float64)
        expected = exact.T @ exact / len(exact)
        np.testing.assert_allclose(statistics.covariances[name], expected, atol=1e-5 * np.abs(expected).max())


def test_a_percentile_keeps_its_share_of_the_values(statistics: Statistics, activations: dict[str, np.ndarray]) -> None:
    for name, clip in statistics.ranges("percentile").items():
        values = np.abs(activations[name])
        bin_width, share = 2 * float(values.max()) / BINS, calibration.PERCENTILE / 100
        assert (values <= clip + bin_width).mean() >= share
        assert (values <= clip - 2 * bin_width).mean() <= share


@pytest.mark.parametrize("method", METHODS)
def test_every_method_clips_between_nothing_and_the_largest_value(
    method: str, small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibration, "Histogram", lambda: Histogram(256))  # entropy's search takes the third power of it
    path, feeds = small_bundle("dinov2") / "selector.onnx", feeds_of("dinov2", "selector")[:2]
    statistics = Statistics(path, feeds)
    largest = statistics.ranges("minmax")
    for name, clip in statistics.ranges(method).items():
        assert 0.1 * largest[name] < clip <= largest[name], name


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@given(seed=st.integers(0, 2**32 - 1), tail=st.floats(4, 30))
def test_the_clip_of_the_smallest_error_is_as_good_as_any(scale: float, seed: int, tail: float) -> None:
    """Measured on the values themselves, of which the histogram knows only the bins."""
    values = np.abs(np.random.default_rng(seed).standard_t(tail, 20_000)) * scale
    counts, edges = np.histogram(values, bins=2048, range=(0, values.max()))

    def error(clip: float) -> float:
        step = clip / LEVELS
        return float(np.mean((np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values) ** 2))

    best = min(error(clip) for clip in np.linspace(0.01, 1, 100) * values.max())
    assert error(smallest_error_clip(counts, edges)) <= 1.03 * best


def test_without_tails_nothing_is_clipped() -> None:
    assert smallest_error_clip(np.ones(2048), np.linspace(0, 3, 2049)) == pytest.approx(3, rel=0.02)


def write_with_nan(source: Path, target: Path) -> None:
    model = ir.load(source)
    name = "backbone.blocks.0.norm2.bias"
    bias = np.array(model.graph.initializers[name].const_value.numpy())
    bias[7] = np.nan
    model.graph.initializers[name].const_value = ir.tensor(bias, name=name)
    ir.save(model, target)


@pytest.mark.parametrize("measure", [channel_maxima, Statistics])
def test_activations_that_are_no_numbers_are_refused_by_name(
    measure: Callable[..., object], small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]],
    tmp_path: Path,
) -> None:  # fmt: skip
    write_with_nan(small_bundle("dinov2") / "selector.onnx", tmp_path / "nan.onnx")
    name = Activations(tmp_path / "nan.onnx").names[2]  # behind the second norm
    message = rf"^activation '{name}' is not finite on a calibration image; check the weights$"
    with pytest.raises(SaccadeError, match=message):
        measure(tmp_path / "nan.onnx", feeds_of("dinov2", "selector"))


def test_activations_whose_squares_overflow_are_refused_by_name(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]], tmp_path: Path
) -> None:
    """Rounding makes good what it can by their covariance, and would fail on infinity with a traceback."""
    model = ir.load(small_bundle("dinov2") / "selector.onnx")
    name = "backbone.blocks.0.norm2.bias"
    bias = np.array(model.graph.initializers[name].const_value.numpy())
    bias[7] = 1e25
    model.graph.initializers[name].const_value = ir.tensor(bias, name=name)
    ir.save(model, tmp_path / "large.onnx")
    large = Activations(tmp_path / "large.onnx").names[2]
    with pytest.raises(SaccadeError, match=rf"^activation '{large}' is too large to be squared in float32; check the"):
        Statistics(tmp_path / "large.onnx", feeds_of("dinov2", "selector")[:2])


@pytest.mark.parametrize("measure", [channel_maxima, Statistics])
def test_no_images_at_all_are_refused(measure: Callable[..., object], small_bundle: Callable[[str], Path]) -> None:
    message = "^calibration saw no images; give a folder of them with --calibration$"
    with pytest.raises(SaccadeError, match=message):
        measure(small_bundle("dinov2") / "selector.onnx", iter(()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-6, 0.3, -0.3, 3e4, 1e30])
def test_an_activation_that_is_always_the_same_is_clipped_at_its_value(method: str, value: float) -> None:
    """As a flat image makes them; numbers so large have no room for bins between themselves and the next."""
    histogram = Histogram(256)
    for _ in range(2):
        histogram.add(np.full((5, 4), value, np.float32))
    assert clip_of(histogram, method) == pytest.approx(abs(value), rel=0.02)
    assert clip_of(histogram, method) <= abs(np.float32(value))


def test_a_graph_that_gives_the_same_on_every_row_is_calibrated(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]], tmp_path: Path
) -> None:
    model = ir.load(small_bundle("dinov2") / "selector.onnx")
    for name, value in (("backbone.blocks.0.norm2.weight", 0), ("backbone.blocks.0.norm2.bias", 3e4)):
        model.graph.initializers[name].const_value = ir.tensor(np.full(128, value, np.float32), name=name)
    ir.save(model, tmp_path / "same.onnx")
    statistics = Statistics(tmp_path / "same.onnx", feeds_of("dinov2", "selector")[:2])
    same = Activations(tmp_path / "same.onnx").names[2]
    for method in ("minmax", "percentile", "mse"):
        assert statistics.ranges(method)[same] == pytest.approx(3e4, rel=0.01)


def test_an_activation_that_is_always_zero_has_an_empty_range(
    small_bundle: Callable[[str], Path], feeds_of: Callable[[str, str], list[Feed]], tmp_path: Path
) -> None:
    model = ir.load(small_bundle("dinov2") / "selector.onnx")
    for name in ("backbone.blocks.0.norm2.weight", "backbone.blocks.0.norm2.bias"):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros(128, np.float32), name=name)
    ir.save(model, tmp_path / "dead.onnx")
    statistics = Statistics(tmp_path / "dead.onnx", feeds_of("dinov2", "selector")[:2])
    dead = Activations(tmp_path / "dead.onnx").names[2]
    assert {method: statistics.ranges(method)[dead] for method in ("minmax", "percentile", "mse")} == dict.fromkeys(
        ("minmax", "percentile", "mse"), 0.0
    )
