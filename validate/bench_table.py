"""The results of a benchmark as tables: a narrow one for the terminal, and a Markdown page to quote from."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saccade.counted import counted
from saccade.validate.bench_results import APART, RATIOS

Row = tuple[str, ...]
Result = Mapping[str, Any]
SHORT = {"of_pytorch_eager": "of eager", "of_pytorch_bf16": "of bf16", "of_full_backbone": "of full"}
NONE = "-"


def rows(data: Result) -> list[Row]:
    """Return the head and a row for every side; ratios have a column where a side has one."""
    ratios = [name for name in RATIOS if any(name in side for side in data["sides"])] or ["of_pytorch_eager"]
    batches = ("images/s",) if any("best_batch" in side for side in data["sides"]) else ()
    head = ("side", "p50", "p90", "p99", *batches, *(SHORT[name] for name in ratios), "outside networks", "peak MB")
    found: list[Row] = [head]
    for side in data["sides"]:
        found.append(
            (
                side["name"],
                *_times(side["frame_ms"]),
                *(_throughput(side) for _ in batches),
                *(_shown(side, name, ".3f") for name in ratios),
                _shown(side, "outside_networks_share", ".2%"),
                f"{side['peak_memory_mb']:.0f}",
            )
        )
    return found


def conditions_line(conditions: Result) -> str:
    """Return what the numbers depend on most, in one line."""
    return (
        f"{conditions['cpu']['name']}, {counted(conditions['threads'], 'thread')}, "
        f"{_rounds(conditions)} in turns; ms per call"
    )


def _rounds(conditions: Result) -> str:
    return f"{counted(conditions['rounds'], 'round')} of {counted(conditions['frames_per_round'], 'frame')}"


def roof_rows(data: Result) -> list[Row]:
    """Return the head and a row for every network of every side of the chain; nothing where no roof was measured."""
    if not data["roofs"]:
        return []
    found: list[Row] = [("network", "GFLOP", "GFLOP/s", "of cold roof", "of hot roof")]
    for side in data["sides"]:
        for name, network in side.get("networks", {}).items():
            shares = (_shown(network, "of_cold_roof", ".0%"), _shown(network, "of_hot_roof", ".0%"))
            found.append((f"{name} of {side['name']}", f"{network['gflop']:.2f}", f"{network['gflop_per_s']:.0f}", *shares))
    return found


def markdown(data: Result) -> str:
    """Return the whole page: conditions, sides, stages, roofs."""
    parts = ["# Benchmark", *_conditions(data), "", "## Sides", "", *_table(_side_rows(data)), ""]
    parts += [*(f"- {SHORT[name]}: median over that of {meaning}" for name, meaning in RATIOS.items()), ""]
    parts += ["## Stages", "", "Milliseconds, p50 / p90 / p99.", "", *_table(_stage_rows(data)), ""]
    if data["roofs"]:
        networks = [name for name in data["roofs"][0]["gflop_per_s"] if name != "hot"]
        head = ("precision", "shapes", "hot", *(f"cold, {name}" for name in networks))
        measured = [(r["precision"], _shapes(r), *_speeds(r["gflop_per_s"], ["hot", *networks])) for r in data["roofs"]]
        parts += ["## Roofs", "", "GFLOP/s of OpenVINO's own products: hot is one of 2048^3, cold are a network's weight"]
        parts += ["products in turn.", "", *_table([head, *measured]), "", *_table(roof_rows(data)), ""]
    return "\n".join(parts)


def _conditions(data: Result) -> list[str]:
    conditions = data["conditions"]
    cpu = conditions["cpu"]
    versions: dict[str, str] = {}
    for side in data["sides"]:
        versions |= side["versions"]
    return [
        "",
        f"- CPU: {cpu['name']}, {counted(cpu['cores'], 'core')} ({' '.join(cpu['flags'])})",
        f"- Threads: {conditions['threads']} for every side; pinning: {conditions['pinning']}",
        f"- Boundary: {conditions['boundary']}",
        f"- Order: {conditions['order']}",
        f"- {_rounds(conditions)} after {counted(conditions['warm_up_frames'], 'frame')} of warm-up and the first one; "
        "percentiles by nearest rank over all frames",
        f"- Versions: saccade {conditions['saccade']}, Python {conditions['python']}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def _side_rows(data: Result) -> list[Row]:
    ratios = [name for name in RATIOS if any(name in side for side in data["sides"])]
    found: list[Row] = [
        (
            "side", "p50 ms", "p90 ms", "p99 ms", *(SHORT[name] for name in ratios), "images/s", "outside networks",
            "load s", "first ms", "peak MB", "1 - cosine",
        )
    ]  # fmt: skip
    for side in data["sides"]:
        found.append(
            (
                side["name"],
                *_times(side["frame_ms"]),
                *(_shown(side, name, ".3f") for name in ratios),
                _throughput(side),
                _shown(side, "outside_networks_share", ".2%"),
                f"{side['load_s']:.2f}",
                f"{side['first_ms']:.1f}",
                f"{side['peak_memory_mb']:.0f}",
                _shown(side, "parity", ".1e"),
            )
        )
    return found


def _stage_rows(data: Result) -> list[Row]:
    names = list(dict.fromkeys(name for side in data["sides"] for name in side["stage_ms"]))
    found: list[Row] = [("side", *(f"{name} (apart)" if name in APART else name for name in names))]
    for side in data["sides"]:
        if side["stage_ms"]:
            stages = side["stage_ms"]
            cells = (" / ".join(_times(stages[name], ".2f")) if name in stages else NONE for name in names)
            found.append((side["name"], *cells))
    return found


def _table(found: Sequence[Row]) -> Iterable[str]:
    rule = ("---", *["---:"] * (len(found[0]) - 1))
    return [f"| {' | '.join(row)} |" for row in (found[0], rule, *found[1:])]


def _times(times: Mapping[str, float], form: str = ".1f") -> tuple[str, ...]:
    return tuple(f"{times[name]:{form}}" for name in ("p50", "p90", "p99"))


def _shown(result: Result, name: str, form: str) -> str:
    return f"{result[name]:{form}}" if name in result else NONE


def _shapes(result: Result) -> str:
    kept = "" if result["k"] is None else f" k={result['k']}"
    return f"{result['size'][0]}x{result['size'][1]}{kept} batch={result['batch']}"


def _throughput(result: Result) -> str:
    return f"{result['images_per_s']:.1f}{' (best)' if result.get('best_batch') else ''}"


def _speeds(speeds: Mapping[str, float], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{speeds[name]:.0f}" for name in names)
