"""The kernels' structs and launches in Python are those of launch.hpp, as the C++ compiler lays them out."""
from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.runtime import launch

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "runtime/cuda/launch.hpp").read_text()
STRUCTS = {
    "ImageView": launch.ImageView, "PreprocessParams": launch.PreprocessParams, "SelectParams": launch.SelectParams,
    "GatherParams": launch.GatherParams, "FillParams": launch.FillParams,
}  # fmt: skip
SIZES = {"std::int64_t": 8, "std::int32_t": 4}
counts, extents = st.integers(1, 4096), st.integers(1, 300)


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_stand_in_the_order_and_size_of_the_header(name: str) -> None:
    (body,) = re.findall(rf"struct {name} {{\n(.*?)\n}};", HEADER, re.DOTALL)
    fields = re.findall(r"^    ([\w: ]+?\*?) ?(\w+);", body, re.MULTILINE)
    expected = [(field, 8 if kind.endswith("*") else SIZES[kind]) for kind, field in fields]
    assert [(field, ctypes.sizeof(kind)) for field, kind in STRUCTS[name]._fields_] == expected


def test_structs_are_as_large_as_the_compilers(host_kernels: ctypes.CDLL) -> None:
    sizes = (ctypes.c_uint64 * 5)()
    host_kernels.struct_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(struct) for struct in STRUCTS.values()]


def test_kernels_are_those_of_the_header_each_once() -> None:
    assert sorted(launch.KERNELS) == sorted(re.findall(r'= "(saccade_\w+)";', HEADER))


def shape_by_compiler(host_kernels: ctypes.CDLL, kernel: str, params: launch.Params) -> tuple[int, ...]:
    shape = (ctypes.c_uint32 * 3)()
    assert host_kernels.launch_shape(kernel.encode(), ctypes.byref(params), shape) == 1
    return tuple(shape)


@given(counts, extents, extents, extents)
def test_launches_are_those_of_the_header(host_kernels, batch: int, rows: int, columns: int, k: int) -> None:
    select = launch.SelectParams(0, 0, 0, 0, batch, 44, rows, columns, k)
    cases = [
        ("saccade_preprocess_fp16", preprocess := launch.PreprocessParams(0, 0, 0, batch, rows), preprocess.launch),
        ("saccade_resize_scores", select, select.launch),
        ("saccade_rank", select, select.rank_launch),
        ("saccade_gather_16bit", gather := launch.GatherParams(batch=batch, k=k), gather.launch),
        ("saccade_fill", fill := launch.FillParams(batch=batch, rows=rows, columns=columns), fill.launch),
    ]
    for kernel, params, ours in cases:
        assert tuple(ours) == shape_by_compiler(host_kernels, kernel, params), kernel


def test_kernels_that_are_not_compiled_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACCADE_FATBIN", raising=False)
    message = r"b\.fatbin: the CUDA kernels are not compiled \(No such file or directory\); 'make cuda' in the clone does it"
    with pytest.raises(SaccadeError, match=message):
        launch.read_fatbin([tmp_path / "a.fatbin", tmp_path / "b.fatbin"])


def test_the_kernels_are_those_of_the_variable_else_of_the_wheel_else_of_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, *places = (tmp_path / f"{name}.fatbin" for name in ("named", "wheel", "clone"))
    for version, path in enumerate((*places[::-1], named)):
        path.write_bytes(fatbin := struct.pack("<IHHQ", 0xBA55ED50, version, 16, 0))
        if path is named:
            monkeypatch.setenv("SACCADE_FATBIN", str(path))
        else:
            monkeypatch.delenv("SACCADE_FATBIN", raising=False)
        assert launch.read_fatbin(places) == fatbin


# As nvcc starts one; tests/runtime/native/test_cuda_device.py gives the C library the same cuts.
FATBIN = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 4) + b"code"
HEADER_BEYOND = struct.pack("<IHHQ", 0xBA55ED50, 1, 21, 0) + b"code"
LENGTH_OF_64_BITS = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**64 - 16) + b"code"


@pytest.mark.parametrize("content", [b"", FATBIN[:15], FATBIN[:-1], b"ELF " + FATBIN[4:], HEADER_BEYOND, LENGTH_OF_64_BITS])
def test_what_is_no_whole_fatbin_is_refused_before_a_driver_reads_past_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "damaged.fatbin").write_bytes(content)
    monkeypatch.delenv("SACCADE_FATBIN", raising=False)
    with pytest.raises(SaccadeError, match=r"damaged\.fatbin: no fatbin, or one that was cut; compile .* with 'make cuda'$"):
        launch.read_fatbin([tmp_path / "damaged.fatbin"])


def test_bytes_after_a_whole_fatbin_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACCADE_FATBIN", raising=False)
    (tmp_path / "padded.fatbin").write_bytes(FATBIN + bytes(12))
    assert launch.read_fatbin([tmp_path / "padded.fatbin"]) == FATBIN + bytes(12)


def test_a_wheel_takes_the_compiled_kernels_along(tmp_path: Path) -> None:
    fatbin = tmp_path / "compiled.fatbin"
    fatbin.write_bytes(b"kernels")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "wheel")]
    environment = os.environ | {"SACCADE_FATBIN": str(fatbin)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wheel/saccade/runtime" / launch.FATBINS[0].name).read_bytes() == b"kernels"
