"""TensorRT-RTX takes plain backbones: profiles that fit together, engines in every precision, audits that count blocks."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

import saccade
from saccade import SaccadeError, read_bundle
from saccade.cli.main import main
from saccade.engines.engine import EngineRequest, default_request
from saccade.engines.tensorrt import TensorRTBackend, profile_of
from saccade.engines.tensorrt_engine import TensorRTEngine

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")

RTX = TensorRTBackend("tensorrt-rtx")
DEPTH, PATCH = 4, 14


def request(**fields: Any) -> EngineRequest:
    defaults = {"engine": "tensorrt-rtx", "device": "0", "opt_size": (126, 126), "max_size": (126, 126)}
    return EngineRequest(**defaults | fields)


def built(bundle: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["build", str(bundle), "--engine", "tensorrt-rtx", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


sides = some.integers(1, 60)


@given(opt=some.tuples(sides, sides), most=some.tuples(sides, sides), batch=some.integers(1, 64))
def test_rows_are_one_more_than_the_patches_at_every_end(opt: Any, most: Any, batch: int) -> None:
    sizes = {"opt_size": tuple(PATCH * n for n in opt), "max_size": tuple(PATCH * n for n in most)}
    extents = profile_of(request(**sizes, max_batch=batch), PATCH)
    assert list(extents) == ["batch", "height", "width", "rows"]
    for height, width, rows in zip(*(extents[name] for name in ("height", "width", "rows")), strict=True):
        assert rows == 1 + (height // PATCH) * (width // PATCH)
    for least, usual, largest in extents.values():
        assert 1 <= least <= usual <= largest
    assert (extents["batch"][2], extents["height"][2]) == (batch, PATCH * most[0])


def test_a_run_asks_for_the_bundles_size_and_the_whole_base_grid(small_backbone: Callable[[str], Path]) -> None:
    bundle = read_bundle(small_backbone("neco"))
    asked = default_request(bundle, "tensorrt-rtx", "fp32")
    assert (asked.opt_size, asked.max_size) == ((126, 126), (126, 126))
    manifest = bundle.manifest
    smaller = msgspec.structs.replace(manifest.defaults, size=(70, 280))
    bundle.manifest = msgspec.structs.replace(manifest, defaults=smaller)
    asked = default_request(bundle, "tensorrt-rtx", "fp32")
    assert (asked.opt_size, asked.max_size) == ((70, 280), (126, 280))


@pytest.mark.parametrize(
    ("built", "asked", "serves"),
    [
        ({}, {}, True),
        ({"max_size": (252, 252)}, {}, True),
        ({"max_size": (252, 112)}, {}, False),  # larger in all, and still too narrow
        ({}, {"max_size": (126, 140)}, False),
        ({"opt_size": (70, 70)}, {}, True),  # tuned elsewhere: slower, and still right
        ({"max_size": (14, 14)}, {"any_limits": True}, True),
    ],
)
def test_an_engine_serves_images_that_its_profile_holds(built: Any, asked: Any, serves: bool) -> None:
    conditions, wanted = RTX.conditions(request(**built)), RTX.conditions(request(**asked))
    assert RTX.serves(conditions, wanted, request(**asked)) is serves


GEMMS = {
    "fp32": {"fp32": 6 * DEPTH + 2}, "fp16": {"fp16": 4 * DEPTH + 2}, "bf16": {"bf16": 4 * DEPTH + 1},
    "int8": {"int8": 4 * DEPTH, "fp16": 2}, "fp8": {"fp8": 4 * DEPTH, "fp16": 2},
}  # fmt: skip


@pytest.mark.parametrize("precision", GEMMS)
def test_engines_of_every_precision_are_built_and_fuse_each_block(
    precision: str, converted_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = built(converted_backbone, capsys, "--precision", precision)
    audit, fused = data["audit"]["backbone"], 0 if precision == "fp32" else DEPTH
    assert (audit["attention_blocks"], audit["fused_attention"], audit["softmax_kernels"]) == (DEPTH, fused, DEPTH - fused)
    assert audit["gemms"] == GEMMS[precision]  # beside the blocks' the patch embedding, and cls's row of attention
    assert audit["warnings"] == []
    assert data["conditions"]["max_height"] == "126"


def test_larger_images_need_a_larger_profile_and_get_it(
    small_backbone: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = built(small_backbone("neco"), capsys, "--max-size", "112x280", "--max-batch", "2")
    limits = {name: value for name, value in data["conditions"].items() if name.startswith(("max_", "opt_"))}
    assert limits == {
        "max_batch": "2", "max_height": "112", "max_width": "280", "opt_height": "112", "opt_width": "126"
    }  # fmt: skip


def test_an_image_beyond_the_profile_is_refused_with_the_command_that_helps(
    small_backbone: Callable[[str], Path],
) -> None:
    engine = TensorRTEngine.__new__(TensorRTEngine)  # what a GPU would load
    engine._name, engine._build_command = "tensorrt-rtx: backbone", "saccade build b --engine tensorrt-rtx"
    engine.inputs = {each.name: each for each in read_bundle(small_backbone("neco")).graph("backbone", "fp32").inputs}
    most = (8, 3, 126, 126)
    engine._engine = type("Plan", (), {"get_tensor_profile_shape": lambda *_: [(), (), most]})()
    assert str(engine.limits_error("image", (1, 3, 70, 280))) == (
        "tensorrt-rtx: backbone: width 280 is beyond the 126 that the engine was built for; "
        "'saccade build b --engine tensorrt-rtx --max-batch 8 --max-size 126x280' builds a larger one"
    )


OTHERS = {
    "--max-k 40": "--max-k means nothing to a plain backbone, which keeps every patch; give --max-size",
    "--max-size 100": "size 100x100 is not a multiple of the 14 px patch; the nearest is 98x98",
    "--max-batch 0": "--max-batch 0 is out of range; give 1 to 4096",
}


@pytest.mark.parametrize("options", OTHERS)
def test_limits_that_cannot_be_are_one_line(
    options: str, small_backbone: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(small_backbone("neco")), "--engine", "tensorrt-rtx", *options.split()]) == 1
    assert capsys.readouterr().err == f"saccade: error: {OTHERS[options]}\n"


def test_lookwhere_has_no_largest_size(
    small_bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(small_bundle("dinov2")), "--engine", "tensorrt-rtx", "--max-size", "126"]) == 1
    assert "--max-size means nothing to LookWhere, whose engines take any size; give --max-k" in capsys.readouterr().err


def test_a_backbone_has_no_engine_of_cls_alone(small_backbone: Callable[[str], Path]) -> None:
    with pytest.raises(SaccadeError, match="is a plain neco backbone, not LookWhere"):
        saccade.load(small_backbone("neco"), cls_only=True)
