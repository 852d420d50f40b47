"""The kernels' structs and launches in Python are those of launch.hpp, as the C++ compiler lays them out."""
from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.runtime import launch

HEADER = (Path(__file__).parents[2] / "runtime/cuda/launch.hpp").read_text()
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


def test_kernels_are_those_of_the_header_but_for_bf16_which_no_bundle_asks_for() -> None:
    assert {*launch.KERNELS, "saccade_preprocess_bf16"} == set(re.findall(r'= "(saccade_\w+)";', HEADER))


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


def test_kernels_that_are_not_compiled_are_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"saccade\.fatbin: the CUDA kernels are not compiled; 'make cuda' in the clone"):
        launch.read_fatbin(tmp_path / "saccade.fatbin")
