"""The doctor speaks on any machine, names the command that mends what is missing, and knows which releases are sick."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.cli.main import main
from saccade.engines import store
from saccade.engines.cuda import Gpu
from saccade.engines.engine import ENGINE_NAMES
from saccade.validate import doctor

OPTIONAL = ("torch", "onnx", "onnxscript", "onnx_ir", "openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda",
            "pycuda", "polygraphy", "tqdm", "sklearn", "scipy", "infomap", "matplotlib")  # fmt: skip
# Runs the doctor where no optional package can be imported, nor is recorded as installed.
BARE = """
import importlib.metadata, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(package, found=importlib.metadata.version):
    if package.replace("-", "_") not in ("saccade", "numpy", "pillow", "msgspec"):
        raise importlib.metadata.PackageNotFoundError(package)
    return found(package)

sys.meta_path.insert(0, Absent())
importlib.metadata.version = version
from saccade.cli.main import main
sys.exit(main(["doctor", *{arguments!r}]))
"""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = BARE.format(absent=OPTIONAL, arguments=arguments)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that diagnoses a machine with just the given versions installed; engines as they are here."""

    def diagnose(**versions: str) -> dict[str, Any]:
        found = {name.replace("_", "-").replace("tensorrt-rtx", "tensorrt_rtx"): text for name, text in versions.items()}

        def version(package: str) -> str:
            if package not in found:
                raise PackageNotFoundError(package)
            return found[package]

        monkeypatch.setattr(doctor, "version", version)
        return doctor.diagnose()

    return diagnose


def test_the_doctor_speaks_where_nothing_optional_is_installed() -> None:
    done = bare("--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name for name, number in said["packages"].items() if number} == {"numpy", "pillow", "msgspec"}
    assert list(said["engines"]) == list(ENGINE_NAMES)
    for name, engine in said["engines"].items():
        assert (engine["can_build"], engine["can_run"], engine["version"]) == (False, False, None)
        assert f"pip install '.[{name}]' in the clone" in engine["missing"]
    assert [line.split()[0].rstrip(":") for line in said["advice"]] == [*ENGINE_NAMES, "export", "evaluate", "plots"]
    assert all("pip install '.[" in line for line in said["advice"])
    assert said["advice"][-3:] == [
        "export and parity lack torch, onnx, onnxscript, polygraphy; pip install '.[export]' in the clone",
        "evaluate lacks scipy, scikit-learn, infomap; pip install '.[evaluate]' in the clone",
        "plots of evaluate and bench lack matplotlib; pip install '.[bench]' in the clone",
    ]


def test_people_get_the_same_in_lines_and_one_line_an_advice() -> None:
    lines = bare().stdout.splitlines()
    advice = lines[lines.index("advice:") + 1 :]
    assert len(advice) == len(ENGINE_NAMES) + 3
    assert "  openvino: not here" in lines


def test_what_is_here_is_said_to_be_here(capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["packages"]["numpy"] == np.__version__
    assert said["engines"]["onnxruntime"]["version"] == onnxruntime.__version__
    assert said["engines"]["onnxruntime"]["can_run"] is True
    assert said["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < said["memory_gb"] < 1e5


def test_what_an_evaluation_lacks_is_named_alone(
    installed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = "evaluate lacks infomap; pip install '.[evaluate]' in the clone"
    for release, needs in (((3, 12), ""), ((3, 10), " (it needs Python 3.11 or later)")):
        monkeypatch.setattr(sys, "version_info", release)
        advice = installed(scipy="1.17.1", scikit_learn="1.9.1", matplotlib="3.10")["advice"]
        assert [line for line in advice if "evaluate" in line] == [lacking + needs]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc")
def test_flags_are_whole_words_of_the_cpus_own_list() -> None:
    words = Path("/proc/cpuinfo").read_text().split()
    assert doctor.cpu()["flags"] == [flag for flag in doctor.CPU_FLAGS if flag in words]


def test_both_onnxruntimes_together_are_a_conflict(installed: Callable[..., dict[str, Any]]) -> None:
    conflict = "onnxruntime and onnxruntime-gpu overwrite each other's files; pip uninstall both"
    assert any(conflict in line for line in installed(onnxruntime="1.22.0", onnxruntime_gpu="1.22.0")["advice"])
    for only in ({"onnxruntime": "1.22.0"}, {"onnxruntime_gpu": "1.22.0"}):
        assert not any("overwrite" in line for line in installed(**only)["advice"])


@pytest.mark.parametrize(
    ("number", "release"),
    [(release, release) for release in doctor.KNOWN_BAD]
    + [("10.3.0.26", "10.3.0"), ("10.13.3.9", "10.13.3"), ("10.16.1.11.post1", "10.16.1")],
)
def test_releases_known_to_be_wrong_are_named(
    number: str, release: str, installed: Callable[..., dict[str, Any]]
) -> None:
    assert f"tensorrt {release}: {doctor.KNOWN_BAD[release]}" in installed(tensorrt=number)["advice"]


@pytest.mark.parametrize(
    "number", ["10.30", "10.30.0", "10.3.1", "10.13.30.1", "10.16.10", "10.0.1", "110.3.0", "10.3", "11.1.0.10"]
)
def test_releases_with_a_similar_number_are_not(number: str, installed: Callable[..., dict[str, Any]]) -> None:
    assert not any(line.startswith("tensorrt 1") for line in installed(tensorrt=number)["advice"])


def test_a_system_tensorrt_without_a_wheel_is_known_by_its_binding() -> None:
    packages = dict.fromkeys(doctor.PACKAGES, "1.0") | {"tensorrt": None, "onnxruntime-gpu": None}
    engines = {name: {"version": "10.3.0", "missing": None, "can_run": True} for name in ENGINE_NAMES}
    assert doctor._advice(packages, engines, has_gpu=True) == [f"tensorrt 10.3.0: {doctor.KNOWN_BAD['10.3.0']}"]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_an_engine_that_needs_a_gpu_is_not_praised_where_there_is_none(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (Gpu("NVIDIA L4", "SM89", "13.0"),) if has_gpu else ()
    monkeypatch.setattr(doctor, "find_gpus", lambda: (gpus, "libcuda.so.1 not found"))
    for module in ("tensorrt", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    said = doctor.diagnose()
    advice = {line.split()[0].rstrip(":"): line for line in said["advice"]}
    assert "pip install '.[tensorrt]' in the clone" in advice["tensorrt"]
    assert ("it runs on NVIDIA GPUs alone, and there is none here" in advice["tensorrt"]) == (not has_gpu)
    assert advice["openvino"].endswith("pip install '.[openvino]' in the clone")
    line = "NVIDIA: NVIDIA L4 SM89 (CUDA 13.0); nvcc: " if has_gpu else "NVIDIA: no GPU (libcuda.so.1 not found); nvcc: "
    assert any(each.startswith(line) for each in doctor.lines(said))


def test_a_tensorrt_that_cannot_copy_to_its_gpu_is_told() -> None:
    packages = dict.fromkeys(doctor.PACKAGES, "1.0") | {"cuda-python": None, "onnxruntime-gpu": None}
    engines = {name: {"version": "11.1.0", "missing": None, "can_run": name == "tensorrt"} for name in ENGINE_NAMES}
    told = ["tensorrt: cuda-python is missing; pip install '.[tensorrt]' in the clone"]
    assert doctor._advice(packages, engines, has_gpu=True) == told
    assert doctor._advice(packages | {"cuda-python": "13.0"}, engines, has_gpu=True) == []


def test_a_package_that_fails_on_import_does_not_stop_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = store.backend

    def sick(engine: str) -> Any:
        if engine == "openvino":
            raise ValueError("numpy.dtype size changed,\n may indicate binary incompatibility")
        return backend(engine)

    monkeypatch.setattr(store, "backend", sick)
    said = doctor.diagnose()
    assert said["engines"]["onnxruntime"]["can_run"] is True
    assert said["advice"][0] == (
        "openvino fails with ValueError (numpy.dtype size changed, may indicate binary incompatibility); "
        "pip install --force-reinstall '.[openvino]' in the clone"
    )


def test_every_package_is_named_with_an_extra_that_exists() -> None:
    import configparser

    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extras = set(config["options.extras_require"])
    assert {extra for extra in doctor.PACKAGES.values() if extra} <= extras
