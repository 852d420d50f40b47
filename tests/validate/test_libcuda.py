"""The driver by ctypes says what cuda-python would say; its library is one of ours."""
from __future__ import annotations

import ctypes
import inspect
import re
import subprocess

import pytest

from saccade.errors import SaccadeError
from saccade.runtime import cuda_device
from saccade.validate import libcuda
from saccade.validate.libcuda import FUNCTIONS, LibCuda

SOURCE = r"""
#include <cstddef>
#include <cstdint>
#include <cstring>
extern "C" {
int cuMemAlloc_v2(uint64_t* address, size_t size) { *address = 0x7000000000ull + size; return size > 1000 ? 2 : 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 5; *total = 6000000000ull; return 0; }
int cuDeviceGetName(char* text, int length, int device) { std::strncpy(text, device == 3 ? "card" : "?", length); return 0; }
int cuGetErrorString(int status, const char** text) { *text = status == 2 ? "out of memory" : nullptr; return 0; }
int cuStreamGetCtx(void* stream, void** context) { *context = static_cast<char*>(stream) + 1; return 0; }
int cuStreamIsCapturing(void* stream, int* state) { *state = stream == reinterpret_cast<void*>(0x7000000000ull); return 0; }
int cuStreamEndCapture(void* stream, void** graph) { *graph = static_cast<char*>(stream) + 2; return 0; }
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
    *exec = static_cast<char*>(graph) + 4 + flags; return 0;
}
int cuPointerGetAttribute(void* data, int attribute, uint64_t address) {
    *static_cast<int*>(data) = attribute; return address == 0x7fffffffff00ull ? 0 : 1;
}
int cuCtxPushCurrent_v2(void* context) { return context == reinterpret_cast<void*>(0x7fffffffff00ull) ? 0 : 9; }
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> LibCuda:
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "cuda.cpp").write_text(SOURCE)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "libcuda.so", folder / "cuda.cpp"], check=True)
    return LibCuda(ctypes.CDLL(str(folder / "libcuda.so")))


def test_results_follow_the_status(driver: LibCuda) -> None:
    assert driver.cuMemAlloc(512) == (0, 0x7000000200)
    assert driver.cuMemAlloc(1024)[0] == 2
    assert driver.cuMemGetInfo() == (0, 5, 6_000_000_000)
    assert driver.cuDeviceGetName(16, 3) == (0, b"card" + 12 * b"\0")
    assert driver.cuGetErrorString(2) == (0, b"out of memory")
    assert driver.cuGetErrorString(7) == (0, None)
    assert driver.cuStreamGetCtx(0x7000000000) == (0, 0x7000000001)
    assert [driver.cuStreamIsCapturing(stream) for stream in (0x7000000000, 0x7000000001)] == [(0, 1), (0, 0)]
    assert driver.cuStreamEndCapture(0x7000000000) == (0, 0x7000000002)
    assert driver.cuGraphInstantiate(0x7000000000, 0) == (0, 0x7000000004)
    assert driver.cuPointerGetAttribute(9, 0x7FFFFFFFFF00) == (0, 9)
    assert driver.cuCtxPushCurrent(0x7FFFFFFFFF00) == (0,)  # 64 bits, all of them


def called_by_the_device() -> set[str]:
    return set(re.findall(r"\bcu[A-Z]\w+", inspect.getsource(cuda_device)))


def test_it_has_all_that_a_device_calls_and_nothing_else(driver: LibCuda) -> None:
    own = {name for name in vars(LibCuda) if name.startswith("cu")}
    assert {*FUNCTIONS, *own} == called_by_the_device()
    with pytest.raises(AttributeError):
        driver.cuLaunchGrid  # noqa: B018


def test_cuda_python_has_them_all_under_these_names() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    assert [name for name in called_by_the_device() if not hasattr(bindings, name)] == []


def test_a_machine_without_a_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "CUDA_LIBRARY", "libcuda-is-not-here.so.1")
    with pytest.raises(SaccadeError, match=r"libcuda-is-not-here\.so\.1 not found: no NVIDIA driver here"):
        LibCuda()
