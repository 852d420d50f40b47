"""The host as a GPU, from the tests of the runtime, for what checks one."""
from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def new_device(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that opens one more GPU of ours."""
    path = Path(__file__).parents[1] / "runtime/host_device.py"
    spec = importlib.util.spec_from_file_location("host_device", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "HostDevice"):
        spec.loader.exec_module(module)
    kernels = module.compile_kernels(tmp_path_factory.mktemp("host_kernels"))
    return lambda: module.HostDevice(kernels)
