"""Open a bundle on an engine: check what is asked, build what is missing, load it."""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from saccade.bundle import BackboneModel, Bundle, read_bundle
from saccade.engines import store
from saccade.engines.by_shape import ByShape
from saccade.engines.device_engine import DeviceEngine
from saccade.engines.engine import Engine, EngineRequest, Progress, default_request
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.cuda_device import CudaDevice
from saccade.runtime.gpu_chain import GpuPipeline
from saccade.runtime.kept import MAX_CELLS, kept_on
from saccade.runtime.launch import read_fatbin

DEFAULT_ENGINE = "openvino"  # the fastest here on a CPU
MAX_THREADS = 1024
MAX_STREAMS = 64


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    engine: str = DEFAULT_ENGINE,
    precision: str = "fp32",
    device: str | int | None = None,
    threads: int = 0,
    streams: int = 1,
    static: bool | int = False,
    cls_only: bool = False,
    build: bool = True,
    progress: Progress = lambda phase: None,
    note: Callable[[str], None] | None = None,
) -> Pipeline | BackbonePipeline:
    """Open a bundle on one engine and return its pipeline; `device` is "cpu" or the index of a GPU.

    A missing or stale engine of the asked kind is built, and `note` hears why (default: one line on stderr); with
    `build=False` it is an error. `streams` frames share the threads in the pipeline's `stream`.

    `static` loads a second pair of engines beside the one that takes everything: compiled for batch 1 and one k (True is
    the bundle's), faster, and with weights of its own in memory. A network runs on it where a call has its shape.
    With `cls_only` the extractor gives `cls` (or `logits`) alone, no tokens, and is faster by most of a block.
    Both are LookWhere's: a plain backbone has neither.

    Raises SaccadeError where the bundle, the engine or the device is not to be had.
    """
    opened = opened_bundle(bundle)
    threads, streams = _counted("threads", threads, 0, MAX_THREADS), _counted("streams", streams, 1, MAX_STREAMS)
    store.backend(engine)  # refuses a name that is none
    where = None if device is None else str(device)
    asked = default_request(
        opened, engine, precision, where, threads=threads, streams=streams, cls_only=bool(cls_only)
    )
    requests = requests_of(opened, asked, static)
    for each in requests:
        store.check_offers(opened, each)
    store.check_runs(engine)
    built = [store.ensure(opened, each, progress, note or _note_on_stderr, build=build) for each in requests]
    progress("load")
    receipt, *of_static = [receipt for _, receipt in built]
    engines, model = _engines(opened, requests, built), opened.manifest.model
    if isinstance(model, BackboneModel):
        return BackbonePipeline(opened, model, engines, receipt, streams)
    return lookwhere_pipeline(opened, engines, receipt, requests[0], *of_static)


def open_built(
    bundle: Bundle, request: EngineRequest, folder: Path, receipt: store.Receipt
) -> Pipeline | BackbonePipeline:
    """Return a bundle's pipeline on one built set of engines."""
    engines, model = store.load(bundle, request, folder, receipt), bundle.manifest.model
    if isinstance(model, BackboneModel):
        return BackbonePipeline(bundle, model, engines, receipt, request.streams)
    return lookwhere_pipeline(bundle, engines, receipt, request)


def lookwhere_pipeline(
    bundle: Bundle,
    engines: dict[str, Engine],
    receipt: store.Receipt,
    request: EngineRequest,
    static_receipt: store.Receipt | None = None,
) -> Pipeline:
    """Return the chain where the engines run: on a GPU nothing between the networks comes back to the host."""
    on_device = {role: engine for role, engine in engines.items() if isinstance(engine, DeviceEngine)}
    if not on_device:
        return Pipeline(bundle, engines, receipt, request.streams, static_receipt)
    try:
        return GpuPipeline(bundle, on_device, receipt, CudaDevice(int(request.device), read_fatbin()))
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise


def load_lookwhere(bundle: str | os.PathLike[str] | Bundle, **options: Any) -> Pipeline:
    """Open a LookWhere bundle as `load` does; raises SaccadeError for a plain backbone."""
    opened = opened_bundle(bundle)
    opened.model  # noqa: B018 - raises for a plain backbone
    pipeline = load(opened, **options)
    assert isinstance(pipeline, Pipeline)
    return pipeline


def opened_bundle(bundle: str | os.PathLike[str] | Bundle) -> Bundle:
    """Return a bundle that may be given as its path."""
    if not isinstance(bundle, (str, os.PathLike, Bundle)):
        raise SaccadeError(f"bundle {bundle!r} is neither a path nor an opened bundle; give a bundle folder")
    return bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))


def _counted(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
        choice = "0 for the engine's own choice, or 1" if least == 0 else str(least)
        raise SaccadeError(f"{name} {value!r} is out of range; give {choice} to {most}")
    return int(value)


def requests_of(bundle: Bundle, dynamic: EngineRequest, static: bool | int) -> list[EngineRequest]:
    """Return what a pipeline loads: the engines that take everything and, where asked for, the static pair beside them."""
    if static is False:
        return [dynamic]
    bundle.model  # noqa: B018 - raises for a plain backbone, which has no k
    defaults, patch = bundle.manifest.defaults, bundle.manifest.model.patch
    grid = (defaults.size[0] // patch, defaults.size[1] // patch)
    k = kept_on(grid, defaults) if static is True else static
    if not _is_count(k) or not 1 <= k <= MAX_CELLS:
        raise SaccadeError(f"static {static!r} is no k; give True for the bundle's, or 1 to {MAX_CELLS}")
    return [dynamic, msgspec.structs.replace(dynamic, static_k=int(k))]


def _engines(
    bundle: Bundle, requests: Sequence[EngineRequest], built: Sequence[tuple[Path, store.Receipt]]
) -> dict[str, Engine]:
    """Load what was built; where one set cannot be loaded, the one before it is closed."""
    with contextlib.ExitStack() as stack:
        sets = []
        for request, (folder, receipt) in zip(requests, built, strict=True):
            sets.append(store.load(bundle, request, folder, receipt))
            for engine in sets[-1].values():
                stack.callback(engine.close)
        stack.pop_all()
    dynamic, *pairs = sets
    return {role: ByShape(pairs[0][role], engine) for role, engine in dynamic.items()} if pairs else dynamic


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _note_on_stderr(line: str) -> None:
    if sys.stderr is not None:  # None where the caller closed it
        print(f"saccade: {line}", file=sys.stderr)
