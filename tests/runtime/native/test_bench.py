"""examples/bench.c measures every task, says the same as text and as JSON, and ends with one line where it cannot."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import BUILDS

import saccade

PROGRAM = BUILDS / "release" / "examples" / "bench"
STAGES = ["fit", "resize", "selector", "select", "gather", "extractor", "fill", "total", "call", "beside networks"]
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not built; `make lib` builds it")


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
def test_bench_times_every_stage(built_bundle: Callable[[str], Path], engine_library: Path, kind: str) -> None:
    options = ["--engine-library", engine_library, "--size", 126, "--k", 20, "--frames", 9]
    answer = bench(built_bundle(kind), *options, "--json")
    assert answer.stderr == ""
    found = json.loads(answer.stdout)
    assert found["engine"].startswith("openvino ")
    assert (found["size"], found["k"], found["frames"]) == (126, 20, 9)
    assert min(found["start_ms"].values()) > 0
    stages = found["stages_ms"]
    assert list(stages) == STAGES
    assert all(0 <= each["median"] <= each["p90"] for each in stages.values())
    assert stages["selector"]["median"] + stages["extractor"]["median"] < stages["call"]["p90"]
    text = bench(built_bundle(kind), *options).stdout.splitlines()
    assert text[0] == found["engine"]
    assert [line.rsplit(maxsplit=2)[0] for line in text[5:15]] == STAGES


def test_bench_times_a_backbones_own_stages(small_backbone: Callable[[str], Path], engine_library: Path) -> None:
    saccade.load(small_backbone("neco"), note=lambda line: None).close()
    answer = bench(small_backbone("neco"), "--engine-library", engine_library, "--size", 126, "--frames", 3, "--json")
    assert answer.stderr == ""
    found = json.loads(answer.stdout)
    assert found["k"] == 81
    assert list(found["stages_ms"]) == ["fit", "normalize", "backbone", "fill", "total", "call", "beside networks"]
    assert 0 < found["stages_ms"]["backbone"]["median"] < found["stages_ms"]["call"]["p90"]


@pytest.mark.parametrize(("arguments", "line"), [
    ([], "usage: bench BUNDLE"),
    (["nowhere"], "nowhere is not a bundle folder; make one with"),
    (["nowhere", "--frames", "0"], "--size, --k, --frames and --warm-up take whole numbers from 1 on"),
    (["nowhere", "--frames"], "--size, --k, --frames and --warm-up take whole numbers from 1 on"),
    (["nowhere", "--fames", "3"], "unknown option"),
    (["nowhere", "--precision", "fp33"], "--precision takes fp32, fp16, bf16, int8 or fp8"),
    (["nowhere", "--precision"], "--precision takes fp32, fp16, bf16, int8 or fp8"),
])  # fmt: skip
def test_bench_says_what_is_wrong_in_one_line(arguments: list[str], line: str) -> None:
    answer = bench(*arguments)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"bench: {line}")
    assert answer.stderr.count("\n") == 1
