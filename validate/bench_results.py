"""What the times of a benchmark amount to: percentiles, ratios between sides, and shares of the machine's roof."""
from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saccade._version import VERSION
from saccade.engines.engine import default_device
from saccade.validate.bench_plan import AUTOCAST, CHAIN, EAGER, FULL_BACKBONE, ROOF, Side

NETWORKS = (("selector", "extractor"), ("backbone",))  # of LookWhere, and of a plain backbone
APART = ("decode", "fit", "fill")  # bringing images to the model's size, and the dense output: timed, no part of the frame
WARM_UP_FRAMES = 5
RATIOS = {  # key -> what the side's median is divided by
    "of_pytorch_eager": "eager PyTorch in fp32",
    "of_pytorch_bf16": "the faster of the PyTorch sides in bf16",
    "of_full_backbone": "the full backbone on the same engine in the same precision",
}
Stages = Mapping[str, Sequence[float]]
Result = dict[str, Any]


def collect(
    plan: Sequence[Side],
    loaded: Sequence[Mapping[str, Any]],
    stages: Sequence[Stages],
    peaks: Sequence[float],
    *,
    rounds: int,
    frames: int,
    reload: bool = False,
) -> Result:
    """Return {"conditions", "sides", "roofs"} from what each side said when loaded, its times by stage and its memory."""
    ran = list(zip(plan, loaded, stages, peaks, strict=True))
    results = [_summary(*each) for each in ran if each[0].kind != ROOF]
    roofs = [_roof(*each[:3]) for each in ran if each[0].kind == ROOF]
    _add_ratios(results)
    _add_shares(results, roofs)
    _mark_best_batches(results)
    return {"conditions": _conditions(plan, rounds, frames, reload), "sides": results, "roofs": roofs}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 by nearest rank (the smallest value that p % do not exceed) and the minimum."""
    ordered = sorted(values)
    at = {f"p{p}": round(ordered[-(-p * len(ordered) // 100) - 1], 4) for p in (50, 90, 99)}
    return at | {"min": round(ordered[0], 4)}


def _summary(side: Side, loaded: Mapping[str, Any], stages: Stages, peak: float) -> Result:
    frame = stages["frame"]
    times = percentiles(frame)
    summary: Result = {
        "name": side.name, "kind": side.kind, "engine": side.engine, "precision": side.precision,
        "device": side.device or default_device(side.engine),
        "size": list(side.size), "k": side.k if side.selects else None, "batch": side.batch,
        "static": side.static, "cls_only": side.cls_only, "streams": side.streams, "versions": loaded["versions"],
        "load_s": loaded["load_s"], "first_ms": loaded["first_ms"], "peak_memory_mb": peak,
        "frame_ms": times,
        "stage_ms": {name: percentiles(values) for name, values in stages.items() if name != "frame"},
        "images_per_s": round(1e3 * side.batch / times["p50"], 2),
    }  # fmt: skip
    for names in NETWORKS:
        if not all(name in stages for name in names):
            continue
        inside = zip(*(stages[name] for name in names), frame, strict=True)
        shares = [1 - sum(networks) / whole for *networks, whole in inside]  # with what no stage counts: copies, Python
        summary["outside_networks_share"] = round(statistics.median(shares), 5)
    if loaded["gflop"]:
        summary["networks"] = {
            name: {"gflop": round(work, 4), "gflop_per_s": _speed(work, stages[name])}
            for name, work in loaded["gflop"].items()
        }
    return summary


def _roof(side: Side, loaded: Mapping[str, Any], stages: Stages) -> Result:
    """Return a roof in GFLOP/s: `hot` one large product, and under each network's name its own products, cold."""
    speeds = {name: _speed(work, stages[name]) for name, work in loaded["gflop"].items()}
    k = side.k if side.selects else None
    where = {"precision": side.precision, "size": list(side.size), "k": k, "batch": side.batch}
    return {"engine": side.engine, **where, "versions": loaded["versions"], "gflop_per_s": speeds}


def _speed(gflop: float, milliseconds: Sequence[float]) -> float:
    return round(1e3 * gflop / statistics.median(milliseconds), 2)


def _add_ratios(results: Sequence[Result]) -> None:
    """Divide each side's median by those of the sides that `RATIOS` names, at the same size, batch and (PyTorch's) k."""
    for result in results:
        kept = _same(result, "size", "batch", "k")
        whole = _same(result, "size", "batch", "engine", "precision")
        bases = {
            "of_pytorch_eager": [r for r in results if kept(r) and (r["engine"], r["precision"]) == (EAGER, "fp32")],
            "of_pytorch_bf16": [
                r for r in results if kept(r) and r["engine"] in (EAGER, AUTOCAST) and r["precision"] == "bf16"
            ],
            "of_full_backbone": [r for r in results if whole(r) and r["kind"] == FULL_BACKBONE],
        }
        for name, others in bases.items():
            if others and (name != "of_full_backbone" or result["kind"] in (CHAIN, FULL_BACKBONE)):
                fastest = min(other["frame_ms"]["p50"] for other in others)
                result[name] = round(result["frame_ms"]["p50"] / fastest, 4)


def _same(result: Result, *names: str) -> Callable[[Result], bool]:
    return lambda other: all(other[name] == result[name] for name in names)


def _add_shares(results: Sequence[Result], roofs: Sequence[Result]) -> None:
    """Say how much of the cold and of the hot roof each network of the chain reaches, in the same precision and shapes."""
    for result in results:
        alike = _same(result, "precision", "size", "k", "batch")
        if result["kind"] != CHAIN or result["device"] != "cpu":
            continue
        for roof in filter(alike, roofs):
            speeds = roof["gflop_per_s"]
            for name, network in result.get("networks", {}).items():  # a stream has no stages to share a frame
                network["of_cold_roof"] = round(network["gflop_per_s"] / speeds[name], 4)
                network["of_hot_roof"] = round(network["gflop_per_s"] / speeds["hot"], 4)


def _mark_best_batches(results: Sequence[Result]) -> None:
    """Mark, of the batches that one thing was timed with, the one that gives most images a second."""
    alone = ("kind", "engine", "precision", "size", "k", "static", "cls_only", "streams")
    for result in results:
        others = [other for other in results if _same(result, *alone)(other)]
        if len({other["batch"] for other in others}) > 1:
            result["best_batch"] = result is max(others, key=lambda other: other["images_per_s"])


def _conditions(plan: Sequence[Side], rounds: int, frames: int, reload: bool) -> Result:
    from saccade.validate.doctor import cpu

    files = max(len(side.images) for side in plan)
    anew = ", loaded anew for it" if reload else ""
    decoded = f"; {files} image files decoded and fitted in turn, timed apart" if files else ""

    return {
        "saccade": VERSION,
        "python": platform.python_version(),
        "cpu": cpu(),
        "threads": plan[0].threads,
        "pinning": "none beyond what each engine does by itself",
        "rounds": rounds,
        "frames_per_round": frames,
        "warm_up_frames": WARM_UP_FRAMES,
        "order": "sides in turns, one process each, another side first in each round; "
        f"one untimed frame begins a turn{anew}",
        "boundary": "uint8 image of the model's size in, cls (or logits, tokens) out" + decoded,
    }
