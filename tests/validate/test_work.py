"""The count of operations is that of the matrix products, by hand and as the graphs themselves have them."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from saccade.bundle import Model, read_bundle
from saccade.export.anatomy import block_products
from saccade.validate import work

VIT_B = Model(
    family="lookwhere", dim=768, heads=12, depth=12, selector_depth=3, ffn="gelu", hidden=3072, map_hidden=3072, prefix=5,
    patch=14, selector_size=154, map_size=44, base_grid=(37, 37),
)  # fmt: skip
SMALL = msgspec.structs.replace(VIT_B, dim=64, heads=1, depth=2, selector_depth=1, hidden=256, map_hidden=256, prefix=1)


def test_a_vit_b_at_518_px_with_136_patches_takes_31_gflop() -> None:
    assert sum(work.frame_gflop(VIT_B, "features", 136, 1).values()) == pytest.approx(31, abs=0.5)


def test_the_extractor_equals_a_count_by_hand() -> None:
    rows = 10 + 1
    block = 2 * rows * (64 * 192 + 64 * 64 + 64 * 256 + 256 * 64) + 2 * rows * rows * 64 + 2 * rows * rows * 64
    assert work.extractor_gflop(SMALL, "features", 10) * 1e9 == pytest.approx(2 * 10 * 588 * 64 + 2 * block)


def test_the_last_block_of_cls_alone_equals_a_count_by_hand() -> None:
    rows = 10 + 1
    whole = 2 * rows * (64 * 192 + 64 * 64 + 64 * 256 + 256 * 64) + 2 * rows * rows * 64 + 2 * rows * rows * 64
    last = 2 * rows * 64 * 192 + 2 * (64 * 64 + 64 * 256 + 256 * 64) + 2 * rows * 64 + 2 * rows * 64
    found = work.extractor_gflop(SMALL, "features", 10, cls_only=True)
    assert found * 1e9 == pytest.approx(2 * 10 * 588 * 64 + whole + last)


def test_the_selector_equals_a_count_by_hand() -> None:
    rows = 11 * 11 + 1
    block = 2 * rows * (64 * 192 + 64 * 64 + 64 * 256 + 256 * 64) + 2 * rows * rows * 64 + 2 * rows * rows * 64
    head = 2 * 121 * 64 * 256 + 2 * 121 * 256 * 16
    assert work.selector_gflop(SMALL) * 1e9 == pytest.approx(2 * 121 * 588 * 64 + block + head)


def test_heads_gates_and_batches_count() -> None:
    classes = msgspec.structs.replace(SMALL, classes=10)
    plain = work.extractor_gflop(SMALL, "features", 8)
    assert (work.extractor_gflop(classes, "classify", 8) - plain) * 1e9 == pytest.approx(2 * 64 * 10)
    assert (work.extractor_gflop(classes, "segment", 8) - plain) * 1e9 == pytest.approx(2 * 8 * 64 * 10)
    assert work.block_products(msgspec.structs.replace(SMALL, ffn="swiglu"))[2] == (64, 512)
    assert work.frame_gflop(SMALL, "features", 8, 3) == {
        "selector": 3 * work.selector_gflop(SMALL), "extractor": 3 * work.extractor_gflop(SMALL, "features", 8)
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["dinov2", "franca", "classify"])
def test_the_products_of_a_block_are_those_of_the_exported_graph(
    kind: str, small_bundle: Callable[[str], Path]
) -> None:
    bundle = read_bundle(small_bundle(kind))
    nodes = block_products(ir.load(bundle.path / "extractor.onnx").graph)
    shapes = [np.shape(node.inputs[1].const_value.numpy()) for node in nodes]
    assert shapes == work.block_products(bundle.model) * bundle.model.depth
