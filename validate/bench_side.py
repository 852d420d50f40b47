"""One side of a benchmark, in a process of its own: load, warm up, then time as many frames as each line on stdin says."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from saccade.bundle import Bundle, Model
from saccade.errors import SaccadeError
from saccade.runtime.memory import peak_bytes
from saccade.validate import work
from saccade.validate.bench_plan import CHAIN, FULL_BACKBONE, PYTORCH, ROOF, Opened, Side, images_of
from saccade.validate.bench_results import APART, WARM_UP_FRAMES

FRAMES_A_LANE = 4  # so many in a row of each: a stream ends when its last lane does

if TYPE_CHECKING:
    from saccade.runtime.backbone import BackbonePipeline
    from saccade.runtime.chain import Pipeline


def main() -> int:
    """Serve turns until stdin ends. A Ctrl-C is the parent's: this process has a session of its own."""
    try:
        with _answers() as say:
            try:
                _serve(msgspec.json.decode(sys.argv[1], type=Side), say)
            except SaccadeError as error:
                say({"error": str(error)})
                return 1
            except MemoryError:
                say({"error": "it needs more memory than there is; give a smaller --batch or --size"})
                return 1
    except BrokenPipeError:  # the parent was interrupted and has said so; nobody listens any more
        return 1
    return 0


@contextlib.contextmanager
def _answers() -> Iterator[Callable[[dict[str, object]], None]]:
    """Yield a function that answers on stdout, where nothing else may go: what libraries print becomes stderr's."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        yield lambda answer: print(json.dumps(answer), file=stream, flush=True)


def _serve(side: Side, say: Callable[[dict[str, object]], None]) -> None:
    """Load, warm up, say so, and then answer each line on stdin with the times of as many frames."""
    start = time.perf_counter()
    with _opened(side) as (frame, versions, gflop):
        load_s = time.perf_counter() - start
        first_ms = frame()["frame"]
        for _ in range(WARM_UP_FRAMES):
            frame()
        say({"load_s": round(load_s, 3), "first_ms": round(first_ms, 2), "versions": versions, "gflop": gflop})
        for line in sys.stdin:
            frame()  # whoever had the turn before has filled the caches
            stages: dict[str, list[float]] = {}
            for _ in range(int(line)):
                for name, value in frame().items():
                    stages.setdefault(name, []).append(value)
            say({"stages": stages, "peak_memory_mb": round(peak_bytes() / 1e6, 1)})


def _opened(side: Side) -> contextlib.AbstractContextManager[Opened]:
    """Return what a side's kind runs; each brings only the libraries that it needs into this process."""
    if side.kind == CHAIN:
        return _chain(side) if side.streams == 1 else _stream(side)
    if side.kind == FULL_BACKBONE:
        return _full_backbone(side)
    if side.kind == ROOF:
        from saccade.validate.roof import open_roof

        return open_roof(side)
    if side.kind == PYTORCH:
        from saccade.validate.bench_torch import open_pytorch

        return open_pytorch(side)
    from saccade.validate.bench_one_graph import open_one_graph

    return open_one_graph(side)


def _loaded(side: Side) -> Pipeline | BackbonePipeline:
    """Load the side's engine, which the parent has built: building counts into no side's loading."""
    from saccade.runtime.loading import load

    return load(
        side.bundle,
        engine=side.engine,
        precision=side.precision,
        device=side.device,
        threads=side.threads,
        streams=side.streams,
        static=side.static and side.k,
        cls_only=side.cls_only,
        build=False,
    )


def _versions(side: Side, pipeline: Pipeline | BackbonePipeline) -> dict[str, str]:
    return {side.engine: pipeline.receipt.conditions.get("version", "")}


def _options(side: Side) -> dict[str, Any]:
    """Return what a call of the side's pipeline takes beside the images."""
    return {"size": side.size, "k": side.k} if side.selects else {"size": side.size}


def _gflop(side: Side, bundle: Bundle) -> dict[str, float]:
    """Return the work of a call by network."""
    model = bundle.manifest.model
    if isinstance(model, Model):
        return work.frame_gflop(model, bundle.manifest.task, side.k, side.batch, cls_only=side.cls_only)
    return work.backbone_gflop(model, side.k, side.batch)


@contextlib.contextmanager
def _chain(side: Side) -> Iterator[Opened]:
    """Yield the chain on the side's engine."""
    with _loaded(side) as pipeline:
        pixels, files, options = images_of(side), itertools.cycle(side.images), _options(side)

        def frame() -> dict[str, float]:
            images = list(itertools.islice(files, side.batch)) or pixels
            start = time.perf_counter_ns()
            timings = pipeline(images, **options).timings_ms
            whole = (time.perf_counter_ns() - start) / 1e6
            return {"frame": whole - sum(timings.get(name, 0.0) for name in APART), **timings}

        yield Opened(frame, _versions(side, pipeline), _gflop(side, pipeline.bundle))


@contextlib.contextmanager
def _stream(side: Side) -> Iterator[Opened]:
    """Yield a stream on the side's engine: a "frame" is one of a few for each lane, with its share of their time.

    Lanes overlap, so stages have no share of a frame.
    """
    with _loaded(side) as pipeline:
        frames, options = images_of(side) * (FRAMES_A_LANE * side.streams), _options(side)

        def frame() -> dict[str, float]:
            start = time.perf_counter_ns()
            count = sum(1 for _ in pipeline.stream(frames, **options))
            return {"frame": (time.perf_counter_ns() - start) / 1e6 / count}

        yield Opened(frame, _versions(side, pipeline), {})


@contextlib.contextmanager
def _full_backbone(side: Side) -> Iterator[Opened]:
    """Yield the extractor on every patch of the image: what the same engine takes where nothing is selected.

    The prefix rows are noise: a backbone without a selector has learned ones, which cost nothing.
    """
    from saccade.runtime.chain import Pipeline

    with _loaded(side) as pipeline:
        assert isinstance(pipeline, Pipeline)  # the plan has this side only where something is selected
        pipeline.engines["selector"].close()  # the peak memory still counts its loading
        images, model = images_of(side), pipeline.bundle.model
        cells = np.tile(np.arange(side.k, dtype=np.int32), (side.batch, 1))
        prefix = np.random.RandomState(0).standard_normal((side.batch, model.prefix, model.dim)).astype(np.float32)

        def frame() -> dict[str, float]:
            start = time.perf_counter_ns()
            timings = pipeline.extract(images, cells, prefix).timings_ms
            return {"frame": (time.perf_counter_ns() - start) / 1e6, **timings}

        gflop = side.batch * work.extractor_gflop(model, pipeline.bundle.manifest.task, side.k)
        yield Opened(frame, _versions(side, pipeline), {"extractor": gflop})


if __name__ == "__main__":
    sys.exit(main())
