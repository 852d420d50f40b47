"""The built C library, the engine library that it opens, and a bundle to change."""
from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests

from binding import Library

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def library() -> Library:
    path = ROOT / "build" / "lib" / "libsaccade.so"
    if not path.exists():
        pytest.skip(f"{path} is not built; `make lib` builds it")
    return Library(path)


@pytest.fixture(scope="session")
def openvino_library() -> Path:
    """Return OpenVINO's C library, of the wheel that Python's saccade imports."""
    package = find_spec("openvino")
    assert package is not None
    assert package.submodule_search_locations
    (path,) = Path(package.submodule_search_locations[0]).glob("libs/libopenvino_c.so.*")
    return path


@pytest.fixture(scope="session")
def exported(small_bundle: Callable[[str], Path]) -> Path:
    return small_bundle("dinov2")


@pytest.fixture
def folder(tmp_path: Path, exported: Path) -> Path:
    """A bundle without graphs and engines, which opening one does not look at."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(exported / "positions.npy", folder)
    shutil.copy(exported / "bundle.json", folder)
    return folder
