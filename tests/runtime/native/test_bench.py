"""examples/bench.c measures every task, says the same as text and as JSON, and ends with one line where it cannot."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import BUILDS

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


@pytest.mark.parametrize(("arguments", "line"), [
    ([], "usage: bench BUNDLE"),
    (["nowhere"], "nowhere is not a bundle folder; make one with"),
    (["nowhere", "--frames", "0"], "--size, --k, --frames and --warm-up take whole numbers from 1 on"),
    (["nowhere", "--frames"], "--size, --k, --frames and --warm-up take whole numbers from 1 on"),
    (["nowhere", "--fames", "3"], "unknown option"),
])  # fmt: skip
def test_bench_says_what_is_wrong_in_one_line(arguments: list[str], line: str) -> None:
    answer = bench(*arguments)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"bench: {line}")
    assert answer.stderr.count("\n") == 1


def test_bench_names_the_precision_that_is_none(built_bundle: Callable[[str], Path], engine_library: Path) -> None:
    answer = bench(built_bundle("dinov2"), "--engine-library", engine_library, "--precision", "fp33")
    assert answer.stderr.startswith("bench: precision -1 is out of range; give one of SACCADE_FP32")
