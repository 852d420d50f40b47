"""The pictures of a benchmark: latency against k (of a plain backbone: against size), throughput against batch, and latency
against parity. With `evaluation_plot` the only module that needs matplotlib.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.bench_plan import CHAIN, FULL_BACKBONE, ONE_GRAPH, form_in_words

FORMATS = ("png", "svg")
PANEL = (6.4, 4.4)  # inches
COLUMNS = 3
SMALLEST_PARITY = 1e-16  # equal to the last bit: a logarithmic axis has no zero
KIND_TITLES = {FULL_BACKBONE: " full backbone", ONE_GRAPH: " one graph"}
Result = Mapping[str, Any]
Shape = tuple[tuple[int, int], int]  # size and batch


def require_matplotlib() -> None:
    """Raise SaccadeError with the remedy where matplotlib is absent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SaccadeError(f"plots need matplotlib ({error}); pip install '.[bench]' in the clone") from error


def write_plots(data: Result, folder: Path) -> list[Path]:
    """Write latency.*, throughput.* of several batches, and parity.* where it was measured; returns the paths."""
    require_matplotlib()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise atomic.write_error(folder, error) from error
    figures = {"latency": latency_figure(data) if any(side["k"] for side in data["sides"]) else size_figure(data)}
    if any("best_batch" in side for side in data["sides"]):
        figures["throughput"] = throughput_figure(data)
    if any("parity" in side for side in data["sides"]):
        figures["parity"] = parity_figure(data)
    written = []
    for name, figure in figures.items():
        for suffix in FORMATS:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, bbox_inches="tight")
            written.append(folder / f"{name}.{suffix}")
            atomic.write_bytes(written[-1], buffer.getvalue())
    return written


def latency_figure(data: Result) -> Any:
    """Return the median of every side over k, a panel for each size and batch; bars reach from p50 to p90."""
    shapes = _shapes(data["sides"])
    figure, panels = _panels(len(shapes), _caption(data))
    colours = _colours(data["sides"])
    for panel, shape in zip(panels, shapes, strict=True):
        here = [side for side in data["sides"] if _shape(side) == shape]
        for name, sides in _lines(here).items():
            if sides[0]["kind"] == FULL_BACKBONE:
                panel.axhline(sides[0]["frame_ms"]["p50"], color=colours[name], linestyle=":", label=name)
                continue
            _latency_line(panel, [side["k"] for side in sides], sides, name, colours)
        ks = sorted({side["k"] for side in here if side["kind"] != FULL_BACKBONE})
        _log_axes(panel, {k: str(k) for k in ks})
        panel.set_title(_shape_title(shape))
        panel.set_xlabel("patches kept (k)")
        panel.set_ylabel("latency (ms per call, p50 to p90)")
    _legend(figure, panels, list(colours))
    figure.suptitle("Latency by patches kept")
    return figure


def size_figure(data: Result) -> Any:
    """Return the median of every side over the image's pixels, a panel for each batch; bars reach from p50 to p90."""
    batches = list(dict.fromkeys(side["batch"] for side in data["sides"]))
    figure, panels = _panels(len(batches), _caption(data))
    colours = _colours(data["sides"])
    for panel, batch in zip(panels, batches, strict=True):
        here = [side for side in data["sides"] if side["batch"] == batch]
        for name, sides in _lines(here, _pixels).items():
            _latency_line(panel, [_pixels(side) for side in sides], sides, name, colours)
        _log_axes(panel, {_pixels(side): "x".join(map(str, side["size"])) for side in sorted(here, key=_pixels)})
        panel.set_title(f"batch {batch}")
        panel.set_xlabel("image (px)")
        panel.set_ylabel("latency (ms per call, p50 to p90)")
    _legend(figure, panels, list(colours))
    figure.suptitle("Latency by image size")
    return figure


def throughput_figure(data: Result) -> Any:
    """Return the images a second of every side over the batch, a panel for each size and k; a ring is round the best."""
    shapes = list(dict.fromkeys((tuple(side["size"]), side["k"]) for side in data["sides"]))
    figure, panels = _panels(len(shapes), _caption(data))
    colours = _colours(data["sides"])
    for panel, (size, k) in zip(panels, shapes, strict=True):
        here = [side for side in data["sides"] if (tuple(side["size"]), side["k"]) == (size, k)]
        for name, sides in _lines(here, lambda side: int(side["batch"])).items():
            batches, speeds = ([side[key] for side in sides] for key in ("batch", "images_per_s"))
            panel.plot(batches, speeds, color=colours[name], label=name, **_style(sides[0]))
            for best in (side for side in sides if side.get("best_batch")):
                panel.scatter(best["batch"], best["images_per_s"], s=150, facecolors="none", edgecolors=colours[name])
        _log_axes(panel, {batch: str(batch) for batch in sorted({side["batch"] for side in here})})
        panel.set_title(f"{size[0]} x {size[1]} px{'' if k is None else f', k = {k}'}")
        panel.set_xlabel("batch")
        panel.set_ylabel("images per second (of the p50)")
    _legend(figure, panels, list(colours))
    figure.suptitle("Throughput by batch")
    return figure


def _latency_line(
    panel: Any, places: Sequence[int], sides: Sequence[Result], name: str, colours: Mapping[str, str]
) -> None:
    """Draw one line of medians, with bars up to p90."""
    medians = [side["frame_ms"]["p50"] for side in sides]
    above = [max(0.0, side["frame_ms"]["p90"] - side["frame_ms"]["p50"]) for side in sides]
    bars = [[0.0] * len(above), above]
    panel.errorbar(places, medians, yerr=bars, color=colours[name], label=name, capsize=2, **_style(sides[0]))


def _style(side: Result) -> dict[str, str]:
    """Return how a line is drawn: ours whole, peers dashed."""
    return {"marker": "o", "linestyle": "-"} if side["kind"] == CHAIN else {"marker": "x", "linestyle": "--"}


def parity_figure(data: Result) -> Any:
    """Return the median over the distance from PyTorch, a panel for each size and batch at one k; a step is the front."""
    having = [side for side in data["sides"] if "parity" in side]
    shapes = _shapes(having)
    figure, panels = _panels(len(shapes), _caption(data))
    colours = _colours(data["sides"])
    for panel, shape in zip(panels, shapes, strict=True):
        here = [side for side in having if _shape(side) == shape]
        k = max((side["k"] for side in here if side["k"] is not None), default=None)
        points = [(max(side["parity"], SMALLEST_PARITY), side["frame_ms"]["p50"], side) for side in here if side["k"] == k]
        front = pareto([(x, y) for x, y, _ in points])
        if len(front) > 1:
            panel.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=1, label="Pareto front", zorder=1)
        for x, y, side in points:
            panel.scatter(x, y, s=60, color=colours[_line(side)], label=_line(side), zorder=2)
        panel.set_xscale("log")
        panel.margins(0.15)
        _plain_ticks(panel.yaxis)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.set_title(f"{_shape_title(shape)}{'' if k is None else f', k = {k}'}")
        panel.set_xlabel("1 - cosine of the features with PyTorch, golden images")
        panel.set_ylabel("latency (ms per call, p50)")
    _legend(figure, panels, list(colours))
    figure.suptitle("Latency and distance from PyTorch")
    return figure


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both coordinates, by the first; smaller is better."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _panels(count: int, caption: str) -> tuple[Any, list[Any]]:
    """Return a figure with `count` axes in rows, and the machine's name below."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    figure.supxlabel(caption, fontsize=8, color="0.4")
    return figure, axes[:count]


def _legend(figure: Any, panels: Sequence[Any], order: Sequence[str]) -> None:
    """Name every line once, right of all panels, in the order of the sides."""
    named: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    named = dict(sorted(named.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order)))
    figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=8, frameon=False)


def _log_axes(panel: Any, ticks: Mapping[int, str]) -> None:
    """Set both axes logarithmic, with what was measured as ticks and plain numbers at the other axis."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if len(ticks) > 1:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.set_yscale("log")
    _plain_ticks(panel.yaxis)
    panel.grid(alpha=0.3, which="both")


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    if high < 10 * low:  # powers of ten and their 2, 3 and 5 would leave one number, or none
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else ""))


def _colours(sides: Sequence[Result]) -> dict[str, str]:
    """Return a colour for every line; an engine's precision on the full backbone has that of the chain's."""
    palette = [f"C{i}" for i in range(10)]
    own = list(dict.fromkeys(_line(side).removesuffix(KIND_TITLES[FULL_BACKBONE]) for side in sides))
    return {_line(side): palette[own.index(_line(side).removesuffix(KIND_TITLES[FULL_BACKBONE])) % 10] for side in sides}


def _lines(
    sides: Sequence[Result], place: Callable[[Result], int] = lambda side: int(side["k"])
) -> dict[str, list[Result]]:
    """Return the sides by line, each in order of their place on the horizontal axis."""
    found: dict[str, list[Result]] = {}
    for side in sorted(sides, key=place):
        found.setdefault(_line(side), []).append(side)
    return {name: found[name] for name in dict.fromkeys(_line(side) for side in sides)}


def _line(side: Result) -> str:
    form = form_in_words(side["static"], side["cls_only"], side["streams"])
    return f"{side['engine']} {side['precision']}{KIND_TITLES.get(side['kind'], '')}{form}"


def _pixels(side: Result) -> int:
    return int(side["size"][0] * side["size"][1])


def _shape(side: Result) -> Shape:
    height, width = side["size"]
    return (height, width), side["batch"]


def _shapes(sides: Sequence[Result]) -> list[Shape]:
    return list(dict.fromkeys(_shape(side) for side in sides))


def _shape_title(shape: Shape) -> str:
    (height, width), batch = shape
    return f"{height} x {width} px, batch {batch}"


def _caption(data: Result) -> str:
    conditions = data["conditions"]
    frames = conditions["rounds"] * conditions["frames_per_round"]
    where = f"{conditions['cpu']['name']}, {counted(conditions['threads'], 'thread')}"
    return f"{where}, {counted(frames, 'frame')} a side, saccade {conditions['saccade']}"
