"""The built C library and the engine library that it opens."""
from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `binding`, which lies beside the tests

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
