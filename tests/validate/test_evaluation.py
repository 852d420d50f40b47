"""Outcomes of several sources, the difference of two, and their tables and plot."""
from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.errors import SaccadeError
from saccade.validate import evaluation, evaluation_plot, evaluation_table
from saccade.validate.evaluation import Evaluated, compare, evaluate_sources
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task, mean_percent, no_pictures
from saccade.validate.extraction import Extractor
from saccade.validate.preparation import Squash
from saccade.validate.sources import Kept


class Slow:
    """A source that takes so many milliseconds."""

    patch = 8
    outputs = ("cls",)

    def __init__(self, label: str, milliseconds: float, k: Kept | None = None) -> None:
        self.label, self.k, self._seconds = label, k, milliseconds / 1000
        self.recipe = {"label": label}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        time.sleep(self._seconds)
        return {"cls": np.zeros((len(images), 2), np.float32)}


def outcome(hits: Sequence[float], name: str = "top-1") -> Outcome:
    samples = np.array(hits, np.float64)
    return Outcome((Score(name, 100 * float(samples.mean())),), samples)


def task(reached: dict[str, Outcome], *, network: bool) -> Task:
    def evaluate(data: Any, extract: Extractor, settings: Any) -> Outcome:
        if network:
            extract.timed_call = lambda: extract.source.run([np.zeros((8, 8, 3), np.uint8)], ["cls"])
        return reached[extract.source.label]

    return Task("some", "a task", "nothing", Settings, lambda root, settings: None, evaluate, on_lookwhere=True)


def extractors(*sources: Slow) -> list[Extractor]:
    return [Extractor(source, Path("unused"), lambda total, label: None) for source in sources]


def test_every_source_has_its_outcome_label_k_and_latency() -> None:
    reached = {"slow": outcome([0, 1]), "fast": outcome([1, 1])}
    sources = extractors(Slow("slow", 20), Slow("fast", 2, Kept(7)))
    slow, fast = evaluate_sources(task(reached, network=True), None, None, sources)
    assert (slow.label, slow.k, slow.outcome) == ("slow", None, reached["slow"])
    assert (fast.label, fast.k, fast.outcome) == ("fast", Kept(7), reached["fast"])
    assert slow.latency_ms is not None
    assert fast.latency_ms is not None
    assert 20 <= slow.latency_ms < 200
    assert 2 <= fast.latency_ms < slow.latency_ms


def test_a_task_without_a_network_has_no_latency() -> None:
    (found,) = evaluate_sources(task({"a": outcome([1])}, network=False), None, None, extractors(Slow("a", 0)))
    assert found.latency_ms is None
    assert found.data()["latency_ms"] is None


class Streaming(Slow):
    """A source that writes down when it streams and when it rests."""

    def __init__(self, label: str, events: list[str]) -> None:
        super().__init__(label, 0)
        self._events = events

    def stream(self, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        self._events.append(self.label)
        return (self.run(batch, outputs) for batch in batches)

    def rest(self) -> None:
        self._events.append(f"{self.label} rests")


def test_what_streams_hold_is_freed_when_a_side_is_done(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    events: list[str] = []
    task = Task("some", "a task", "nothing", Settings, lambda root, settings: None, extracting_twice, on_lookwhere=True)
    sides = [[Extractor(Streaming(f"{side}{k}", events), tmp_path, progress_bar) for k in "12"] for side in "ab"]
    evaluate_sources(task, tmp_path / "image.png", None, *sides)
    assert events == [f"{side}{each}" for side in "ab" for each in ("1", "1", "2", "2", "1 rests", "2 rests")]


def extracting_twice(image: Any, extract: Extractor, settings: Any) -> Outcome:
    for side in (8, 16):
        extract([image], Squash((side, side)), ["cls"])
    return outcome([1, 1])


def test_a_difference_is_the_second_less_the_first_on_the_same_samples() -> None:
    random = np.random.default_rng(0)
    good = random.random(400) < 0.9
    bad = good & (random.random(400) < 0.8)
    found = compare(Evaluated("a", outcome(good), None), Evaluated("b", outcome(bad), None))
    assert found.difference == pytest.approx(100 * (bad.mean() - good.mean()))
    assert found.low < found.difference < found.high < 0
    assert compare(Evaluated("a", outcome(good), None), Evaluated("a", outcome(good), None)).high == 0


def test_other_samples_cannot_be_compared() -> None:
    sides = Evaluated("a", outcome([1, 0]), None), Evaluated("b", outcome([1, 0, 1]), None)
    with pytest.raises(SaccadeError, match=r"a and b were scored on 2 and 3 samples; both must see the same"):
        compare(*sides)


def test_sides_that_lost_other_images_cannot_be_compared() -> None:
    def side(label: str, *failed: str) -> Evaluated:
        return Evaluated(label, outcome([1, 0]), None, failed=frozenset(failed))

    assert compare(side("a", "x.png"), side("b", "x.png")).difference == 0
    with pytest.raises(SaccadeError, match=r"y.png could be read for one of a and b alone; repeat the command"):
        compare(side("a", "x.png"), side("b", "x.png", "y.png"))


def test_the_mean_of_hits_is_a_percentage_and_no_picture_is_the_default() -> None:
    assert mean_percent(np.array([0.25])) == 25
    assert list(no_pictures()) == []


# ---- tables and plots


def report(**changes: Any) -> dict[str, Any]:
    def side(label: str, value: float, latency: float | None, k: int) -> dict[str, Any]:
        scores = [{"name": "top-1", "value": value, "unit": "%"}, {"name": f"only {label}", "value": 0.5, "unit": ""}]
        return {"label": label, "scores": scores, "latency_ms": latency, "conditions": {"version": f"{label[0]}.1-beta"},
                "details": {}, "k": k}  # fmt: skip

    difference = {"first_side": "a k=4", "second_side": "b k=4", "first": 80.0, "second": 78.0, "difference": -2.0,
                  "low": -3.5, "high": -0.5, "confidence": 0.95, "samples": 10, "units": 10,
                  "significant": True}  # fmt: skip
    found = {
        "task": "knn", "bundle": "model|x", "data": "/data/birds", "settings": {"size": 0, "neighbours": [5, 9]},
        "metric": "top-1", "unit": "%", "sides": [side("a k=4", 80, 12.34, 4), side("b k=4", 78, None, 4)],
        "differences": [difference], "max_drop": None, "notes": ["one is missing"], "passed": True,
        "conditions": {"saccade": "1.2", "cpu": {"name": "Abacus", "flags": ["beads"]}, "device": None, "threads": 0,
                       "batch": 8, "interval": {"resamples": 20, "confidence": 0.95, "seed": 3}},
    }  # fmt: skip
    return {**found, **changes}


def sweep(*engines: str) -> dict[str, Any]:
    """Return a report of engines that keep 4 and 8 patches, each other one worse than the first."""
    scores = [{"name": "top-1", "value": 90.0, "unit": "%"}]
    sides = [
        {**report()["sides"][0], "label": f"{engine} k={k}", "k": k, "scores": scores}
        for engine in engines for k in (4, 8)
    ]  # fmt: skip
    pair, others = report()["differences"][0], [side["label"] for side in sides[2:]]
    differences = [{**pair, "second_side": label, "first": number} for number, label in enumerate(others)]
    return report(sides=sides, differences=differences)


def test_a_table_holds_every_score_and_a_dash_where_a_side_has_none() -> None:
    assert evaluation_table.tables(report())[0] == [
        ("knn", "a k=4", "b k=4"),
        ("top-1 (headline)", "80.00 %", "78.00 %"),
        ("only a k=4", "0.50", "-"),
        ("only b k=4", "-", "0.50"),
        ("ms per image, batch 1", "12.3", "-"),
    ]


def test_a_difference_has_the_names_of_its_sides_and_says_whether_it_is_one() -> None:
    _, (head, row) = evaluation_table.tables(report())
    assert head == ("headline", "a", "b", "difference", "95% interval", "")
    assert row == ("top-1, k=4", "80.00", "78.00", "-2.00", "-3.50 to -0.50", "differs")
    plain = report()
    for side in plain["sides"]:
        del side["k"]
    assert evaluation_table.tables(plain)[1][0][1:3] == ("a k=4", "b k=4")  # whatever a label without a k holds
    assert evaluation_table.tables(plain)[1][1][0] == "top-1"
    unsure = report(differences=[{**report()["differences"][0], "significant": False}])
    assert evaluation_table.tables(unsure)[1][1][-1] == "no difference shown"
    unknown = {"low": math.nan, "high": math.nan, "units": 1, "significant": False}
    alone = report(differences=[{**report()["differences"][0], **unknown}])
    assert evaluation_table.tables(alone)[1][1][-3:] == ("-2.00", "none", "too few samples")


def test_a_sweep_has_a_table_for_every_engine_and_every_difference_its_row() -> None:
    *scores, first, second = evaluation_table.tables(sweep("main", "one", "two"))
    assert [each[0] for each in scores] == [(f"knn, {engine}", "k=4", "k=8") for engine in ("main", "one", "two")]
    assert [each[0][1:3] for each in (first, second)] == [("main", "one"), ("main", "two")]
    assert [row[:2] for each in (first, second) for row in each[1:]] == [
        ("top-1, k=4", "0.00"), ("top-1, k=8", "1.00"), ("top-1, k=4", "2.00"), ("top-1, k=8", "3.00"),
    ]  # fmt: skip
    (alone,) = evaluation_table.tables(sweep("main"))
    assert alone[0] == ("knn, main", "k=4", "k=8")


def test_the_gate_judges_every_difference_and_names_who_fails() -> None:
    found = sweep("main", "one", "two") | {"max_drop": 2.5}
    for each, passed in zip(found["differences"], (True, False, True, False), strict=True):
        each["passed"] = passed
    gates = [row[-1] for each in evaluation_table.tables(found)[3:] for row in each]
    assert gates == ["at most 2.5 below", "pass", "FAIL", "at most 2.5 below", "pass", "FAIL"]
    assert evaluation_table.verdict(found) == "FAIL: at most 2.5 percentage points below: one k=8, two k=8"
    assert "FAIL: at most 2.5 percentage points below: one k=8, two k=8" in evaluation_table.markdown(found).splitlines()
    good = report(max_drop=4, differences=[{**report()["differences"][0], "passed": True}], unit="")
    assert evaluation_table.verdict(good) == "pass: at most 4 below"
    assert evaluation_table.verdict({**good, "max_drop": 1, "unit": "%"}) == "pass: at most 1 percentage point below"


def test_conditions_are_two_short_lines() -> None:
    assert evaluation_table.condition_lines(report()) == [
        "a: version a.1, b: version b.1; saccade 1.2",
        "device the engine's choice, threads the engine's choice, batch 8, CPU Abacus",
    ]
    chosen = report(conditions={**report()["conditions"], "device": "cpu", "threads": 3})
    chosen["sides"][1]["conditions"] = {"torch": "2.13.0+cpu"}
    assert evaluation_table.condition_lines(chosen) == [
        "a: version a.1, b: version 2.13.0+cpu; saccade 1.2", "device cpu, threads 3, batch 8, CPU Abacus",
    ]  # fmt: skip


def test_markdown_is_a_page_of_tables_notes_and_settings() -> None:
    lines = evaluation_table.markdown(report()).splitlines()
    assert lines[0] == "# knn of model|x on /data/birds"
    assert lines[2:4] == ["| knn | a k=4 | b k=4 |", "| --- | --- | --- |"]
    assert "| top-1, k=4 | 80.00 | 78.00 | -2.00 | -3.50 to -0.50 | differs |" in lines
    assert lines[-9:-4] == ["- one is missing", "", "Settings: size 0, neighbours [5, 9].", "", "## Conditions"]
    chosen = "device the engine's choice, threads the engine's choice, batch 8"
    assert lines[-3:] == [
        f"- all: saccade 1.2, cpu Abacus, {chosen}, interval 20 paired draws from seed 3",
        "- a k=4: version a.1-beta",
        "- b k=4: version b.1-beta",
    ]
    bare = evaluation_table.markdown(report(differences=[], notes=[], settings={"a|b": 1}, task="x|y"))
    assert "difference" not in bare
    assert r"| x\|y, a | k=4 | k=4 |" in bare


def test_the_plot_has_a_line_for_every_engine_over_k_and_over_latency(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    sides = [
        {"label": f"{engine} k={k}", "k": k, "latency_ms": k / 2 + offset,
         "scores": [{"name": "top-5", "value": 1}, {"name": "top-1", "value": 10.0 * k}]}
        for engine, offset in (("openvino fp32", 1), ("openvino int8", 0))
        for k in (8, 2, 4)
    ]  # fmt: skip
    found = report(sides=sides, differences=3 * report()["differences"])  # of the second engine's sides
    figure = evaluation_plot.sweep_figure(found)
    over_k, over_latency = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in over_k.lines}
    assert lines["openvino int8"] == [[2, 20], [4, 40], [8, 80]]
    assert over_latency.lines[0].get_xydata().tolist() == [[2, 20], [3, 40], [5, 80]]
    assert [text.get_text() for text in over_latency.texts[:3]] == ["k=2", "k=4", "k=8"]
    assert over_k.get_ylabel() == "top-1, %"
    colours = {text.get_color() for text in over_latency.texts}
    assert colours == {line.get_color() for line in over_latency.lines}
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    frame = over_latency.get_window_extent(canvas.get_renderer())
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in over_latency.texts]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    evaluation_plot.write_plot(found, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG"


def test_an_engine_that_is_compared_with_itself_has_two_lines() -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    over_k, _ = evaluation_plot.sweep_figure(sweep("main", "main")).axes
    assert [line.get_xdata().tolist() for line in over_k.lines] == [[4, 8], [4, 8]]


def test_latencies_are_medians_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0, 0] * 2 + [9e9, 1e6] * 9).astype(int).tolist())
    monkeypatch.setattr(evaluation.time, "perf_counter_ns", lambda: next(clock))
    assert evaluation._latencies([lambda: None]) == [1.0]
