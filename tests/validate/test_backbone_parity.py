"""A faithful engine of a plain backbone passes, and each kind of broken one fails by the number that should see it."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import saccade
from saccade.backbone_golden import BackboneCase, backbone_cases_of
from saccade.engines.engine import Engine
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import load_backbone, read_backbone
from saccade.runtime.backbone import BackbonePipeline
from saccade.validate.backbone_parity import BackboneResult, measure_backbone
from saccade.validate.tolerances import BACKBONE_TOLERANCES, FLOOR_FACTOR
from saccade.validate.verify import verify

NUMBERS = ("cls", "patches", "patches_p1", "cls_last4", "attention", "difference")
Arrays = dict[str, np.ndarray]


class Altered(Engine):
    """An engine whose inputs or outputs are changed on their way."""

    def __init__(self, engine: Engine, before: Callable[[Arrays], Arrays], after: Callable[[Arrays], Arrays]) -> None:
        self.role, self.inputs, self.outputs = engine.role, engine.inputs, engine.outputs
        self._engine, self._before, self._after = engine, before, after

    def _run(self, feed: Any) -> Arrays:
        outputs = self._engine.run(self._before(dict(feed)))
        return self._after({name: array.copy() for name, array in outputs.items()})


@pytest.fixture(scope="module")
def pipeline(small_backbone: Callable[[str], Path]) -> Iterator[BackbonePipeline]:
    opened = saccade.load(small_backbone("neco"), engine="onnxruntime", note=lambda line: None)
    assert isinstance(opened, BackbonePipeline)
    with opened:
        yield opened


@pytest.fixture(scope="module")
def cases(pipeline: BackbonePipeline) -> list[BackboneCase]:
    return backbone_cases_of(pipeline.bundle)


@pytest.fixture
def altered(pipeline: BackbonePipeline, cases: list[BackboneCase]) -> Callable[..., BackboneResult]:
    """Return a function that measures the pipeline with one tensor of its graph changed by `change`."""

    def measure(name: str, change: Callable[[np.ndarray], np.ndarray]) -> BackboneResult:
        def changed(arrays: Arrays) -> Arrays:
            return arrays | {name: change(arrays[name])} if name in arrays else arrays

        engine = Altered(pipeline.engines["backbone"], changed, changed)
        broken = BackbonePipeline(pipeline.bundle, pipeline.model, {"backbone": engine}, pipeline.receipt)
        return measure_backbone(broken, cases)

    return measure


def values(result: BackboneResult) -> dict[str, float]:
    return {measure.name: measure.value for measure in result.measures}


def failed(result: BackboneResult) -> set[str]:
    return {measure.name for measure in result.measures if not measure.passed}


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("family", ["neco", "dino"])
def test_a_faithful_engine_passes_with_room_to_spare(
    family: str, engine: str, small_backbone: Callable[[str], Path]
) -> None:
    with saccade.load(small_backbone(family), engine=engine, note=lambda line: None) as opened:
        result = verify(opened)
    assert tuple(values(result)) == NUMBERS
    assert all(3 * measure.value <= measure.bound for measure in result.measures), values(result)
    assert result.summary()["passed"] is True
    assert result.summary()["images"] == 3


def spoil_first_patches(tokens: np.ndarray) -> np.ndarray:
    tokens[:, : max(1, tokens.shape[1] // 40)] *= -1
    return tokens


def swap_columns(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


# What is broken -> the tensor, how, and the numbers that must see it; no other may.
BROKEN: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], set[str]]] = {
    "cls turned": ("cls", lambda cls: cls[:, ::-1], {"cls", "difference"}),
    "wrong scale": ("tokens", lambda tokens: tokens * np.float32(1.001), {"difference"}),
    "a few patches": ("tokens", spoil_first_patches, {"patches", "patches_p1", "difference"}),
    "tokens shifted": ("tokens", lambda tokens: np.roll(tokens, 1, axis=1), {"patches", "patches_p1", "difference"}),
    "attention shifted": ("attention", lambda rows: np.roll(rows, 1, axis=2), {"attention", "difference"}),
    "blocks in reverse": ("cls_last4", lambda rows: rows[:, ::-1], {"cls_last4", "difference"}),
    "image mirrored": ("image", swap_columns, set(NUMBERS)),
    "positions shifted": ("positions", lambda table: np.roll(table, 1, axis=0), set(NUMBERS)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_seen_by_its_numbers_and_no_others(case: str, altered: Callable[..., BackboneResult]) -> None:
    name, change, expected = BROKEN[case]
    result = altered(name, change)
    assert failed(result) == expected, values(result)
    assert not result.passed


class TorchEngine(Engine):
    """The checkpoint's module, run in PyTorch."""

    def __init__(self, module: nn.Module, engine: Engine) -> None:
        self.role, self.inputs, self.outputs = engine.role, engine.inputs, engine.outputs
        self._module = module

    @torch.inference_mode()
    def _run(self, feed: Any) -> Arrays:
        results = self._module(*(torch.from_numpy(feed[name]) for name in self.inputs))
        return dict(zip(self.outputs, (tensor.contiguous().numpy() for tensor in results), strict=True))


def with_large_eps(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5


def with_tanh_gelu(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    exact = functional.gelu
    patch.setattr(functional, "gelu", lambda x: exact(x, approximate="tanh"))


@pytest.mark.parametrize("mistake", [None, with_large_eps, with_tanh_gelu])
def test_mistakes_of_an_export_do_not_pass_in_fp32(
    mistake: Callable[[nn.Module, pytest.MonkeyPatch], None] | None,
    pipeline: BackbonePipeline,
    cases: list[BackboneCase],
    small_backbone: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = read_backbone(small_backbone("neco").with_suffix(".pt"), "neco")
    module = load_backbone(checkpoint, ("attention", "cls_last4"))
    if mistake:
        mistake(module, monkeypatch)
    engine = TorchEngine(module, pipeline.engines["backbone"])
    broken = BackbonePipeline(pipeline.bundle, pipeline.model, {"backbone": engine}, pipeline.receipt)
    result = measure_backbone(broken, cases)
    assert result.passed == (mistake is None), values(result)


@pytest.mark.parametrize("name", ["cls", "tokens", "attention", "cls_last4"])
def test_a_single_nan_fails(name: str, altered: Callable[..., BackboneResult]) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[(-1,) * array.ndim] = np.nan
        return array

    result = altered(name, spoil)
    assert "difference" in failed(result)
    assert len(failed(result)) >= 2
    json.dumps(result.summary(), allow_nan=False)


def test_attention_is_measured_in_shares_of_a_head(altered: Callable[..., BackboneResult]) -> None:
    """A hundredth of the mass is moved from the largest patch of each head to the smallest."""

    def move(rows: np.ndarray) -> np.ndarray:
        for row in rows.reshape(-1, rows.shape[-1]):
            low, high = np.argmin(row), np.argmax(row)
            row[low] += np.float32(0.01)
            row[high] -= np.float32(0.01)
        return rows

    assert values(altered("attention", move))["attention"] == pytest.approx(0.01, rel=1e-3)


def test_the_bound_of_the_difference_grows_with_the_noise_of_float32(
    pipeline: BackbonePipeline, cases: list[BackboneCase]
) -> None:
    noisy = [replace(case, floor=dict.fromkeys(case.outputs, 1e-4)) for case in cases]
    for measured, bound in ((cases, BACKBONE_TOLERANCES["fp32"].difference), (noisy, FLOOR_FACTOR * 1e-4)):
        (difference,) = [each for each in measure_backbone(pipeline, measured).measures if each.name == "difference"]
        assert difference.bound == pytest.approx(bound)


def test_no_images_are_refused(pipeline: BackbonePipeline) -> None:
    with pytest.raises(SaccadeError, match="parity needs at least one image"):
        measure_backbone(pipeline, [])


def test_a_lower_precision_has_wider_bounds() -> None:
    ordered = [BACKBONE_TOLERANCES[precision] for precision in ("fp32", "fp16", "bf16", "int8", "fp8")]
    for name in NUMBERS:
        bounds = [getattr(tolerance, name) for tolerance in ordered]
        assert bounds == sorted(bounds), name


BLOCKED = """
import sys
for name in {absent!r}:
    sys.modules[name] = None  # makes every import of it fail
from saccade.cli.main import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verify_and_pictures_need_neither_torch_nor_onnx(
    precision: str, small_backbone: Callable[[str], Path], photo_folder: Path, tmp_path: Path
) -> None:
    absent = ("torch", "onnx", "onnxscript", "onnx_ir", "polygraphy", "sklearn", "scipy", "matplotlib")
    bundle = str(small_backbone("dino"))
    arguments = ["verify", bundle, "--precision", precision, "--json"]
    if precision == "fp32":
        pictures = ["--pca", str(tmp_path / "pca.png"), "--attention", str(tmp_path / "heads.png")]
        run = ["run", bundle, str(photo_folder / "00.png"), *pictures, "--attention-mass", "0.6"]
        script = BLOCKED.format(absent=absent, arguments=run)
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(absent=absent, arguments=arguments)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 3
