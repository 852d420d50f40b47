"""saccade: LookWhere vision transformers outside PyTorch.

    import saccade

    pipe = saccade.load("build/lookwhere")
    out = pipe("photo.jpg", k=136)
    out.cls, out.tokens, out.indices

Importing this package imports no engine and no torch; `load` imports the engine that it is asked for.
"""
from __future__ import annotations

from saccade._version import VERSION
from saccade.bundle import Bundle, read_bundle
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline, Features
from saccade.runtime.chain import Look, Output, Pipeline
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.gpu_output import DeviceLook, DeviceOutput
from saccade.runtime.loading import load

__version__ = VERSION

__all__ = [
    "BackbonePipeline", "Bundle", "DeviceLook", "DeviceOutput", "Features", "GpuPipeline", "Look", "Output", "Pipeline",
    "SaccadeError", "__version__", "load", "read_bundle",
]  # fmt: skip
