"""saccade: LookWhere vision transformers outside PyTorch.

    import saccade

    pipe = saccade.load("build/lookwhere")
    out = pipe("photo.jpg", k=136)
    out.cls, out.tokens, out.indices

Importing this package imports no engine and no torch, and its modules only when a name is first used; `load` imports the
engine that it is asked for.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.bundle import Bundle, read_bundle
    from saccade.errors import SaccadeError
    from saccade.runtime.backbone import BackbonePipeline, Features
    from saccade.runtime.chain import Look, Output, Pipeline
    from saccade.runtime.gpu_chain import GpuPipeline
    from saccade.runtime.gpu_output import DeviceLook, DeviceOutput
    from saccade.runtime.loading import load

    __version__: str

__all__ = [
    "BackbonePipeline", "Bundle", "DeviceLook", "DeviceOutput", "Features", "GpuPipeline", "Look", "Output", "Pipeline",
    "SaccadeError", "__version__", "load", "read_bundle",
]  # fmt: skip
_HOMES = {
    "Bundle": "bundle", "read_bundle": "bundle", "SaccadeError": "errors",
    "BackbonePipeline": "runtime.backbone", "Features": "runtime.backbone",
    "Look": "runtime.chain", "Output": "runtime.chain", "Pipeline": "runtime.chain",
    "GpuPipeline": "runtime.gpu_chain", "DeviceLook": "runtime.gpu_output", "DeviceOutput": "runtime.gpu_output",
    "load": "runtime.loading",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what has a public name when it is first used, so that a command starts without what it does not need."""
    if name == "__version__":
        from saccade._version import VERSION

        return VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'saccade' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"saccade.{_HOMES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
