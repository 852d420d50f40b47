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
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """True where it is reached; a value that is no number is not."""
        return self.value <= self.bound

    def line(self) -> str:
        """Return it in words."""
        return f"- {'reached' if self.passed else 'MISSED'}: {self.what}: {self.value:.3g}, at most {self.bound:g}"


EAGER, GRAPHED = "PyTorch fp16, eager", "PyTorch fp16, torch.compile in a CUDA graph"
CHAIN = "saccade fp16, torch.compile, one graph"
TOP_K_US = {518: 15.0, 1036: 30.0}


def verdicts(timings: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Return what the timings say of the targets, for each size and batch that has one."""
    found = []
    for each in timings:
        size, batch, frames = each["size"], each["batch"], each["frames"]
        where = f"{size} px, batch {batch}"
        top_k = each["stages"].get("top-k and gather")
        if batch == 1 and top_k and size in TOP_K_US:
            found.append(Verdict(f"top-k and gather, microseconds at {where}", top_k["median"] * 1e3, TOP_K_US[size]))
        if size == 518 and batch in (1, 8) and CHAIN in frames:
            for other, bound in ((EAGER, 0.25), (GRAPHED, 1.0)):
                if other in frames:
                    ratio = frames[CHAIN]["median"] / frames[other]["median"]
                    found.append(Verdict(f"a frame against {other} at {where}", ratio, bound))
    return found


def page(results: Mapping[str, Any]) -> str:
    """Return everything that was found as Markdown."""
    lines = ["## Measured", "", results["machine"]["line"], ""]
    for name, section in results["sections"].items():
        lines += [f"### {name}", ""]
        failed = [f"**failed**: {section['error']}"] if "error" in section else []
        lines += [*failed, *([""] if failed and section["lines"] else []), *section["lines"]]
        lines.append("")
    return "\n".join(lines)
