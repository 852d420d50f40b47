"""The picture of a sweep: an evaluation's headline against k, and against latency."""
from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.validate.bench_plots import require_matplotlib
from saccade.validate.evaluation_table import engine_and_kept, sides_by_engine

SIZE = (9.6, 4.2)  # inches


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture; one line for each engine."""
    require_matplotlib()
    buffer = io.BytesIO()
    sweep_figure(report).savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    atomic.write_bytes(path, buffer.getvalue())


def sweep_figure(report: Mapping[str, Any]) -> Any:
    """Return the figure: the headline over k or its ratio on the left, over milliseconds of one image on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    over_k, over_latency = figure.subplots(1, 2, sharey=True)
    kept, word, axis = _kept(report)
    for number, of_engine in enumerate(sides_by_engine(report)):
        sides, label = sorted(of_engine, key=lambda side: float(side[kept])), engine_and_kept(of_engine[0])[0]
        values = [_headline(report, side) for side in sides]
        over_k.plot([side[kept] for side in sides], values, marker="o", label=label)
        (line,) = over_latency.plot([side["latency_ms"] for side in sides], values, marker="o", label=label)
        place: dict[str, Any] = {"xytext": (5, -5), "va": "top"} if number % 2 else {"xytext": (-5, 5), "ha": "right"}
        for side, value in zip(sides, values, strict=True):
            over_latency.annotate(
                f"{word}{side[kept]:g}", (side["latency_ms"], value), textcoords="offset points",
                color=line.get_color(), fontsize=8, **place,
            )  # fmt: skip
    over_k.set_xlabel(axis)
    over_latency.set_xlabel("ms per image, batch 1")
    over_latency.set_title(f"beside each point: {axis}", fontsize=9, color="0.4")
    over_k.set_ylabel(f"{report['metric']}, {report['unit']}".rstrip(", "))
    for panel in (over_k, over_latency):
        panel.grid(alpha=0.3)
        panel.margins(0.1)  # room for what stands beside the outermost points
    over_k.legend()
    figure.suptitle(f"{report['task']} on {Path(report['data']).name}")
    return figure


def _headline(report: Mapping[str, Any], side: Mapping[str, Any]) -> float:
    return float(next(score["value"] for score in side["scores"] if score["name"] == report["metric"]))


def _kept(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return by which field the sides of a sweep differ, what stands before it beside a point, and what the axis says."""
    if "k" in report["sides"][0]:
        return "k", "k=", "k, patches kept"
    return "k_ratio", "", "share of the patches kept"
