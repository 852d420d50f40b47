"""The host as a GPU, for the tests of what runs on one."""
from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def host_device() -> ModuleType:
    """Return the module of the stand-in; tests have no package to import it from."""
    path = Path(__file__).with_name("host_device.py")
    spec = importlib.util.spec_from_file_location("host_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def host_kernels(host_device: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_device.compile_kernels(tmp_path_factory.mktemp("host_kernels"))


@pytest.fixture
def new_device(host_device: ModuleType, host_kernels: ctypes.CDLL) -> Callable[..., Any]:
    """Return a function that opens one more GPU of ours."""
    return lambda **options: host_device.HostDevice(host_kernels, **options)
