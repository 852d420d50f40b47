"""The figures of a check on a GPU in words: statistics, what a kernel moves, verdicts, and the page for docs/gpu.md."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from saccade.bundle import Model


class Times(Struct, frozen=True):
    """Milliseconds of several runs."""

    median: float
    p10: float
    p90: float
    runs: int

    def divided(self, count: int) -> Times:
        """Return the share of one of `count` equal parts."""
        return Times(self.median / count, self.p10 / count, self.p90 / count, self.runs)


def times_of(times: Sequence[float]) -> Times:
    """Return the median and the 10th and 90th percentile."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return Times(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def moved_bytes(model: Model, channels: int, batch: int, grid: tuple[int, int], k: int) -> dict[str, int]:
    """Return the bytes that each kernel has to read and write in float32, each once, by step."""
    cells, patch_pixels = grid[0] * grid[1], 3 * model.patch**2
    scores = 4 * batch * cells
    return {
        # Four source pixels of three bytes for each pixel of the selector's input.
        "preprocess": batch * model.selector_size**2 * (4 * 3 + 3 * 4),
        "resize_scores": 4 * batch * model.map_size**2 + scores,
        "rank": scores + 4 * batch * model.map_size**2 + 4 * batch * k,
        "gather": batch * k * (4 + patch_pixels * (1 + 4) + 2 * 4 * model.dim),
        "fill": 4 * batch * channels * (k + cells),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns after the first are numbers."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(row) + " |" for row in (header, align, *rows)]


def kernel_rows(stages: Mapping[str, Times], moved: Mapping[str, int], bandwidth: float) -> list[list[str]]:
    """Return a row for each kernel: time, bytes, bandwidth and its share of a copy's."""
    rows = []
    for name, size in moved.items():
        seconds = stages[name].median / 1e3
        rate = size / seconds
        rows.append([name, f"{seconds * 1e6:.1f}", f"{size / 1e6:.2f}", f"{rate / 1e9:.0f}", f"{rate / bandwidth:.0%}"])
    return rows


def frame_rows(frames: Mapping[str, Times], against: str) -> list[list[str]]:
    """Return a row for each way to run a frame, its time and its share of one of them."""
    base = frames[against].median if against in frames else None
    rows = []
    for name, times in frames.items():
        share = f"{times.median / base:.2f}" if base else "-"
        rows.append([name, f"{times.median:.3f}", f"{times.p10:.3f} to {times.p90:.3f}", share])
    return rows


class Verdict(Struct, frozen=True):
    """One thing the chain is meant to reach."""

    what: str
    value: float | None  # None where it was not measured
    bound: float

    @property
    def passed(self) -> bool:
        """True where it is reached; what was not measured is not, nor is a value that is no number."""
        return self.value is not None and self.value <= self.bound

    def line(self) -> str:
        """Return it in words."""
        if self.value is None:
            return f"- NOT MEASURED: {self.what}, at most {self.bound:g}"
        return f"- {'reached' if self.passed else 'MISSED'}: {self.what}: {self.value:.3g}, at most {self.bound:g}"


EAGER, GRAPHED = "PyTorch fp16, eager", "PyTorch fp16, torch.compile in a CUDA graph"
CHAIN = "saccade fp16, torch.compile, one graph"
TOP_K = "top-k and gather"
TOP_K_US = {518: 15.0, 1036: 30.0}  # microseconds by size, at batch 1
FRAME_SIZE, FRAME_BATCHES = 518, (1, 8)
FRAME_RATIOS = {EAGER: 0.25, GRAPHED: 1.0}  # of our frame to another's


def verdicts(timings: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Return what the timings say of every target."""
    found = []
    for size, bound in TOP_K_US.items():
        taken = _median_ms(timings, size, 1, "stages", TOP_K)
        us = None if taken is None else taken * 1e3
        found.append(Verdict(f"{TOP_K}, microseconds at {size} px, batch 1", us, bound))
    for batch in FRAME_BATCHES:
        ours = _median_ms(timings, FRAME_SIZE, batch, "frames", CHAIN)
        for other, bound in FRAME_RATIOS.items():
            theirs = _median_ms(timings, FRAME_SIZE, batch, "frames", other)
            ratio = None if ours is None or theirs is None else ours / theirs
            found.append(Verdict(f"a frame against {other} at {FRAME_SIZE} px, batch {batch}", ratio, bound))
    return found


def _median_ms(timings: Sequence[Mapping[str, Any]], size: int, batch: int, kind: str, name: str) -> float | None:
    """Return the median of something that was timed, None where it was not."""
    for each in timings:
        if (each["size"], each["batch"]) == (size, batch) and name in each.get(kind, {}):
            return float(each[kind][name]["median"])
    return None


def page(results: Mapping[str, Any]) -> str:
    """Return everything that was found as Markdown."""
    lines = ["## Measured", "", results["machine"]["line"], ""]
    for name, section in results["sections"].items():
        lines += [f"### {name}", ""]
        failed = [f"**failed**: {section['error']}"] if "error" in section else []
        lines += [*failed, *([""] if failed and section["lines"] else []), *section["lines"]]
        lines.append("")
    return "\n".join(lines)
