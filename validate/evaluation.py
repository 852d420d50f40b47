"""An evaluation of one or several sources of features: scores, latency, and how far the others are from the first."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from saccade.errors import SaccadeError
from saccade.validate.evaluations.task import Outcome, Task
from saccade.validate.extraction import Extractor
from saccade.validate.metrics.compare import FEWEST_UNITS, Difference, paired_bootstrap
from saccade.validate.sources import Kept, StreamingSource

WARM_UP, TIMED = 2, 9  # images of a latency


@dataclass(frozen=True)
class Evaluated:
    """What one source has reached. `latency_ms` is the median of single images; None where none went through a network."""

    label: str
    outcome: Outcome
    latency_ms: float | None
    k: Kept | None = None
    failed: frozenset[str] = frozenset()  # images that could not be read
    conditions: Mapping[str, str] = field(default_factory=dict)  # the source's recipe: engine, versions, hashes

    def data(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        scores = [asdict(score) for score in self.outcome.scores]
        latency = None if self.latency_ms is None else round(self.latency_ms, 2)
        found = {
            "label": self.label, "scores": scores, "latency_ms": latency, "conditions": dict(self.conditions),
            "details": dict(self.outcome.details),
        }  # fmt: skip
        if self.k is None:
            return found
        return {**found, **({"k": self.k.number} if self.k.ratio is None else {"k_ratio": self.k.ratio})}


def evaluate_sources(task: Task, data: Any, settings: Any, *sides: Sequence[Extractor]) -> list[Evaluated]:
    """Run the task on features of each source of each side, which are all open; their latencies are taken in turns.

    These turns need every engine in memory at once, so opening each for its extraction alone would lower no peak. What
    extractions open beside it is closed when a side's last one is done.
    """
    outcomes = []
    for side in sides:
        outcomes += [task.evaluate(data, extract, settings) for extract in side]
        for extract in side:
            if isinstance(extract.source, StreamingSource):
                extract.source.rest()
    extractors = [extract for side in sides for extract in side]
    latencies = _latencies([extract.timed_call for extract in extractors if extract.timed_call])
    timed = iter(latencies)
    return [
        Evaluated(
            extract.source.label, outcome, next(timed) if extract.timed_call else None, extract.source.k,
            frozenset(extract.failed), extract.source.recipe,
        )
        for extract, outcome in zip(extractors, outcomes, strict=True)
    ]


def compare(first: Evaluated, second: Evaluated) -> Difference:
    """Return the second's headline against the first's on the same samples, with its confidence interval.

    Raises SaccadeError where they did not see the same samples.
    """
    ours, theirs = first.outcome, second.outcome
    if len(ours.samples) != len(theirs.samples):
        counts = f"{len(ours.samples)} and {len(theirs.samples)}"
        raise SaccadeError(f"{first.label} and {second.label} were scored on {counts} samples; both must see the same")
    if first.failed != second.failed:
        image = min(first.failed ^ second.failed)
        raise SaccadeError(f"{image} could be read for one of {first.label} and {second.label} alone; repeat the command")
    return paired_bootstrap(ours.samples, theirs.samples, ours.statistic, runs=ours.runs, groups=ours.groups)


def few_units_note(drawn: Sequence[int]) -> tuple[str, ...]:
    """Say where intervals rest on so few independent units that they are too narrow, and where there can be none."""
    few = sorted({units for units in drawn if 1 < units < FEWEST_UNITS})
    none = "one sample, or samples that all belong together, have no interval and pass no --max-drop; give more"
    return (none,) * (1 in drawn) + tuple(
        f"intervals rest on {units} independent samples or groups of them; of fewer than {FEWEST_UNITS} they are too narrow"
        for units in few
    )


def _latencies(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median of each call in milliseconds, after a warm-up, in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(WARM_UP + TIMED):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter_ns()
            call()
            if turn >= WARM_UP:
                taken.append((time.perf_counter_ns() - start) / 1e6)
    return [statistics.median(taken) for taken in times]
