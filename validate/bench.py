"""Time several sides fairly: a process each, all loaded first, then taken in turns so that drift hurts all alike.

All are in memory at once then. Where that is too much, each turn loads its side anew in a process of its own.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from saccade.bundle import Bundle
from saccade.engines import store
from saccade.engines.engine import EngineRequest, Progress, default_request
from saccade.errors import SaccadeError
from saccade.runtime.loading import requests_of
from saccade.validate.bench_plan import CHAIN, FULL_BACKBONE, ONE_GRAPH, Side, check_turns
from saccade.validate.bench_results import collect

IDLE_S, GRACE_S = 1.0, 10.0  # for a process to end when its input has ended, and when it has stopped answering


def build_missing(bundle: Bundle, plan: Sequence[Side], progress: Progress, note: Callable[[str], None]) -> None:
    """Build each engine that a side needs and that is not there, once: what a side then loads is only loaded.

    Every side is known to be possible before the first engine is built.
    """
    for engine in dict.fromkeys(side.engine for side in plan if side.kind in (CHAIN, FULL_BACKBONE, ONE_GRAPH)):
        store.check_runs(engine)
    ours = [side for side in plan if side.kind in (CHAIN, FULL_BACKBONE)]
    requests = dict.fromkeys(request for side in ours for request in _requests(bundle, side))
    for request in requests:
        store.check_offers(bundle, request)
        store.backend(request.engine).conditions(request)  # refuses what the engine or the CPU does not have
        store.conditions(bundle, request)  # and what the bundle does not
    for request in requests:
        store.ensure(bundle, request, progress, note)


def _requests(bundle: Bundle, side: Side) -> list[EngineRequest]:
    """Return the engines that a side loads."""
    what = (bundle, side.engine, side.precision, side.device)
    dynamic = default_request(*what, streams=side.streams, cls_only=side.cls_only)
    return requests_of(bundle, dynamic, side.static and side.k)


def export_one_graphs(plan: Sequence[Side], folder: Path, progress: Progress) -> list[Side]:
    """Return the plan with a file in `folder` for each one-graph side; sides of one size, k and batch share it."""
    paths: dict[tuple[object, ...], str] = {}
    for side in plan:
        shape = _shape(side)
        if side.kind == ONE_GRAPH and shape not in paths:
            from saccade.validate.bench_torch import export_one_graph

            progress(f"one graph: export for {side.size[0]}x{side.size[1]}, k {side.k}, batch {side.batch}")
            paths[shape] = str(folder / f"one-graph-{len(paths)}.onnx")
            export_one_graph(side, Path(paths[shape]))
    return [msgspec.structs.replace(s, graph=paths[_shape(s)]) if s.kind == ONE_GRAPH else s for s in plan]


def _shape(side: Side) -> tuple[object, ...]:
    return side.size, side.k, side.batch


class SideProcess:
    """A running side: it loads, says so, and then times a turn of frames for every line it is sent."""

    def __init__(self, side: Side) -> None:
        self.side = side
        environment = os.environ | {"OMP_NUM_THREADS": str(side.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "saccade.validate.bench_side", msgspec.json.encode(side).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # nothing is left to be flushed into a process that has ended
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches it once, through close()
        )
        assert isinstance(self._process.stdout, io.FileIO)
        self._answers = io.BufferedReader(self._process.stdout)
        try:
            self.loaded = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, frames: int) -> dict[str, Any]:
        """Run `frames` frames and return {"stages": {stage: [ms, …]}}."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended since its last turn: there will be no answer
            self._process.stdin.write(f"{frames}\n".encode())
        return self._answer()

    def close(self) -> None:
        """End the process: by itself unless it is busy, else at once, for a side writes nothing that it could half write."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(IDLE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._answers.close()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        whole = line.endswith(b"\n")  # it may have been killed in the middle of one
        answer: dict[str, Any] = json.loads(line) if whole else {"error": self._how_it_ended()}
        if "error" in answer:
            raise SaccadeError(f"{self.side.name}: {answer['error']}")
        return answer

    def _how_it_ended(self) -> str:
        """Say what became of a process that no longer answers."""
        try:
            code = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return "its process no longer answers; repeat with fewer sides at a time"
        killed = f"killed by signal {-code}; free some memory" if code < 0 else f"exit {code}; see the lines above"
        return f"its process ended ({killed})"


def run(
    plan: Sequence[Side], *, rounds: int, frames: int, reload: bool = False, on_turn: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Load all sides, then give each a turn per round, another one first each time; `reload` loads one for its turn alone.

    Returns conditions and, per side, medians and percentiles. The engines must be built: see `build_missing`.
    """
    check_turns(rounds, frames)
    loaded: list[dict[str, Any]] = [{} for _ in plan]
    stages: list[dict[str, list[float]]] = [{} for _ in plan]
    peaks = [0.0] * len(plan)
    with contextlib.ExitStack() as stack:
        held = [] if reload else [stack.enter_context(contextlib.closing(SideProcess(side))) for side in plan]
        for first in range(rounds):
            for turn in range(len(plan)):
                i = (first + turn) % len(plan)
                opened = contextlib.closing(SideProcess(plan[i])) if reload else contextlib.nullcontext(held[i])
                with opened as process:
                    answer = process.turn(frames)
                loaded[i] = loaded[i] or process.loaded
                peaks[i] = max(peaks[i], answer["peak_memory_mb"])
                for name, values in answer["stages"].items():
                    stages[i].setdefault(name, []).extend(values)
                on_turn()
    return collect(plan, loaded, stages, peaks, rounds=rounds, frames=frames, reload=reload)
