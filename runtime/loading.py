"""Open a bundle on an engine: check what is asked, build what is missing, load it."""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from saccade.bundle import Bundle, read_bundle
from saccade.engines import store
from saccade.engines.engine import ByShape, Engine, EngineRequest, Progress, default_request
from saccade.errors import SaccadeError
from saccade.runtime.chain import Pipeline
from saccade.runtime.kept import MAX_CELLS, kept_on

DEFAULT_ENGINE = "openvino"  # the fastest here on a CPU
MAX_THREADS = 1024
MAX_STREAMS = 64


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    engine: str = DEFAULT_ENGINE,
    precision: str = "fp32",
    device: str | None = None,
    threads: int = 0,
    streams: int = 1,
    static: bool | int = False,
    cls_only: bool = False,
    build: bool = True,
    progress: Progress = lambda phase: None,
    note: Callable[[str], None] | None = None,
) -> Pipeline:
    """Open a bundle on one engine and return its pipeline; `device` is "cpu" or the index of a GPU.

    A missing or stale engine of the asked kind is built, and `note` hears why (default: one line on stderr); with
    `build=False` it is an error. `streams` frames share the threads in `Pipeline.stream`.

    `static` loads a second pair of engines beside the one that takes everything: compiled for batch 1 and one k (True is
    the bundle's), faster, and with weights of its own in memory. A network runs on it where a call has its shape.
    With `cls_only` the extractor gives `cls` (or `logits`) alone, no tokens, and is faster by most of a block.

    Raises SaccadeError where the bundle, the engine or the device is not to be had.
    """
    if not isinstance(bundle, (str, os.PathLike, Bundle)):
        raise SaccadeError(f"bundle {bundle!r} is neither a path nor an opened bundle; give a bundle folder")
    if not _is_count(threads) or not 0 <= threads <= MAX_THREADS:
        raise SaccadeError(f"threads {threads!r} is out of range; give 0 for the engine's own choice, or 1 to {MAX_THREADS}")
    if not _is_count(streams) or not 1 <= streams <= MAX_STREAMS:
        raise SaccadeError(f"streams {streams!r} is out of range; give 1 to {MAX_STREAMS}")
    store.backend(engine)  # refuses a name that is none
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
    running = {"threads": int(threads), "streams": int(streams)}
    dynamic = default_request(opened, engine, precision, device, cls_only=bool(cls_only), **running)
    requests = requests_of(opened, dynamic, static)
    for request in requests:
        store.check_offers(opened, request)
    store.check_runs(engine)
    built = [store.ensure(opened, request, progress, note or _note_on_stderr, build=build) for request in requests]
    progress("load")
    receipt, *of_static = [receipt for _, receipt in built]
    return Pipeline(opened, _engines(opened, requests, built), receipt, int(streams), *of_static)


def requests_of(bundle: Bundle, dynamic: EngineRequest, static: bool | int) -> list[EngineRequest]:
    """Return what a pipeline loads: the engines that take everything and, where asked for, the static pair beside them."""
    if static is False:
        return [dynamic]
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
