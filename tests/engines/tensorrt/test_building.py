"""TensorRT-RTX engines, really built from small transformers: what is in them, and in which precision it runs."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_graphs import DIM, PREFIX, RTX, job, quiet, request

from saccade.bundle import Bundle
from saccade.engines import tensorrt as module
from saccade.engines import tensorrt_build
from saccade.engines.audit import audit_lines
from saccade.engines.tensorrt_build import build_in_child, import_binding
from saccade.errors import SaccadeError


def test_a_build_leaves_one_plan_for_each_graph_and_nothing_else(built: Any) -> None:
    folder, result, _ = built["fp16"]
    assert result.files == {"selector": "selector.engine", "extractor": "extractor.engine"}
    assert sorted(path.name for path in folder.iterdir()) == ["extractor.engine", "selector.engine"]
    assert all((folder / file).read_bytes().startswith(b"vtrt") for file in result.files.values())


def test_a_build_names_its_phases_by_role(built: Any) -> None:
    phases = built["fp32"][2]
    assert phases[:3] == [
        "selector: parsing selector.fp32.onnx",
        "selector: building the engine",
        "selector: writing selector.engine",
    ]
    assert len(phases) == 6


def test_fp16_attention_is_fused_in_every_block_with_batch_and_k_dynamic(built: Any) -> None:
    for role, block_count in (("selector", 2), ("extractor", 2)):
        audit = built["fp16"][1].audit[role]
        assert (audit["attention_blocks"], audit["fused_attention"]) == (block_count, block_count)
        assert audit["softmax_kernels"] == 0
        assert audit["warnings"] == []


def test_fp32_attention_is_not_fused_and_that_is_expected(built: Any) -> None:
    audit = built["fp32"][1].audit["extractor"]
    assert (audit["attention_blocks"], audit["fused_attention"], audit["softmax_kernels"]) == (2, 0, 2)
    assert audit["warnings"] == []
    assert audit_lines(audit)[1].startswith("expected: TensorRT never fuses attention in fp32")


def test_the_audit_counts_gemms_and_norms_by_precision(built: Any) -> None:
    selector, extractor = (built["fp16"][1].audit[role] for role in ("selector", "extractor"))
    assert extractor["gemms"] == {"fp16": 2 * 4 + 1}  # qkv, projection and two of the MLP; the patch embedding
    assert selector["gemms"] == {"fp16": 2 * 4 + 1, "fp32": 1}  # the head stays fp32
    assert extractor["norms"] == {"fp32": 5}
    assert built["fp32"][1].audit["extractor"]["gemms"] == {"fp32": 2 * 6 + 1}  # and two products of each attention


def test_an_fp32_graph_under_the_name_of_fp16_is_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    plain = bundle.path / bundle.graph("extractor", "fp32").file
    finished = build_in_child(job(bundle, tmp_path / "e", onnx=str(plain), precision="fp16"), quiet)
    assert any("GEMMs run in fp16" in warning for warning in finished.audit.warnings)
    assert any("attention blocks are not fused" in warning for warning in finished.audit.warnings)


def test_an_engine_for_fewer_patches_than_it_would_be_tuned_for_is_built(bundle: Bundle, tmp_path: Path) -> None:
    build_in_child(job(bundle, tmp_path / "e", extents=module.profile_of(request(max_k=4, opt_k=136), 14)), quiet)
    assert (tmp_path / "e").stat().st_size > 0


def test_several_compute_capabilities_go_into_one_engine(bundle: Bundle, tmp_path: Path) -> None:
    targets = ("SM89", "SM120")
    finished = build_in_child(job(bundle, tmp_path / "e", precision="fp16", compute_capabilities=targets), quiet)
    assert finished.audit.fused_attention == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_rtx_engine_is_built_so_that_no_pass_of_it_allocates(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    trt = import_binding("tensorrt-rtx")
    builder = trt.Builder(tensorrt_build.process_log(trt, keep_lines=True))
    config = tensorrt_build._config(trt, job(bundle, tmp_path, precision=precision), builder)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else a CUDA graph of it is luck
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_a_failed_build_does_not_change_the_next_one(bundle: Bundle, tmp_path: Path) -> None:
    def build(name: str, *targets: str) -> int:
        """Return the size: the bytes differ from build to build in the order of tensors, even in one process each."""
        build_in_child(job(bundle, tmp_path / name, compute_capabilities=targets), quiet)
        return (tmp_path / name).stat().st_size

    before = build("before")
    with pytest.raises(SaccadeError):
        build("failed", "SM75")
    assert build("after") == before


@pytest.mark.gpu
@pytest.mark.skipif(not RTX.capabilities().can_run, reason="no GPU that TensorRT-RTX runs on")
def test_an_engine_agrees_with_onnxruntime(bundle: Bundle, built: Any) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder, result, _ = built["fp32"]
    engine = RTX.load(bundle, request(device="0"), folder, result)["extractor"]
    session = ort.InferenceSession(bundle.path / "extractor.fp32.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    for batch, k in ((1, 16), (3, 7)):
        shapes = {"patches": (batch, k, 588), "positions": (batch, k, DIM), "prefix": (batch, PREFIX, DIM)}
        feed = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        np.testing.assert_allclose(engine.run(feed)["tokens"], session.run(["tokens"], feed)[0], rtol=1e-3, atol=1e-4)
    engine.close()
