"""The check of the kernels on a GPU, tried on the host as a GPU: right ones pass, and each wrong one is found."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from saccade.errors import SaccadeError
from saccade.runtime.launch import KERNELS
from saccade.validate import gpu_kernels
from saccade.validate.gpu_kernels import CHECKS, SMALL_GRIDS, check_kernels, main

GRIDS = (((9, 7), 20), ((1, 30), 5))


def test_right_kernels_pass(new_device: Callable[..., Any]) -> None:
    device = new_device()
    found = check_kernels(device, seed=3, rounds=2, grids=GRIDS)
    assert found == {name: {"cases": 4, "wrong": []} for name in CHECKS}
    assert set(KERNELS) <= set(device.calls)


OUTPUTS = {
    "preprocess": ("saccade_preprocess_fp16", "lowres"),
    "select": ("saccade_rank", "indices"),
    "gather": ("saccade_gather_16bit", "kept_positions"),
    "fill": ("saccade_fill", "out"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_kernel_with_one_other_bit_is_found(new_device: Callable[..., Any], name: str) -> None:
    device, (kernel, output) = new_device(), OUTPUTS[name]
    launch = device.launch

    def spoilt(asked: str, params: Any, shape: Any, stream: int) -> None:
        launch(asked, params, shape, stream)
        if asked == kernel:
            where = ctypes.c_uint8.from_address(getattr(params, output))
            device.enqueue("spoil", (), lambda: setattr(where, "value", where.value ^ 1), stream)

    device.launch = spoilt
    found = check_kernels(device, seed=3, rounds=1, grids=GRIDS)
    assert {each: bool(result["wrong"]) for each, result in found.items()} == {each: each == name for each in CHECKS}
    assert found[name]["wrong"] == ["9x7 k 20", "1x30 k 5"]


def test_the_command_says_what_it_found(
    new_device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_kernels, "open_device", new_device)
    monkeypatch.setattr(gpu_kernels, "SMALL_GRIDS", GRIDS)
    assert main(["--rounds", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: 2 cases, 0 wrong" for name in CHECKS]
    monkeypatch.setattr(gpu_kernels, "CHECKS", {"fill": lambda *arguments: False})
    assert main([]) == 1
    assert capsys.readouterr().out == "fill: 2 cases, 2 wrong 9x7 k 20 1x30 k 5\n"
    assert len(SMALL_GRIDS) == 2


def test_the_command_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing() -> None:
        raise SaccadeError("no GPU 0 here")

    monkeypatch.setattr(gpu_kernels, "open_device", nothing)
    assert main([]) == 1
    assert capsys.readouterr().err == "saccade: no GPU 0 here\n"
