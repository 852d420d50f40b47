"""What an export onto a bundle loses: said in one line, and refused where it would cost much to make again."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.cli.main import main
from saccade.cli.replacing import Losses, losses_of
from saccade.errors import SaccadeError


def test_nothing_is_lost_where_there_is_no_bundle(tmp_path: Path) -> None:
    assert losses_of(tmp_path / "gone") == losses_of(tmp_path) == Losses()
    assert Losses().lines() == []


def test_a_fresh_export_loses_nothing_but_its_engines(small_bundle: Callable[[str], Path]) -> None:
    assert (losses_of(small_bundle("segment")).graphs, losses_of(small_bundle("segment")).verdicts) == ((), 0)


def test_engines_of_a_bundle_that_cannot_be_read_are_still_named_by_their_receipts(
    small_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("engines")
    bundle = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=ignored)
    assert main(["build", str(bundle), "--engine", "onnxruntime"]) == 0
    (built,) = (bundle / "engines").glob("onnxruntime-*")
    built.rename(built.with_name(f"tensorrt-fp16-{built.name.rpartition('-')[2]}"))
    (bundle / "engines/tensorrt-fp16-without-a-receipt").mkdir()
    (bundle / "bundle.json").write_text("{")
    assert losses_of(bundle) == Losses(engines=("onnxruntime-fp32",))


def test_what_is_lost_is_one_line_with_the_commands_that_make_it_again() -> None:
    lost = Losses(("int8",), ("openvino-fp32", "openvino-int8"), 2)
    assert lost.lines() == [
        "gone with the bundle that was there: converted graphs (int8), built engines (openvino-fp32, openvino-int8), "
        "2 of parity's and verify's verdicts; again by 'saccade convert | build | verify'"
    ]


@pytest.mark.parametrize(("lost", "what"), [
    (Losses(("bf16", "int8")), "converted graphs (bf16, int8)"),
    (Losses(engines=("openvino-fp32", "tensorrt-fp16")), "TensorRT engines (tensorrt-fp16)"),
])  # fmt: skip
def test_what_is_costly_is_refused_by_name(lost: Losses, what: str) -> None:
    with pytest.raises(SaccadeError) as raised:
        lost.refuse_costly(Path("bundle"))
    assert str(raised.value) == f"bundle holds {what}; choose another place, or --force it"


def test_engines_that_a_run_makes_again_are_not_refused() -> None:
    Losses(engines=("onnxruntime-int8", "openvino-fp32"), verdicts=3).refuse_costly(Path("bundle"))
