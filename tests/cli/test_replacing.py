"""What an export onto a bundle loses: said in one line, and refused where it would cost much to make again."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.cli.replacing import Losses, losses_of
from saccade.errors import SaccadeError


def test_nothing_is_lost_where_there_is_no_bundle(tmp_path: Path) -> None:
    assert losses_of(tmp_path / "gone") == losses_of(tmp_path) == Losses()
    assert Losses().lines() == []


def test_a_fresh_export_loses_nothing_but_its_engines(small_bundle: Callable[[str], Path]) -> None:
    assert (losses_of(small_bundle("segment")).graphs, losses_of(small_bundle("segment")).verdicts) == ((), 0)


def test_engines_of_a_bundle_that_cannot_be_read_are_still_named(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{")
    for name in ("openvino-fp32-0123456789abcdef", "openvino-fp32-fedcba9876543210", ".pending-openvino"):
        (tmp_path / "engines" / name).mkdir(parents=True)
    assert losses_of(tmp_path) == Losses(engines=("openvino-fp32",))


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
