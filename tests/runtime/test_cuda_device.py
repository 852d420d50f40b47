"""The GPU through cuda-python: what it asks the driver for, and one line for whatever the driver answers."""
from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from saccade.engines.cuda import find_gpus
from saccade.errors import OutOfMemoryError, SaccadeError
from saccade.runtime.cuda_device import CudaDevice
from saccade.runtime.device import Memory, Pinned
from saccade.runtime.launch import KERNELS, Launch, SelectParams


class Driver:
    """`cuda.bindings.driver` with canned answers; anything not named succeeds with a new handle."""

    CUpointer_attribute = CUstreamCaptureMode = int

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {
            "cuInit": (0,),
            "cuDeviceGetCount": (0, 2),
            "cuDeviceGetName": (0, b"NVIDIA L4\0"),
            "cuDevicePrimaryCtxRetain": (0, 500),
            "cuDriverGetVersion": (0, 13000),
            "cuGetErrorString": (0, b"bad luck"),
            "cuMemGetInfo": (0, 400 << 20, 8192 << 20),
            "cuStreamGetCtx": (0, 500),
            "cuStreamIsCapturing": (0, 0),
        } | answers

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            answer = self.answers.get(name, (0, 1000 + len(self.calls)))
            return answer(*arguments) if callable(answer) else answer

        return call

    def called(self) -> list[str]:
        return [name for name, *_ in self.calls]


def opened(**answers: Any) -> tuple[CudaDevice, Driver]:
    driver = Driver(**answers)
    return CudaDevice(1, b"fatbin", driver), driver


def test_a_device_is_named_with_its_index_and_loads_every_kernel() -> None:
    device, driver = opened()
    assert device.name == "GPU 1 (NVIDIA L4)"
    assert [call[2] for call in driver.calls if call[0] == "cuModuleGetFunction"] == [name.encode() for name in KERNELS]


def test_the_primary_context_is_given_back_with_the_device() -> None:
    device, driver = opened(cuDeviceGet=(0, 1), cuModuleLoadData=(0, 60))
    del device
    gc.collect()
    assert driver.calls[-4:] == [
        ("cuCtxPushCurrent", 500), ("cuModuleUnload", 60), ("cuCtxPopCurrent",), ("cuDevicePrimaryCtxRelease", 1),
    ]  # fmt: skip


def no_driver(*arguments: Any) -> tuple[int]:
    raise RuntimeError("libcuda is not here")


REFUSED = {
    "no driver": ({"cuInit": no_driver}, r"no NVIDIA driver here; use --engine openvino, .* r580 \(libcuda"),
    "no device": ({"cuInit": (100,)}, r"no GPU 1 here \(the driver answers with error 100\); check it with nvidia-smi"),
    "too few": ({"cuDeviceGetCount": (0, 1)}, r"no GPU 1 here \(the driver lists 1\)"),
    "old driver": (
        {"cuModuleLoadData": (222, None), "cuDriverGetVersion": (0, 12040)},
        r"GPU 1 \(NVIDIA L4\) cannot load the compiled kernels \(bad luck\); its driver is for CUDA 12\.4: "
        r"they need driver r580 \(CUDA 13\.0\), see docs/gpu\.md",
    ),
    "no code for it": (
        {"cuModuleLoadData": (209, None)},
        r"cannot load the compiled kernels \(bad luck\); its driver is for CUDA 13\.0: 'make cuda' again",
    ),
    "lost device": ({"cuModuleLoadData": (999, None)}, r"cuModuleLoadData failed \(bad luck\); check it with"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_device_that_cannot_be_used_is_one_line(case: str) -> None:
    answers, message = REFUSED[case]
    with pytest.raises(SaccadeError, match=message):
        opened(**answers)


def test_too_little_memory_says_how_much_there_is() -> None:
    device, _ = opened(cuMemAlloc=(2, None))
    with pytest.raises(OutOfMemoryError, match="512 MiB of memory are not to be had, 400 MiB of 8192 MiB are free"):
        Memory(device, 512 << 20)


def test_a_stream_of_another_context_is_refused() -> None:
    device, driver = opened()
    device.check_stream(7)
    driver.answers["cuStreamGetCtx"] = (0, 501)
    with pytest.raises(SaccadeError, match=r"stream 0x7 is not of GPU 1 \(NVIDIA L4\)'s primary context.*autoprimaryctx"):
        device.check_stream(7)


def test_a_stream_that_is_being_captured_is_refused() -> None:
    device, _ = opened(cuStreamIsCapturing=(0, 1))
    with pytest.raises(SaccadeError, match=r"stream 0x7 is being captured; .* call it outside of the capture"):
        device.check_stream(7)


def pointer(ordinal: tuple[int, int], context: int = 500) -> Callable[..., tuple[int, int]]:
    return lambda attribute, address: ordinal if attribute == 9 else (0, context)


ADDRESSES = {
    "ours": (pointer((0, 1)), None),
    "a pool's": (pointer((0, 1), 0), None),
    "the host's": (pointer((1, -1)), "image 0: 0x10 is no device memory; give a NumPy array"),
    "another GPU's": (pointer((0, 0)), "image 0: it lies on GPU 0, the pipeline on GPU 1"),
    "another context's": (pointer((0, 1), 501), r"image 0: it lies in another context than GPU 1 \(NVIDIA L4\)'s"),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_memory_of_anybody_else_is_refused(case: str) -> None:
    answer, message = ADDRESSES[case]
    device, _ = opened(cuPointerGetAttribute=answer)
    if message is None:
        device.check_address(16, "image 0")
        return
    with pytest.raises(SaccadeError, match=message):
        device.check_address(16, "image 0")


def test_a_launch_passes_the_struct_by_value() -> None:
    seen = []

    def launched(function: Any, *arguments: Any) -> tuple[int]:
        where = ctypes.c_void_p.from_address(arguments[8]).value
        seen.append((arguments[:8], SelectParams.from_buffer_copy(ctypes.string_at(where, ctypes.sizeof(SelectParams))).k))
        return (0,)

    device, _ = opened(cuLaunchKernel=launched)
    with device.current():
        device.launch(KERNELS[2], SelectParams(k=136), Launch(3, 2, 256), 77)
    assert seen == [((3, 2, 1, 256, 1, 1, 0, 77), 136)]


def test_a_capture_is_of_this_thread_alone_and_becomes_an_executable_graph() -> None:
    device, driver = opened(cuStreamEndCapture=(0, 70), cuGraphInstantiate=(0, 71))
    driver.calls.clear()
    assert device.capture(lambda stream: device.launch_graph(3, stream), 5) == 71
    assert driver.calls == [
        ("cuStreamBeginCapture", 5, 1), ("cuGraphLaunch", 3, 5), ("cuStreamEndCapture", 5), ("cuGraphInstantiate", 70, 0),
        ("cuGraphDestroy", 70),
    ]  # fmt: skip


def test_what_fails_in_a_capture_ends_it() -> None:
    device, driver = opened(cuStreamEndCapture=(0, 70))
    driver.calls.clear()
    with pytest.raises(ZeroDivisionError):
        device.capture(lambda stream: 1 // 0, 5)
    assert driver.called() == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]


@pytest.mark.parametrize(("kind", "function"), [(Memory, "cuMemFree"), (Pinned, "cuMemFreeHost")])
def test_memory_dropped_during_a_capture_is_freed_after_it(kind: type[Memory | Pinned], function: str) -> None:
    block = ctypes.create_string_buffer(64)
    device, driver = opened(cuMemAllocHost=(0, ctypes.addressof(block)))
    dropped = [kind(device, 64)]
    driver.calls.clear()
    device.capture(lambda stream: dropped.clear(), 5)
    called = [name for name in driver.called() if not name.startswith("cuCtx")]
    assert called.index(function) > called.index("cuStreamEndCapture")
    assert called.count(function) == 1


def test_memory_of_another_device_is_freed_in_the_context_of_its_own() -> None:
    here, _ = opened()
    there, driver = opened(cuDevicePrimaryCtxRetain=(0, 900))
    dropped = [Memory(there, 64)]
    driver.calls.clear()
    with here.current():
        here.capture(lambda stream: dropped.clear(), 5)
    around = [(name, *arguments) for name, *arguments in driver.calls if name.startswith(("cuCtx", "cuMemFree"))]
    freed = next(index for index, call in enumerate(around) if call[0] == "cuMemFree")
    assert around[freed - 1] == ("cuCtxPushCurrent", 900)
    assert [call[0] for call in around[freed:]] == ["cuMemFree", "cuCtxPopCurrent"]


def test_no_garbage_is_collected_while_any_thread_captures() -> None:
    device, _ = opened()
    seen = []

    def other(stream: int) -> None:
        thread = threading.Thread(target=device.capture, args=(lambda stream: seen.append(gc.isenabled()), 6))
        thread.start()
        thread.join()
        seen.append(gc.isenabled())

    assert gc.isenabled()
    device.capture(other, 5)
    assert seen == [False, False]
    assert gc.isenabled()


def test_who_collects_no_garbage_collects_none_after_a_failed_capture_either() -> None:
    device, _ = opened()
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            device.capture(lambda stream: 1 // 0, 5)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(bool(find_gpus()[0]), reason="a GPU is here, which would be given handles that are none")
def test_cuda_python_takes_the_arguments_we_pass() -> None:
    """Without a driver each call fails on the missing library, after cuda-python has converted its arguments."""
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    device, driver = opened()
    device.launch(KERNELS[0], SelectParams(), Launch(1, 1, 32), 7)
    device.capture(lambda stream: None, 7)
    for name in ("create_stream", "create_event"):
        getattr(device, name)()
    for name in ("destroy_stream", "destroy_event", "destroy_graph", "free", "free_pinned", "check_stream", "synchronize"):
        getattr(device, name)(7)
    for name in ("record", "wait", "launch_graph"):
        getattr(device, name)(7, 7)
    device.synchronize_event(7)
    device.copy_in(7, 7, 7, 7)
    device.copy_out(7, 7, 7, 7)
    device.allocate(7)
    device.allocate_pinned(7)
    driver.cuPointerGetAttribute(9, 7)
    kinds = {"cuPointerGetAttribute": real.CUpointer_attribute, "cuStreamBeginCapture": real.CUstreamCaptureMode}
    for name, *arguments in {call[0]: call for call in driver.calls}.values():
        if name == "cuGetErrorString":
            continue
        place = {"cuPointerGetAttribute": 0, "cuStreamBeginCapture": 1}.get(name)
        if place is not None:
            arguments[place] = kinds[name](arguments[place])
        try:
            getattr(real, name)(*arguments)
        except RuntimeError as error:
            assert "libcuda" in str(error) or type(error).__name__ == "DynamicLibNotFoundError", (name, error)


def test_without_cuda_python_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", SimpleNamespace())
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(SaccadeError, match=r"cuda-python is missing; pip install '\.\[tensorrt\]' in the clone"):
        CudaDevice(0, b"")
