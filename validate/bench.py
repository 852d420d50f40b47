"""Time several sides fairly: a process each, all loaded first, then taken in turns so that drift hurts all alike."""
from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from saccade._version import VERSION
from saccade.bundle import Bundle
from saccade.engines import store
from saccade.engines.engine import Progress, default_request
from saccade.errors import SaccadeError
from saccade.runtime.chain import checked_k
from saccade.runtime.images import check_size
from saccade.runtime.loading import MAX_THREADS

NETWORKS = ("selector", "extractor")
APART = ("decode", "fit", "fill")  # bringing images to the model's size, and the dense output: timed, no part of the frame
WARM_UP_FRAMES = 5
IDLE_S, GRACE_S = 1.0, 10.0  # for a process to end when its input has ended, and when it has stopped answering
PYTORCH = "pytorch-eager"  # the side that is no engine


class Side(Struct, frozen=True):
    """One process of the benchmark: PyTorch on the checkpoint, or the chain on an engine, at one size, k and batch."""

    name: str
    bundle: str
    engine: str  # an engine's name, or PYTORCH
    precision: str
    device: str | None
    size: tuple[int, int]
    k: int
    batch: int
    threads: int
    checkpoint: str | None


def plan_from(
    bundle: Bundle,
    *,
    engines: Sequence[str],
    precisions: Sequence[str],
    sizes: Sequence[int] | None,
    ks: Sequence[int] | None,
    batches: Sequence[int],
    device: str | None,
    threads: int,
    checkpoint: Path | None,
) -> list[Side]:
    """Return every combination asked for, checked before anything is started."""
    defaults, patch = bundle.manifest.defaults, bundle.model.patch
    if not 0 <= threads <= MAX_THREADS:
        raise SaccadeError(f"--threads {threads} is not to be had; give 1 to {MAX_THREADS}, or 0 for every core")
    threads = threads or len(os.sched_getaffinity(0))
    names = [(engine, precision) for engine in engines for precision in precisions]
    if checkpoint is not None:
        if not checkpoint.is_file():  # its side would say so too, but only when every engine is built
            raise SaccadeError(f"{checkpoint}: no such checkpoint file; give the one that {bundle.path} was made of")
        names.insert(0, (PYTORCH, "fp32"))
    plan = []
    extents: Sequence[int | None] = sizes or [None]
    for size, batch in itertools.product(extents, batches):
        if batch < 1:
            raise SaccadeError(f"--batch {batch} is not to be had; give 1 or more")
        pixels = check_size(defaults.size if size is None else (size, size), patch)
        cells = pixels[0] * pixels[1] // patch**2
        usual = defaults.k_on(cells)
        for k, (engine, precision) in itertools.product(ks or [usual], names):
            checked_k(k, cells, dense=bundle.manifest.task == "segment")
            label = f"{engine} {precision} {pixels[0]}x{pixels[1]} k={k} batch={batch}"
            file = str(checkpoint) if checkpoint else None
            plan.append(Side(label, str(bundle.path), engine, precision, device, pixels, k, batch, threads, file))
    return plan


def check_turns(rounds: int, frames: int) -> None:
    """Refuse a benchmark of nothing."""
    if rounds < 1 or frames < 1:
        raise SaccadeError(f"--rounds {rounds} and --frames {frames} must be at least 1; give 1 or more of each")


def build_missing(bundle: Bundle, plan: Sequence[Side], progress: Progress, note: Callable[[str], None]) -> None:
    """Build each engine that a side needs and that is not there, once: what a side then loads is only loaded."""
    for engine, precision, device in dict.fromkeys((side.engine, side.precision, side.device) for side in plan):
        if engine == PYTORCH:
            continue
        found = store.backend(engine).capabilities()
        if not found.can_run:
            raise SaccadeError(found.missing or f"{engine} cannot run here; 'saccade doctor' says what it lacks")
        store.ensure(bundle, default_request(bundle, engine, precision, device), progress, note)


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


def run(plan: Sequence[Side], *, rounds: int, frames: int, on_turn: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Load all sides, then give each a turn per round; returns conditions and, per side, medians and percentiles.

    The engines must be built: see `build_missing`.
    """
    check_turns(rounds, frames)
    with contextlib.ExitStack() as stack:
        sides = []
        for side in plan:
            sides.append(SideProcess(side))
            stack.callback(sides[-1].close)
        stages: list[dict[str, list[float]]] = [{} for _ in sides]
        peaks = [0.0] * len(sides)
        for _ in range(rounds):
            for i, process in enumerate(sides):
                answer = process.turn(frames)
                peaks[i] = answer["peak_memory_mb"]
                for name, values in answer["stages"].items():
                    stages[i].setdefault(name, []).extend(values)
                on_turn()
    results = [_summary(process, times, peak) for process, times, peak in zip(sides, stages, peaks, strict=True)]
    _add_ratios(results)
    return {"conditions": _conditions(plan[0], rounds, frames), "sides": results}


def _summary(process: SideProcess, stages: dict[str, list[float]], peak: float) -> dict[str, Any]:
    side = process.side
    frame = stages["frame"]
    percentiles = _percentiles(frame)
    summary: dict[str, Any] = {
        "name": side.name, "engine": side.engine, "precision": side.precision, "size": list(side.size), "k": side.k,
        "batch": side.batch, "versions": process.loaded["versions"],
        "load_s": process.loaded["load_s"], "first_ms": process.loaded["first_ms"], "peak_memory_mb": peak,
        "frame_ms": percentiles,
        "stage_ms": {name: _percentiles(values) for name, values in stages.items() if name != "frame"},
        "images_per_s": round(1e3 * side.batch / percentiles["p50"], 2),
    }  # fmt: skip
    if "selector" in stages:
        inside = zip(*(stages[name] for name in NETWORKS), frame, strict=True)
        shares = [1 - sum(networks) / whole for *networks, whole in inside]  # with what no stage counts: copies, Python
        summary["outside_networks_share"] = round(statistics.median(shares), 5)
    return summary


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 by nearest rank (the smallest value that p % do not exceed) and the minimum."""
    ordered = sorted(values)
    at = {f"p{p}": round(ordered[-(-p * len(ordered) // 100) - 1], 4) for p in (50, 90, 99)}
    return at | {"min": round(ordered[0], 4)}


def _add_ratios(results: list[dict[str, Any]]) -> None:
    """Add each side's median over PyTorch's at the same size, k and batch."""
    for result in results:
        same = ("size", "k", "batch")
        for other in results:
            if other["engine"] == PYTORCH and all(other[name] == result[name] for name in same):
                result["of_pytorch_eager"] = round(result["frame_ms"]["p50"] / other["frame_ms"]["p50"], 4)


def _conditions(side: Side, rounds: int, frames: int) -> dict[str, Any]:
    from saccade.validate.doctor import cpu

    return {
        "saccade": VERSION,
        "python": platform.python_version(),
        "cpu": cpu(),
        "threads": side.threads,
        "rounds": rounds,
        "frames_per_round": frames,
        "warm_up_frames": WARM_UP_FRAMES,
        "boundary": "uint8 image of the model's size in, cls (or logits, tokens) out; sides in turns, one process each",
    }
