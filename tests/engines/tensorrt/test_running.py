"""Engines run on a stand-in for the GPU: arrays, bindings, shapes, the memory they share, and what is refused."""
from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import FakeCudaRuntime, FakeEngine, bound, contexts

from saccade.engines import tensorrt_build
from saccade.engines.tensorrt_build import import_binding
from saccade.errors import EngineError, OutOfMemoryError, SaccadeError


def test_an_engine_runs_arrays_by_name_whatever_their_memory_layout(fake_gpu: Any) -> None:
    engine, x = fake_gpu[0](), np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(engine.run({"x": x})["y"], x + 1)


def test_an_engine_allocates_again_only_to_grow_and_frees_everything_at_the_end(fake_gpu: Any) -> None:
    load, runtime = fake_gpu
    engine = load()
    for batch in (2, 1, 2):
        x = np.full((batch, 3), batch, np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x + 1)
        addresses = sorted(runtime.memory)
    engine.run({"x": np.zeros((5, 3), np.float32)})
    assert len(addresses) == len(runtime.memory) == 3  # x, y and the scratch
    engine.close()
    engine.close()
    assert runtime.memory == {}


def test_a_shape_outside_the_profile_is_refused(fake_gpu: Any) -> None:
    message = (
        "tensorrt-rtx: selector: batch 65 is beyond the 64 that the engine was built for; "
        "'saccade build bundle --engine tensorrt-rtx --max-batch 65' builds a larger one"
    )
    with pytest.raises(SaccadeError, match=f"^{re.escape(message)}$"):
        fake_gpu[0]().run({"x": np.zeros((65, 3), np.float32)})


def test_each_binding_keeps_its_own_shapes_and_addresses(fake_gpu: Any) -> None:
    engine = fake_gpu[0]()
    cases = [bound(engine, batch) for batch in (2, 5)]
    for network, x, y in (*cases, cases[0]):
        y[:] = 0
        network.check_capturable(77)
        network.enqueue(77)
        np.testing.assert_array_equal(y, x + 1)
    assert len(fake_gpu[1].memory) == 1  # the scratch; all else is the caller's


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_all_bindings_compute_in_the_same_memory_as_large_as_the_profile_wants_it(fake_gpu: Any, rtx: bool) -> None:
    load, runtime = fake_gpu
    if not rtx:
        del sys.modules["tensorrt_rtx"].IRuntimeCache
    contexts.clear()
    engine = load()
    for batch in (2, 5, 2):
        bound(engine, batch)
    ((address, size),) = {context.scratch for context in contexts}
    assert len(contexts) == 3
    assert (list(runtime.memory), len(runtime.memory[address])) == ([address], size)
    engine.close()
    assert runtime.memory == {}


def test_an_engine_that_needs_no_memory_to_compute_in_gets_none(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "device_memory_size_v2", 0)
    engine = fake_gpu[0]()
    bound(engine, 2)
    assert fake_gpu[1].memory == {}
    engine.close()


def test_rtx_compiles_for_the_very_shapes_before_a_graph_can_be_captured(fake_gpu: Any) -> None:
    contexts.clear()
    network, *_ = bound(fake_gpu[0](), 2)
    network.enqueue(77)
    network.check_capturable(77)
    assert [context.kernels for context in contexts] == ["for these shapes"]


def test_the_installed_rtx_has_what_a_context_is_made_with() -> None:
    trt = import_binding("tensorrt-rtx")
    config = {"dynamic_shapes_kernel_specialization_strategy", "set_execution_context_allocation_strategy"}
    assert config <= set(dir(trt.IRuntimeConfig))
    assert {"set_device_memory", "set_tensor_address", "is_stream_capturable"} <= set(dir(trt.IExecutionContext))
    assert "device_memory_size_v2" in dir(trt.ICudaEngine)
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER != trt.DynamicShapesKernelSpecializationStrategy.LAZY
    assert "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__


def test_only_an_engine_that_is_run_by_itself_has_a_stream(fake_gpu: Any) -> None:
    load, runtime = fake_gpu
    engine = load()
    network, *_ = bound(engine, 2)
    network.enqueue(77)
    assert runtime.streams == 0  # one of its own would make others wait
    engine.run({"x": np.zeros((1, 3), np.float32)})
    assert runtime.streams == 1
    engine.close()
    assert runtime.streams == 0


def test_a_binding_outside_the_profile_is_refused(fake_gpu: Any) -> None:
    with pytest.raises(SaccadeError, match="batch 65 is beyond the 64 that the engine was built for"):
        bound(fake_gpu[0](), 65)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("execute_async_v3", lambda self, stream: False, "the run failed"),
        ("set_tensor_address", lambda self, name, address: False, "does not take the address of 'x'"),
        ("get_tensor_shape", lambda self, name: (9, 9), r"output 'y' is \[9, 9\], not \[2, 3\]"),
        ("create_execution_context", lambda self, how: None, "cannot create its execution context"),
        ("is_stream_capturable", lambda self, stream: False, "these shapes cannot be captured in a CUDA graph"),
    ],
)
def test_what_a_context_refuses_is_one_line(
    fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, message: str
) -> None:
    engine = fake_gpu[0]()
    monkeypatch.setattr(FakeEngine, name, answer, raising=False)
    with pytest.raises(SaccadeError, match=f"tensorrt-rtx: selector: {message}"):
        network, *_ = bound(engine, 2)
        network.check_capturable(77)
        network.enqueue(77)


def test_a_closed_engine_is_not_bound(fake_gpu: Any) -> None:
    engine = fake_gpu[0]()
    engine.close()
    with pytest.raises(SaccadeError, match="the engine is closed"):
        bound(engine, 1)


def test_the_kernels_compiled_for_this_gpu_are_kept_beside_the_plan(fake_gpu: Any, tmp_path: Path) -> None:
    fake_gpu[0]().close()
    assert (tmp_path / "x.jit-cache").read_bytes() == b"kernels"
    fake_gpu[0]()
    assert FakeEngine.caches[-1] == b"kernels"


def test_a_plan_for_other_hardware_is_refused_with_the_reason(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "valid", "INVALID")
    with pytest.raises(SaccadeError, match=r"does not fit this machine \(UNSUPPORTED_CC\); build it again here"):
        fake_gpu[0]()


def test_a_damaged_plan_is_refused(fake_gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"pla")
    with pytest.raises(SaccadeError, match="cannot load it"):
        fake_gpu[0]()


def test_a_plan_with_other_tensors_than_the_manifest_is_refused(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "tensors", {"x": "float32", "y": "float16"})
    with pytest.raises(SaccadeError, match=r"has other tensors than bundle\.json says"):
        fake_gpu[0]()


def test_a_tensor_in_bfloat16_is_known_as_such(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_gpu[0]()
    monkeypatch.setattr(FakeEngine, "tensors", {"x": "BF16", "y": "float32"})
    assert [engine._type_of(name) for name in "xy"] == ["bfloat16", "float32"]


def test_too_little_gpu_memory_is_one_line(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_gpu[0]()
    full = types.SimpleNamespace(name="cudaErrorMemoryAllocation")
    monkeypatch.setattr(FakeCudaRuntime, "cudaMalloc", lambda self, size: (full, 0))
    with pytest.raises(OutOfMemoryError, match=r"cudaMalloc on GPU 0 failed \(cudaErrorMemoryAllocation\); free GPU"):
        engine.run({"x": np.zeros((1, 3), np.float32)})


def test_too_little_gpu_memory_is_told_from_an_engine_that_does_not_run(
    fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_gpu[0]()

    def fail(reason: str) -> Any:
        def create(self: Any, how: Any) -> None:
            engine._log.log(tensorrt_build.import_binding("tensorrt-rtx").ILogger.ERROR, reason)

        return create

    for reason in ("Error Code 1: Cuda Runtime (out of memory)", "Requested 8 bytes of GPU memory could not be allocated"):
        monkeypatch.setattr(FakeEngine, "create_execution_context", fail(reason))
        with pytest.raises(OutOfMemoryError, match="cannot create its execution context"):
            bound(engine, 2)
    monkeypatch.setattr(FakeEngine, "create_execution_context", fail("Myelin: no such kernel"))
    with pytest.raises(EngineError, match=r"cannot create its execution context \(Myelin: no such kernel\)"):
        bound(engine, 2)
