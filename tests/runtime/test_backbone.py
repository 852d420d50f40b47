"""Plain backbones from checkpoint to features: export, engines and the pipeline, against PyTorch."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saccade
from saccade import read_bundle
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.golden import relative_difference
from saccade.runtime.backbone import MAX_CACHED_TABLES, BackbonePipeline
from saccade.validate.gate import Judge

Family = pytest.mark.parametrize("family", ["neco", "dinov2", "dino"])
ENGINES = ("openvino", "onnxruntime")


@pytest.fixture
def checkpoint(small_backbone: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda family: small_backbone(family).with_suffix(".pt")


@pytest.fixture
def bundle(small_backbone: Callable[[str], Path]) -> Callable[[str], Path]:
    return small_backbone


def opened(path: Path, engine: str = "openvino", **options: int) -> BackbonePipeline:
    pipeline = saccade.load(path, engine=engine, **options)
    assert isinstance(pipeline, BackbonePipeline)
    return pipeline


@Family
@pytest.mark.parametrize("engine", ENGINES)
def test_features_equal_pytorch_at_other_sizes_and_batches(
    checkpoint: Callable[[str], Path],
    bundle: Callable[[str], Path],
    photographs: list[np.ndarray],
    family: str,
    engine: str,
) -> None:
    extras = ("attention", "cls_last4")
    reference = BackboneReference(read_backbone(checkpoint(family), family), extras)
    model = read_bundle(bundle(family)).manifest.model
    patch = model.patch
    with opened(bundle(family), engine) as pipe:
        for size in ((6 * patch, 6 * patch), (4 * patch, 11 * patch), (13 * patch, 5 * patch)):
            out = pipe(photographs, size=size)
            truth = reference(pipe.pixels(photographs, size))
            for name, array in out.arrays().items():
                assert array.dtype == np.float32
                assert relative_difference(array, truth[name]) < 2e-5, (name, size)
            assert out.dense.shape == (2, model.dim, size[0] // patch, size[1] // patch)
            np.testing.assert_array_equal(out.dense[1, :, 0, 2], out.tokens[1, 2])
            np.testing.assert_array_less(out.attention.sum(axis=2), 1)  # the rest is on cls and registers


def test_the_family_decides_how_positions_are_resized(
    bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    with opened(bundle("neco")) as neco, opened(bundle("dinov2")) as dinov2:
        own, other = (9 * 14, 9 * 14), (5 * 14, 7 * 14)
        np.testing.assert_array_equal(neco(photographs[0], size=own).tokens, dinov2(photographs[0], size=own).tokens)
        assert np.abs(neco(photographs[0], size=other).tokens - dinov2(photographs[0], size=other).tokens).max() > 0.01


def test_a_stream_gives_what_calls_give(bundle: Callable[[str], Path], photographs: list[np.ndarray]) -> None:
    with opened(bundle("dino"), streams=2) as pipe:
        frames = [photographs[index % 2] for index in range(5)]
        calls = [pipe(frame, size=48).tokens for frame in frames]
        for expected, out in zip(calls, pipe.stream(frames, size=48), strict=True):
            np.testing.assert_allclose(out.tokens, expected, atol=1e-5)


def test_no_more_than_a_few_position_tables_are_kept(
    bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    with opened(bundle("dino")) as pipe:
        for columns in range(1, 2 * MAX_CACHED_TABLES):
            pipe(photographs[0], size=(8, 8 * columns))
        assert len(pipe._positions) == MAX_CACHED_TABLES


def test_a_file_that_cannot_tell_its_family_needs_it_said(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint("neco")), "-o", str(tmp_path / "b")]) == 1
    assert "say --family neco or --family dinov2" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("option", [["--k", "3"], ["--k-ratio", "0.1"], ["--task", "classify"]])
def test_what_only_lookwhere_has_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main(["export", str(checkpoint("dino")), "-o", str(tmp_path / "b"), *option]) == 1
    assert f"{option[0]} means nothing to a plain backbone" in capsys.readouterr().err


def test_inspect_says_what_a_backbone_is(bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle("neco"))]) == 0
    out = capsys.readouterr().out
    assert "neco, task features" in out
    for line in (
        "from ViT of width 128/14, 4 blocks of 2 heads, 4 registers, gelu of 512, LayerScale, DINOv2 names, family neco",
        "backbone: 4 blocks, width 128, 2 heads, gelu, patch 14, hidden width 512, LayerScale",
        "prefix: 5 rows (cls and 4 registers)",
        "positions on a 9x9 grid, 126 x 126 px; to other grids by scale factor with 0.1 added, no antialias",
        "outputs: cls, tokens, attention, cls_last4",
        "parity: onnxruntime fp32 equal to PyTorch on 3 images",
        "golden.npz",
    ):
        assert line in out, line
    assert main(["inspect", str(bundle("neco")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["position_rule"] == "scale-factor"


@pytest.mark.parametrize("wish", [{"cls_only": True}, {"static": True}, {"static": 9}], ids=str)
def test_forms_that_only_lookwhere_has_are_refused(wish: dict[str, Any], bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="is a plain neco backbone, not LookWhere; give a LookWhere bundle"):
        saccade.load(bundle("neco"), **wish)


def test_what_a_call_of_lookwhere_takes_is_refused(bundle: Callable[[str], Path], photographs: list[np.ndarray]) -> None:
    with opened(bundle("dino")) as pipe:
        call: Callable[..., Any]
        for call in (pipe, pipe.stream):
            for name, value in {"k": 3, "k_ratio": 0.1, "dense": True}.items():
                with pytest.raises(SaccadeError, match=f"^{name} means nothing to a plain backbone, which sees every patch"):
                    call(photographs, **{name: value})
            with pytest.raises(TypeError, match="a plain backbone takes size and fit, not 'sise'"):
                call(photographs, sise=48)
        assert len(pipe(photographs, size=48, k=None, dense=False).cls) == 2
        with pytest.raises(SaccadeError, match="a plain backbone has none; call the pipeline itself"):
            pipe.look(photographs[0], size=48)


def test_a_backbone_and_its_features_are_shown_in_a_line(
    bundle: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    with opened(bundle("dino"), "onnxruntime") as pipe:
        assert repr(pipe) == "<BackbonePipeline dino: dino, onnxruntime fp32, 48 x 48 px by default>"
        assert repr(pipe(photographs, size=(16, 24))) == (
            "Features(cls=float32 [2, 64], tokens=float32 [2, 6, 64], attention=float32 [2, 1, 6], "
            "cls_last4=float32 [2, 4, 64])"
        )


def test_a_judge_of_selections_refuses_a_backbone(bundle: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="is a plain neco backbone, not LookWhere; give a LookWhere bundle"):
        Judge(saccade.read_bundle(bundle("neco")))
