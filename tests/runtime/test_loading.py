"""What a pipeline is loaded with: a static pair of engines beside the dynamic one, and an extractor without tokens."""
from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade import Output, Pipeline, SaccadeError
from saccade.engines import store
from saccade.engines.engine import Engine
from saccade.engines.openvino import OpenVINOEngine
from saccade.runtime.chain import Look

K = 9
TWO = {"streams": 2}
# Kernels for one shape may sum in another order than those for any: float32 over 128 terms.
ANOTHER_ORDER = {"rtol": 1e-4, "atol": 2e-5}

Bundles = Callable[[str], Path]
Opener = Callable[..., Pipeline]


@pytest.fixture
def opened(small_bundle: Bundles) -> Iterator[Opener]:
    """Return a function that loads the small bundle of a kind."""
    loaded: list[Pipeline] = []

    def load(kind: str = "dinov2", **options: object) -> Pipeline:
        loaded.append(saccade.load(small_bundle(kind), note=lambda line: None, **options))  # type: ignore[arg-type]
        return loaded[-1]

    yield load
    for pipeline in loaded:
        pipeline.close()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Return a count of the runs of each OpenVINO engine, as "static selector" or "dynamic extractor"."""
    counts: collections.Counter[str] = collections.Counter()
    run = OpenVINOEngine._run

    def counted(engine: OpenVINOEngine, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        fixed = all(isinstance(extent, int) for spec in engine.inputs.values() for extent in spec.shape)
        counts[f"{'static' if fixed else 'dynamic'} {engine.role}"] += 1
        return run(engine, feed)

    monkeypatch.setattr(OpenVINOEngine, "_run", counted)
    return counts


def assert_close(found: Look, expected: Look) -> None:
    assert isinstance(found, Output) and isinstance(expected, Output)
    assert found.arrays().keys() == expected.arrays().keys()
    for name, array in expected.arrays().items():
        np.testing.assert_allclose(found.arrays()[name], array, err_msg=name, **ANOTHER_ORDER)


# ---- the static pair


@pytest.mark.parametrize("kind", ["dinov2", "franca", "classify", "segment"])
def test_a_call_of_its_shape_runs_on_the_static_pair_and_gives_the_same(
    kind: str, opened: Opener, photographs: list[np.ndarray], runs: collections.Counter[str]
) -> None:
    expected = opened(kind)(photographs[0], k=K)
    runs.clear()
    assert_close(opened(kind, static=K)(photographs[0], k=K), expected)
    assert runs == {"static selector": 1, "static extractor": 1}


def test_any_other_call_runs_on_the_dynamic_engines_with_the_same_bits(
    opened: Opener, photographs: list[np.ndarray], runs: collections.Counter[str]
) -> None:
    both, dynamic = opened(static=K), opened()
    expected = dynamic(photographs, k=K)
    runs.clear()
    found = both(photographs, k=K)
    assert runs == {"dynamic selector": 1, "dynamic extractor": 1}
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array, err_msg=name)
    runs.clear()
    assert_close(both(photographs[0], k=K + 1), dynamic(photographs[0], k=K + 1))
    assert runs["static selector"] == 1  # which has no k
    assert (runs["static extractor"], runs["dynamic extractor"]) == (0, 2)


def test_every_size_and_aspect_ratio_runs_on_the_static_pair(
    opened: Opener, photographs: list[np.ndarray], runs: collections.Counter[str]
) -> None:
    both, dynamic = opened(static=K), opened()
    for size in ((126, 126), (70, 140), (224, 42)):
        runs.clear()
        found = both(photographs[1], k=K, size=size)
        assert runs == {"static selector": 1, "static extractor": 1}
        assert_close(found, dynamic(photographs[1], k=K, size=size))


def test_true_means_the_bundles_k(opened: Opener) -> None:
    pipe = opened(static=True)
    assert pipe.static_k == 8  # a tenth of 9x9 cells
    assert pipe.static_receipt is not None
    assert pipe.static_receipt.conditions["static_k"] == "8"
    assert pipe.static_receipt.key != pipe.receipt.key
    assert opened().static_k is None


def test_a_stream_runs_on_the_static_pair_in_every_lane(
    opened: Opener, photographs: list[np.ndarray], runs: collections.Counter[str]
) -> None:
    pipe = opened(static=K, streams=2, threads=2)
    alone = [pipe(image, k=K) for image in photographs]
    runs.clear()
    for index, found in enumerate(pipe.stream(photographs * 3, k=K)):
        for name, array in alone[index % 2].arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array, err_msg=name)
    assert runs == {"static selector": 6, "static extractor": 6}


def test_closing_closes_all_four_engines(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(OpenVINOEngine, "_close", lambda engine: closed.append(engine.role))
    opened(static=K).close()
    assert sorted(closed) == ["extractor", "extractor", "selector", "selector"]


def test_where_the_static_pair_cannot_be_loaded_the_dynamic_one_is_closed(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Engine] = []
    load = store.load

    def once(*given: object) -> dict[str, Engine]:
        if loaded:
            raise SaccadeError("no memory left")
        engines = load(*given)  # type: ignore[arg-type]
        loaded.extend(engines.values())
        return engines

    monkeypatch.setattr(store, "load", once)
    with pytest.raises(SaccadeError, match="no memory left"):
        opened(static=K)
    assert [engine._closed for engine in loaded] == [True, True]


@pytest.mark.parametrize("static", [0, -1, 148 * 148 + 1, 1.5, "9", None])
def test_a_static_k_that_cannot_be_is_refused(static: object, opened: Opener) -> None:
    with pytest.raises(SaccadeError, match=rf"static {static!r} is no k; give True for the bundle's, or 1 to 21904"):
        opened(static=static)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("onnxruntime", {"static": K}, "onnxruntime has no static engines; leave static out, or use openvino"),
        ("tensorrt-rtx", {"static": True}, "tensorrt-rtx has no static engines; leave static out, or use openvino"),
        ("onnxruntime", {"cls_only": True}, "onnxruntime always computes every token; leave cls_only out, or use openvino"),
        ("tensorrt", TWO, "tensorrt runs one frame at a time; leave streams at 1, or use openvino or onnxruntime"),
    ],
)
def test_what_an_engine_does_not_offer_is_refused(
    engine: str, options: dict[str, object], message: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ensure", lambda *_, **__: pytest.fail("an engine was built"))
    with pytest.raises(SaccadeError) as error:
        opened(engine=engine, **options)
    assert str(error.value) == message


# ---- cls alone


@pytest.mark.parametrize(("kind", "output"), [("dinov2", "cls"), ("classify", "logits")])
@pytest.mark.parametrize("static", [False, K])
def test_without_tokens_all_else_is_the_same(
    kind: str, output: str, static: bool | int, opened: Opener, photographs: list[np.ndarray]
) -> None:
    found = opened(kind, cls_only=True, static=static)(photographs[0], k=K)
    expected = opened(kind)(photographs[0], k=K)
    assert found.tokens.size == 0
    assert found.arrays().keys() == expected.arrays().keys() - {"tokens"}
    assert output in found.arrays()
    for name, array in found.arrays().items():
        np.testing.assert_allclose(array, expected.arrays()[name], err_msg=name, **ANOTHER_ORDER)


def test_without_tokens_nothing_dense_can_be_had(opened: Opener, photographs: list[np.ndarray]) -> None:
    pipe = opened(cls_only=True)
    out = pipe(photographs[0], k=K)
    refusal = "dense output is filled from patch tokens, and there are none; load without cls_only"
    with pytest.raises(SaccadeError, match=refusal):
        pipe(photographs[0], k=K, dense=True)
    with pytest.raises(SaccadeError, match=refusal):
        pipe.extract(pipe.pixels(photographs[0]), out.indices, out.prefix, dense=True)


def test_a_segmentation_without_tokens_is_refused(opened: Opener) -> None:
    with pytest.raises(SaccadeError, match="segments, and gives nothing but patch tokens; leave cls_only out"):
        opened("segment", cls_only=True)
