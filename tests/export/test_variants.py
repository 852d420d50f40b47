"""The files of a precision: what two of them share, and that TensorRT-RTX makes of them what they are for."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from saccade import read_bundle
from saccade.bundle import Precision, Variant
from saccade.engines import store
from saccade.engines.engine import default_request
from saccade.export.precision import narrow
from saccade.export.variants import RECIPES, VARIANTS_OF, Scales, write_variant

ROLES = ("selector", "extractor")
VARIANTS = tuple(name for name in get_args(Variant) if name != "fp32")

VariantOf = Callable[[str, str, str], Path]


def constants(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(v.const_value.numpy()) for name, v in ir.load(path).graph.initializers.items()}


def test_every_precision_and_every_variant_has_its_recipe() -> None:
    assert set(VARIANTS_OF) == {name for name in get_args(Precision) if name != "fp32"}
    assert {variant for variants in VARIANTS_OF.values() for variant in variants} == set(RECIPES) == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_valid_graph_with_the_inputs_and_outputs_of_fp32(
    variant: str, kind: str, role: str, variant_of: VariantOf, small_bundle: Callable[[str], Path]
) -> None:
    path = variant_of(kind, role, variant)
    onnx.checker.check_model(str(path), full_check=True)
    found, original = onnx.load(path), onnx.load(small_bundle(kind) / f"{role}.onnx")
    assert list(found.graph.input) == list(original.graph.input)
    assert list(found.graph.output) == list(original.graph.output)
    assert found.metadata_props == original.metadata_props
    assert found.opset_import == original.opset_import


def test_both_int8_files_have_the_same_quantised_weights_and_the_same_scales(
    kind: str, role: str, variant_of: VariantOf
) -> None:
    plain, half = (constants(variant_of(kind, role, variant)) for variant in ("int8", "int8-fp16"))
    names = [name for name in plain if name.endswith((".quantized", ".scale", ".zero_point"))]
    assert len(names) == {"selector": 1 * 3, "extractor": 2 * 4}[role] * (3 + 2)  # blocks x layers
    for name in names:
        other = half[f"{name}.float16"].astype(np.float32) if name.endswith(".scale") else half[name]
        np.testing.assert_array_equal(plain[name], other, err_msg=name)


def test_int8_fp16_is_int8_narrowed(
    kind: str, role: str, variant_of: VariantOf, run_graph: Callable[..., dict[str, np.ndarray]],
    feeds_of: Callable[..., list[dict[str, np.ndarray]]], tmp_path: Path,
) -> None:  # fmt: skip
    model, feed = ir.load(variant_of(kind, role, "int8")), feeds_of(kind, role)[0]
    narrow(model.graph, "fp16")
    ir.save(model, tmp_path / "narrowed.onnx")
    expected = run_graph(tmp_path / "narrowed.onnx", feed)
    for name, array in run_graph(variant_of(kind, role, "int8-fp16"), feed).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_the_same_scales_give_the_same_bytes(
    small_bundle: Callable[[str], Path], variant_of: VariantOf, scales_of: Callable[..., Scales], tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    write_variant(small_bundle("dinov2") / "extractor.onnx", again, "int8-fp16", scales_of("dinov2", "extractor", "int8"))
    assert again.read_bytes() == variant_of("dinov2", "extractor", "int8-fp16").read_bytes()


def test_one_block_alone_is_between_fp32_and_the_whole(
    small_bundle: Callable[[str], Path], scales_of: Callable[..., Scales], tmp_path: Path
) -> None:
    source, scales = small_bundle("dinov2") / "extractor.onnx", scales_of("dinov2", "extractor", "fp8")
    for block in (0, 1):
        write_variant(source, tmp_path / "some.onnx", "fp8", scales, blocks=(block,))
        onnx.checker.check_model(str(tmp_path / "some.onnx"), full_check=True)
        held = constants(tmp_path / "some.onnx")
        changed = {name.split(".")[2] for name in held if name.endswith((".float16", ".quantized")) and ".blocks." in name}
        assert changed == {str(block)}
        assert sum(name.endswith("weight.quantized") for name in held) == 4


# ---- TensorRT-RTX


# Of one block of the selector and two of the extractor. The patch embedding is a product as well: in fp16 in both graphs,
# in bf16 in the extractor, never quantised; nor is what a GELU of the selector feeds.
@pytest.mark.parametrize(
    ("precision", "products"), [("fp16", (5, 9)), ("bf16", (4, 9)), ("int8", (3, 8)), ("fp8", (3, 8))]
)
def test_tensorrt_rtx_fuses_attention_in_every_block(
    precision: str, products: tuple[int, int], converted_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")
    path = shutil.copytree(converted_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    bundle = read_bundle(path)
    _, receipt = store.ensure(bundle, default_request(bundle, "tensorrt-rtx", precision), lambda phase: None, print)
    assert receipt.audit is not None
    for role, depth, expected in zip(ROLES, (1, 2), products, strict=True):
        audit = receipt.audit[role]
        assert (audit["attention_blocks"], audit["fused_attention"], audit["softmax_kernels"]) == (depth, depth, 0)
        assert audit["gemms"][precision] == expected
        assert audit["warnings"] == []
