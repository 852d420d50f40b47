"""How the programs beside this file are run: as they are and under sanitizers, on a small bundle with its engine."""
from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests

from binding import Library
from builds import BUILDS, ROOT, environment

TIME_LIMIT_S = 300

Run = Callable[..., str]


@pytest.fixture(scope="session")
def library() -> Library:
    """Return the release build, as `make lib` leaves it."""
    path = ROOT / "build" / "lib" / "libsaccade.so"
    if not path.exists():
        pytest.fail(f"{path} is not built; run 'make lib-test'", pytrace=False)
    return Library(path)


@pytest.fixture(scope="session")
def engine_library() -> Path:
    """Return the path of OpenVINO's C library in its wheel."""
    spec = importlib.util.find_spec("openvino")
    assert spec is not None and spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0], "libs").glob("libopenvino_c.so*"))


@pytest.fixture
def run(built_bundle: Callable[[str], Path], engine_library: Path) -> Run:
    """Return a function that runs a program of one build and returns what it printed."""

    def run_program(build: str, program: str, *arguments: str | Path, kind: str = "dinov2") -> str:
        path = BUILDS / build / "tests" / program
        if not path.exists():
            pytest.fail(f"{path} is not built; run 'make lib-test'", pytrace=False)
        command = [path, built_bundle(kind), engine_library, *arguments]
        options = {"env": environment(build), "timeout": TIME_LIMIT_S}
        done = subprocess.run(command, **options, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    return run_program


@pytest.fixture(scope="session")
def exported(small_bundle: Callable[[str], Path]) -> Path:
    return small_bundle("dinov2")


@pytest.fixture
def folder(tmp_path: Path, exported: Path) -> Path:
    """Return a bundle without graphs and engines, which opening one does not look at."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(exported / "positions.npy", folder)
    shutil.copy(exported / "bundle.json", folder)
    return folder
