"""ONNX Runtime engines: the one provider that was asked for, and what is refused."""
from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from saccade import Bundle, SaccadeError, read_bundle
from saccade.engines import onnxruntime as module
from saccade.engines.engine import Built, Engine, EngineRequest
from saccade.engines.onnxruntime import OnnxRuntimeBackend

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[onnxruntime]'")

BACKEND = OnnxRuntimeBackend()
REQUEST = EngineRequest(engine="onnxruntime", device="cpu")
NO_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
DIM = 128
Feeds = Callable[..., dict[str, np.ndarray]]


def quiet(phase: str) -> None:
    """Take a phase."""


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> dict[str, Engine]:
    return BACKEND.load(bundle, REQUEST, bundle.path, Built(files={}, realised=""))


def test_capabilities_name_version_and_devices() -> None:
    found = BACKEND.capabilities()
    assert (found.version, found.can_build, found.can_run, found.missing) == (onnxruntime.__version__, True, True, None)
    assert found.devices[0] == "cpu"
    assert "fp32" in found.precisions


def test_conditions_name_version_provider_and_device() -> None:
    conditions = BACKEND.conditions(REQUEST)
    assert conditions["version"] == onnxruntime.__version__
    assert conditions["provider"] == "CPUExecutionProvider"
    assert conditions["device"] == "cpu"


def test_a_build_writes_no_engine_files(bundle: Bundle, tmp_path: Path) -> None:
    phases: list[str] = []
    built = BACKEND.build(bundle, REQUEST, tmp_path, phases.append)
    assert built.files == {}
    assert list(tmp_path.iterdir()) == []
    assert phases == ["selector: open a session", "extractor: open a session"]
    assert "fp32" in built.realised


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_outputs_equal_onnxs_reference_evaluator(
    engines: dict[str, Engine], bundle: Bundle, role: str, feed_of: Feeds
) -> None:
    reference = ReferenceEvaluator(onnx.load(bundle.path / bundle.graph(role, "fp32").file))
    feed = feed_of(role, batch=1)
    expected = dict(zip(engines[role].outputs, reference.run(list(engines[role].outputs), feed), strict=True))
    for name, array in engines[role].run(feed).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (1, 300), (3, 7), (9, 2)])
def test_batch_and_k_are_dynamic(engines: dict[str, Engine], batch: int, k: int, feed_of: Feeds) -> None:
    found = engines["extractor"].run(feed_of("extractor", batch, k))
    assert (found["cls"].shape, found["tokens"].shape) == ((batch, DIM), (batch, k, DIM))


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_inputs_need_not_lie_in_one_piece(engines: dict[str, Engine], role: str, feed_of: Feeds) -> None:
    feed = feed_of(role)
    expected = engines[role].run(feed)
    for name, array in engines[role].run({name: array.repeat(2, axis=0)[::2] for name, array in feed.items()}).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_inputs_that_do_not_fit_are_refused_by_name(engines: dict[str, Engine], feed_of: Feeds) -> None:
    feed = feed_of("extractor")
    with pytest.raises(SaccadeError, match=r"extractor: input 'prefix' must be float32 \['batch', 5, 128\]"):
        engines["extractor"].run(feed | {"prefix": feed["prefix"][:1]})


def test_threads_are_the_sessions(bundle: Bundle) -> None:
    loaded = BACKEND.load(bundle, msgspec.structs.replace(REQUEST, threads=1), bundle.path, Built(files={}, realised=""))
    for engine in loaded.values():
        assert engine._session.get_session_options().intra_op_num_threads == 1


@NO_CUDA
def test_a_gpu_without_the_provider_is_refused_not_replaced() -> None:
    message = r"no CUDA execution provider for --device 0; .* pip install '\.\[onnxruntime-gpu\]' in the clone"
    with pytest.raises(SaccadeError, match=message):
        BACKEND.conditions(msgspec.structs.replace(REQUEST, device="0"))


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "-1", ""])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(SaccadeError, match=f"onnxruntime runs on --device cpu or the index of a GPU, not '{device}'"):
        BACKEND.conditions(msgspec.structs.replace(REQUEST, device=device))


def test_a_gpu_is_asked_for_alone_and_without_tf32() -> None:
    has_cuda = types.SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    (provider,) = module._providers(has_cuda, msgspec.structs.replace(REQUEST, device="1"))
    assert provider == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})


def test_a_provider_that_fell_back_silently_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime opens a CPU session where CUDA does not start, and only warns."""
    fallen = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(module, "_providers", lambda *_: [("CUDAExecutionProvider", {})])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(SaccadeError, match="onnxruntime could not start CUDAExecutionProvider; check the driver with"):
        BACKEND.load(bundle, REQUEST, bundle.path, Built(files={}, realised=""))


def test_a_precision_it_does_not_have_is_refused(bundle: Bundle) -> None:
    request = msgspec.structs.replace(REQUEST, precision="fp8")
    with pytest.raises(SaccadeError, match=r"onnxruntime offers .*, not fp8"):
        BACKEND.load(bundle, request, bundle.path, Built(files={}, realised=""))


def test_a_graph_that_is_no_onnx_is_refused_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    (copy / "extractor.onnx").write_bytes(b"not a graph")
    with pytest.raises(SaccadeError, match=r"onnxruntime cannot open .*extractor\.onnx: ") as error:
        BACKEND.build(read_bundle(copy), REQUEST, tmp_path, quiet)
    assert "\n" not in str(error.value)


def test_where_it_is_not_installed_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = BACKEND.capabilities()
    assert not found.can_run
    assert found.missing is not None
    assert "pip install '.[onnxruntime]' in the clone" in found.missing
    with pytest.raises(SaccadeError, match=r"onnxruntime cannot be imported .*; pip install '\.\[onnxruntime\]'"):
        BACKEND.conditions(REQUEST)
