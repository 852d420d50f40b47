"""The C library's side of CUDA's driver, with a driver that the host plays: a fatbin is run, or refused in one line."""
from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import BUILDS, environment

from saccade.runtime.launch import MIN_DRIVER

NOT_FOUND, UNSUPPORTED, OUT_OF_MEMORY = 2, 5, 12
INVALID_IMAGE, NO_BINARY_FOR_GPU, UNSUPPORTED_PTX = 200, 209, 222

FATBIN = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 4) + b"code"  # as nvcc starts one
HEADER_BEYOND = struct.pack("<IHHQ", 0xBA55ED50, 1, 21, 0) + b"code"
LENGTH_OF_64_BITS = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**64 - 16) + b"code"

Start = Callable[..., str]


@pytest.fixture(params=["release", "asan"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Return a function that runs the program with a fatbin and a driver, and returns what it printed."""
    program = BUILDS / request.param / "tests" / "cuda_device"
    if not program.exists():
        pytest.skip("built without CUDA's headers")
    fatbin = tmp_path / "kernels.fatbin"
    fatbin.write_bytes(FATBIN)

    def run(started_as: str | None = None, **settings: str) -> str:
        chosen = {"SACCADE_FATBIN": str(fatbin), "LD_LIBRARY_PATH": str(program.parent / "driver")} | settings
        options = {"executable": program, "env": environment(request.param, **chosen), "timeout": 60}
        done = subprocess.run([started_as or program], **options, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_kernels_launched_through_the_driver_give_the_bits_of_the_cpu(start: Start) -> None:
    assert start().startswith("Host GPU SM89 13.0\n")


def test_too_little_memory_is_said(start: Start) -> None:
    assert f"\n{OUT_OF_MEMORY} CUDA cannot allocate memory: " in start()


REFUSED = {
    "an old driver": (
        {"SACCADE_TEST_DRIVER": "12080", "SACCADE_TEST_LOAD": str(UNSUPPORTED_PTX)},
        "its driver is for CUDA 12.8: they need driver r580 (CUDA 13.0)",
    ),
    "another GPU's code": (
        {"SACCADE_TEST_LOAD": str(NO_BINARY_FOR_GPU)},
        "(no kernel image is available); they hold no code for SM89: 'make cuda CUDA_ARCHITECTURES=89'",
    ),
    "an unknown kind of code": (
        {"SACCADE_TEST_LOAD": str(INVALID_IMAGE)},
        "the file is no fatbin that this driver knows: 'make cuda' again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_fatbin_that_cannot_run_here_is_refused(start: Start, name: str) -> None:
    settings, line = REFUSED[name]
    said = start(**settings)
    assert said.startswith(f"{UNSUPPORTED} Host GPU cannot load the compiled kernels (")
    assert said.endswith(line + "\n")


@pytest.mark.parametrize(("driver", "is_old"), [(MIN_DRIVER - 1, True), (MIN_DRIVER, False)])
def test_the_oldest_driver_is_pythons(start: Start, driver: int, is_old: bool) -> None:
    said = start(SACCADE_TEST_DRIVER=str(driver), SACCADE_TEST_LOAD=str(UNSUPPORTED_PTX))
    assert ("they need driver r580" in said) is is_old


def test_a_missing_fatbin_is_named_with_the_remedy(start: Start, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.fatbin"
    line = f"{missing}: the CUDA kernels are not there; compile the kernels with 'make cuda', and put saccade.fatbin beside "
    assert start(SACCADE_FATBIN=str(missing)) == f"{NOT_FOUND} {line}libsaccade.so or name it by SACCADE_FATBIN\n"


@pytest.mark.parametrize("content", [b"", FATBIN[:15], FATBIN[:-1], b"ELF " + FATBIN[4:], HEADER_BEYOND, LENGTH_OF_64_BITS])
def test_what_is_no_whole_fatbin_never_reaches_the_driver(start: Start, tmp_path: Path, content: bytes) -> None:
    damaged = tmp_path / "damaged.fatbin"
    damaged.write_bytes(content)
    line = f"{damaged}: no fatbin, or one that was cut; compile the kernels with 'make cuda'"
    assert start(SACCADE_FATBIN=str(damaged)) == f"{UNSUPPORTED} {line}\n"


def test_without_a_name_the_fatbin_is_looked_for_beside_the_library(start: Start) -> None:
    assert start(SACCADE_FATBIN="").startswith(f"{NOT_FOUND} {BUILDS}/")


def test_without_a_name_or_a_path_no_fatbin_of_the_folder_one_is_in_is_taken(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saccade.fatbin").write_bytes(FATBIN)
    monkeypatch.chdir(tmp_path)
    line = "the CUDA kernels cannot be found beside a program that has no path; name their file by SACCADE_FATBIN"
    assert start("cuda_device", SACCADE_FATBIN="") == f"{NOT_FOUND} {line}\n"  # as a shell starts what PATH has
