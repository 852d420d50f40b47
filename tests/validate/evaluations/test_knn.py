"""The task knn, from a folder of pictures to a verdict."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.cli.main import main


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_digits_are_told_far_above_chance_and_an_engine_equals_itself(
    small_backbone: Callable[[str], Path], digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", 56, "--features", tmp_path, "--compare", "openvino:fp32", "--max-drop", 0]
    found = evaluated(capsys, "knn", small_backbone("neco"), digits_folder, *options)
    scores = {score["name"]: score["value"] for score in found["sides"][0]["scores"]}
    assert scores["top-1, 20 neighbours"] > 50  # chance is 10 %
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 120)
    assert not difference["significant"]
    assert found["passed"]
