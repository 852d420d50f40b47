"""Axes of a benchmark's plots can be read, whatever the range of what was measured."""
from __future__ import annotations

import pytest

from saccade.validate.bench_plots import _log_axes

pytest.importorskip("matplotlib", reason="plots need matplotlib")


@pytest.mark.parametrize("values", [(250, 550), (2.6, 3.4), (34, 101), (3, 2000), (0.02, 0.9)], ids=str)
def test_a_logarithmic_axis_has_at_least_three_plain_numbers(values: tuple[float, float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    panel = figure.subplots()
    panel.plot([16, 64], values)
    _log_axes(panel, {16: "16", 64: "64"})
    FigureCanvasAgg(figure).draw()
    low, high = panel.get_ylim()
    ticks = [*panel.yaxis.get_major_ticks(), *panel.yaxis.get_minor_ticks()]
    shown = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    numbers = [float(text) for text in shown if text]
    assert len(set(numbers)) >= 3
    assert panel.get_yscale() == "log"
