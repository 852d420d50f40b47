"""Open a bundle on an engine: check what is asked, build what is missing, load it."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from saccade.bundle import Bundle, read_bundle
from saccade.engines import store
from saccade.engines.device_engine import DeviceEngine
from saccade.engines.engine import EngineRequest, Progress, default_request
from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.cuda_device import CudaDevice
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.launch import read_fatbin

DEFAULT_ENGINE = "openvino"  # the fastest here on a CPU
MAX_THREADS = 1024
MAX_STREAMS = 64
CPU_ENGINES = ("openvino", "onnxruntime")  # those with streams


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    engine: str = DEFAULT_ENGINE,
    precision: str = "fp32",
    device: str | int | None = None,
    threads: int = 0,
    streams: int = 1,
    build: bool = True,
    progress: Progress = lambda phase: None,
    note: Callable[[str], None] | None = None,
) -> Pipeline:
    """Open a bundle on one engine and return its pipeline; `device` is "cpu" or the index of a GPU.

    A missing or stale engine of the asked kind is built, and `note` hears why (default: one line on stderr); with
    `build=False` it is an error. `streams` frames share the threads in `Pipeline.stream`. Raises SaccadeError where the
    bundle, the engine or the device is not to be had.
    """
    if not isinstance(bundle, (str, os.PathLike, Bundle)):
        raise SaccadeError(f"bundle {bundle!r} is neither a path nor an opened bundle; give a bundle folder")
    if not _is_count(threads) or not 0 <= threads <= MAX_THREADS:
        raise SaccadeError(f"threads {threads!r} is out of range; give 0 for the engine's own choice, or 1 to {MAX_THREADS}")
    if not _is_count(streams) or not 1 <= streams <= MAX_STREAMS:
        raise SaccadeError(f"streams {streams!r} is out of range; give 1 to {MAX_STREAMS}")
    if streams > 1 and engine not in CPU_ENGINES:
        raise SaccadeError(f"{engine} runs one frame at a time; leave streams at 1, or use {' or '.join(CPU_ENGINES)}")
    device = device if device is None else str(device)
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
    found = store.backend(engine).capabilities()
    if not found.can_run:  # before an engine is built that only another machine can use
        raise SaccadeError(found.missing or f"{engine} cannot run here")
    request = default_request(opened, engine, precision, device, int(threads), int(streams))
    folder, receipt = store.ensure(opened, request, progress, note or _note_on_stderr, build=build)
    progress("load")
    return open_built(opened, request, folder, receipt)


def open_built(bundle: Bundle, request: EngineRequest, folder: Path, receipt: store.Receipt) -> Pipeline:
    """Return the chain on a built engine, where it runs: on a GPU nothing between the networks comes back to the host."""
    engines = store.load(bundle, request, folder, receipt)
    on_device = {role: engine for role, engine in engines.items() if isinstance(engine, DeviceEngine)}
    if not on_device:
        return Pipeline(bundle, engines, receipt, request.streams)
    try:
        return GpuPipeline(bundle, on_device, receipt, CudaDevice(int(request.device), read_fatbin()))
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _note_on_stderr(line: str) -> None:
    if sys.stderr is not None:  # None where the caller closed it
        print(f"saccade: {line}", file=sys.stderr)
