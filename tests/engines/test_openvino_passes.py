"""Static and cls-only graphs give what the whole graph gives, and compute no more than they are for."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade import Bundle, SaccadeError, read_bundle
from saccade.engines.engine import Engine, EngineRequest
from saccade.engines.openvino import OpenVINOBackend
from saccade.engines.openvino_passes import keep_cls_alone

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]' in the clone")

BACKEND = OpenVINOBackend()
PREFIX = {"dinov2": 5, "franca": 1, "classify": 5}
# Kernels for one shape may sum in another order than those for any: float32 over 128 terms.
ANOTHER_ORDER = {"rtol": 1e-4, "atol": 2e-5}

Feeds = Callable[..., dict[str, np.ndarray]]
Bundles = Callable[[str], Path]


@pytest.fixture
def extractor(tmp_path: Path) -> Callable[..., Engine]:
    """Return a function from a bundle and the fields of a request to its freshly built extractor."""

    def build(bundle: Bundle, **fields: Any) -> Engine:
        request = EngineRequest(engine="openvino", device="cpu", **fields)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        built = BACKEND.build(bundle, request, folder, lambda phase: None)
        return BACKEND.load(bundle, request, folder, built)["extractor"]

    return build


def feed(kind: str, batch: int, k: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(k)
    shapes = {"patches": (batch, k, 588), "positions": (batch, k, 128), "prefix": (batch, PREFIX[kind], 128)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (1, 9), (3, 6)])
@pytest.mark.parametrize(("kind", "output"), [("dinov2", "cls"), ("franca", "cls"), ("classify", "logits")])
def test_the_cls_row_alone_equals_that_of_all_rows(
    kind: str, output: str, batch: int, k: int, small_bundle: Bundles, extractor: Callable[..., Engine]
) -> None:
    bundle = read_bundle(small_bundle(kind))
    found = extractor(bundle, cls_only=True).run(feed(kind, batch, k))
    assert list(found) == [output]
    expected = extractor(bundle, cls_only=False).run(feed(kind, batch, k))
    np.testing.assert_allclose(found[output], expected[output], **ANOTHER_ORDER)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_cls_row_of_every_precision_is_that_of_the_whole_graph(
    precision: str, converted_bundle: Path, extractor: Callable[..., Engine]
) -> None:
    if precision not in BACKEND.capabilities().precisions:
        pytest.skip(f"this CPU has no {precision} instructions")
    bundle, given = read_bundle(converted_bundle), feed("dinov2", 1, 9)
    found = extractor(bundle, precision=precision, cls_only=True).run(given)["cls"]
    whole = extractor(bundle, precision=precision).run(given)["cls"]
    exact = extractor(bundle, precision="fp32", threads=1).run(given)["cls"]
    own_error = np.abs(whole - exact).max()
    assert np.abs(found - whole).max() <= max(0.5 * own_error, 2e-5)


@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("kind", ["dinov2", "classify"])
def test_a_static_graph_equals_the_dynamic_one(
    kind: str, cls_only: bool, small_bundle: Bundles, extractor: Callable[..., Engine]
) -> None:
    bundle, given = read_bundle(small_bundle(kind)), feed(kind, 1, 9)
    found = extractor(bundle, static_k=9, cls_only=cls_only).run(given)
    expected = extractor(bundle).run(given)
    assert found.keys() == expected.keys() - ({"tokens"} if cls_only else set())
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], err_msg=name, **ANOTHER_ORDER)


def test_a_static_engine_refuses_any_other_shape(bundle: Bundle, extractor: Callable[..., Engine], feed_of: Feeds) -> None:
    engine = extractor(bundle, static_k=9)
    for batch, k in ((1, 8), (2, 9)):
        expected = rf"extractor: input 'patches' must be float32 \[1, 9, 588\], got float32 \[{batch}, {k}, 588\]"
        with pytest.raises(SaccadeError, match=expected):
            engine.run(feed_of("extractor", batch, k))


def test_behind_the_keys_and_values_the_last_block_has_one_row(bundle: Bundle, extractor: Callable[..., Engine]) -> None:
    compiled = extractor(bundle, static_k=9, cls_only=True)._compiled  # type: ignore[attr-defined]
    products = [node for node in compiled.get_runtime_model().get_ordered_ops() if is_weight_product(node)]
    rows = [int(np.prod(node.output(0).get_shape()[:-1])) for node in products]
    # The patches; qkv, proj, fc1, fc2 of the first block on the 5 rows before them too; qkv of the second; cls alone.
    assert rows == [9, *[14] * 4, 14, 1, 1, 1]


def is_weight_product(node: Any) -> bool:
    return bool(node.get_rt_info()["layerType"].astype(str) == "FullyConnected")


def test_a_graph_without_blocks_is_refused_in_one_line() -> None:
    rows = openvino.opset8.parameter([1, 4, 8], np.float32)
    model = openvino.Model([openvino.opset8.softmax(rows, 2)], [rows])
    with pytest.raises(SaccadeError, match="last block without Split or VariadicSplit; leave cls_only out"):
        keep_cls_alone(model)
