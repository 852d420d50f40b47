"""A bundle of the test's own without engines, one engine in it, and OpenVINO as another version."""
from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade import Bundle, read_bundle
from saccade.engines.openvino import OpenVINOBackend

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside the tests
from kept_engines import OPENVINO, ensure


@pytest.fixture
def bundle(small_bundle: Callable[[str], Path], tmp_path: Path) -> Bundle:
    """Return a copy of the small bundle without engines."""
    copy = shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    return read_bundle(copy)


@pytest.fixture
def built(bundle: Bundle, built_bundle: Callable[[str], Path]) -> Path:
    """Return the folder of a whole OpenVINO engine of `bundle`, built elsewhere: engines travel with their bundle."""
    shutil.copytree(built_bundle("dinov2") / "engines", bundle.engines_path)
    return ensure(bundle, OPENVINO, build=False)


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenVINO another version than the one engines were built with."""
    original = OpenVINOBackend.conditions
    monkeypatch.setattr(OpenVINOBackend, "conditions", lambda *given: original(*given) | {"version": "2099.1"})
