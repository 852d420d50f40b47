"""What this machine allows, what an engine depends on, and which requests it serves."""
from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from small_graphs import RTX, no_gpu, quiet, request

from saccade.bundle import Bundle
from saccade.engines import tensorrt as module
from saccade.engines.engine import LIMITS, EngineRequest
from saccade.engines.tensorrt import Gpu, TensorRTBackend
from saccade.errors import SaccadeError


@no_gpu
def test_capabilities_without_a_gpu_say_that_engines_can_be_built_but_not_run() -> None:
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.can_run, capabilities.devices) == (True, False, ())
    assert capabilities.missing is not None and "no NVIDIA GPU here (libcuda.so.1 not found)" in capabilities.missing


@pytest.mark.parametrize("error", [ImportError("No module named 'tensorrt_rtx'"), OSError("libfoo.so: no such file")])
def test_capabilities_name_the_pip_command_where_the_binding_does_not_import(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr("saccade.engines.tensorrt_build.importlib.import_module", refuse)
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.version) == (False, None)
    assert capabilities.missing is not None and str(error) in capabilities.missing
    assert "'.[tensorrt-rtx]'" in capabilities.missing


def test_conditions_name_the_version_the_targets_and_the_profile() -> None:
    conditions = RTX.conditions(request(compute_capabilities=("SM120", "SM89")))
    assert conditions["compute_capabilities"] == "SM89 SM120"  # in one order, so that the key is the same
    assert conditions["binding"] == "tensorrt_rtx"
    assert conditions["version"].count(".") >= 2
    limits = {name: value for name, value in conditions.items() if name in LIMITS}
    assert limits == {"max_batch": "8", "max_k": "64", "opt_k": "16"}


def test_an_unknown_compute_capability_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SaccadeError, match=r"no compute capability 'SM90'; choose from SM75, SM80, SM86, SM89, SM120"):
        RTX.conditions(request(compute_capabilities=("SM90",)))


def served(built: EngineRequest, asked: EngineRequest) -> bool:
    return RTX.serves(RTX.conditions(built), RTX.conditions(asked), asked)


@pytest.mark.parametrize(
    ("built", "asked", "serves"),
    [
        ({"max_batch": 8}, {"max_batch": 8}, True),
        ({"max_batch": 8}, {"max_batch": 4}, True),
        ({"max_batch": 4}, {"max_batch": 8}, False),
        ({"max_k": 64}, {"max_k": 63}, True),
        ({"max_k": 63}, {"max_k": 64}, False),
        ({"opt_k": 9}, {"opt_k": 16}, True),  # tuned elsewhere: slower, and still right
        ({"max_batch": 1, "max_k": 9}, {"any_limits": True}, True),
        ({"compute_capabilities": ("SM89", "SM120")}, {"compute_capabilities": ("SM89",)}, True),
        ({"compute_capabilities": ("SM89",)}, {"compute_capabilities": ("SM89", "SM120")}, False),
        ({}, {"compute_capabilities": ("SM89",)}, False),  # nobody says what the default holds
        ({"compute_capabilities": ("SM89",)}, {}, False),
    ],
)
def test_an_engine_serves_what_its_profile_and_targets_cover(built: Any, asked: Any, serves: bool) -> None:
    assert served(request(**built), request(**asked)) is serves


@pytest.mark.parametrize(("targets", "serves"), [((), True), (("SM89", "SM120"), True), (("SM120",), False)])
def test_a_run_takes_an_engine_for_its_gpu_alone(
    targets: tuple[str, ...], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA L4", "SM89", "13.0"),), ""))
    assert served(request(compute_capabilities=targets), request(any_limits=True)) is serves


@pytest.mark.parametrize("name", ["version", "binding", "extractor_sha256"])
def test_limits_never_make_up_for_another_version_or_graph(name: str) -> None:
    wanted = RTX.conditions(request()) | {"extractor_sha256": "1"}
    assert RTX.serves(wanted, wanted, request(any_limits=True))
    assert not RTX.serves(wanted | {name: "another"}, wanted, request(any_limits=True))


@pytest.mark.parametrize("text", ["", "many", "-8", "8.0", "9" * 5000])
def test_limits_that_are_no_numbers_serve_nothing(text: str) -> None:
    wanted = RTX.conditions(request())
    assert not RTX.serves(wanted | {"max_batch": text}, wanted, request())


@pytest.fixture
def plain_tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRTBackend:
    """The backend of TensorRT proper, its binding replaced by a stand-in."""
    binding = types.ModuleType("tensorrt")
    binding.__version__ = "11.4.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", binding)
    return TensorRTBackend("tensorrt")


@no_gpu
def test_tensorrt_refuses_to_build_without_a_gpu(
    plain_tensorrt: TensorRTBackend, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(SaccadeError, match=r"builds only on the GPU it runs on; .* --engine tensorrt-rtx"):
        plain_tensorrt.build(bundle, request(engine="tensorrt"), tmp_path, quiet)
    assert not plain_tensorrt.capabilities().can_build


def test_tensorrt_takes_no_compute_capabilities(plain_tensorrt: TensorRTBackend) -> None:
    with pytest.raises(SaccadeError, match="takes no --compute-capability"):
        plain_tensorrt.conditions(request(engine="tensorrt", compute_capabilities=("SM89",)))


def test_tensorrt_engines_depend_on_the_gpu_and_its_driver(
    plain_tensorrt: TensorRTBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA H200", "SM90", "13.0"),), ""))
    conditions = plain_tensorrt.conditions(request(engine="tensorrt", device="0"))
    assert conditions.items() >= {"gpu": "NVIDIA H200", "compute_capability": "SM90", "driver": "13.0"}.items()
    with pytest.raises(SaccadeError, match="no device '1' for it; give --device 0"):
        plain_tensorrt.conditions(request(engine="tensorrt", device="1"))


def test_a_gpu_that_rtx_does_not_compile_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpus", lambda: ((Gpu("NVIDIA H200", "SM90", "13.0"),), ""))
    capabilities = RTX.capabilities()
    assert (capabilities.can_build, capabilities.can_run) == (True, False)
    assert capabilities.missing is not None and "does not support this GPU (NVIDIA H200 SM90)" in capabilities.missing


@no_gpu
def test_loading_without_a_gpu_says_what_to_do_instead(bundle: Bundle, built: Any) -> None:
    folder, result, _ = built["fp32"]
    with pytest.raises(SaccadeError, match=r"^tensorrt-rtx: no NVIDIA GPU here .* --engine openvino$"):
        RTX.load(bundle, request(), folder, result)


def test_an_rtx_engine_whose_passes_may_allocate_serves_nobody() -> None:
    wanted = RTX.conditions(request())
    allocating = {name: value for name, value in wanted.items() if name != "allocation"}
    assert wanted["allocation"] == "user"
    assert not RTX.serves(allocating, wanted, request(any_limits=True))
