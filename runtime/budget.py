"""k from a latency budget: the time of a few k is measured once, and the largest that fits is taken."""
from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from saccade.errors import OutOfMemoryError, SaccadeError

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)  # of the grid's cells; 0.1 is the models' own
WARM_UPS, FRAMES = 2, 10  # of each k; the first frame of a shape also compiles and captures


@dataclass(frozen=True)
class Choice:
    """What a budget bought, and what it was chosen from."""

    k: int
    budget_ms: float
    measured_ms: Mapping[int, float]  # k -> median milliseconds of a frame, from the images given to the results there
    beyond_memory: int | None = None  # the least k whose frame the GPU has no memory for

    def __str__(self) -> str:
        more = [k for k in self.measured_ms if k > self.k]
        most = ", the most there is" if self.beyond_memory is None else f"; the GPU has no memory for k {self.beyond_memory}"
        beyond = f"; k {min(more)} takes {self.measured_ms[min(more)]:.2f} ms" if more else most
        return f"k {self.k} takes {self.measured_ms[self.k]:.2f} ms of {self.budget_ms:g}{beyond}"


def buckets(cells: int, least: int, most: int) -> list[int]:
    """Return the k to measure on a grid, ascending, none below `least` or above `most`."""
    limit = min(cells, most)
    if limit < least:
        raise SaccadeError(
            f"dense output blends {least} patches, and k {limit} is the most here (the grid has {cells}, the engines were "
            f"built for {most}); give a larger size, or build them with --max-k {least}"
        )
    return sorted({min(max(least, int(share * cells)), limit) for share in SHARES})


def measure(frame: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median milliseconds of a frame; `clock` counts nanoseconds."""
    for _ in range(WARM_UPS):
        frame()
    times = []
    for _ in range(FRAMES):
        start = clock()
        frame()
        times.append((clock() - start) / 1e6)
    return statistics.median(times)


def choose(measured_ms: Mapping[int, float], budget_ms: float, beyond_memory: int | None = None) -> Choice:
    """Return the largest measured k within the budget."""
    fitting = [k for k, taken in measured_ms.items() if taken <= budget_ms]
    if not fitting:
        least = min(measured_ms, key=lambda k: measured_ms[k])
        raise SaccadeError(
            f"budget_ms {budget_ms:g} is not to be had: the fastest measured, k {least}, takes {measured_ms[least]:.2f} ms"
        )
    return Choice(max(fitting), budget_ms, dict(measured_ms), beyond_memory)


class Budget:
    """Measures what it has not measured yet, and chooses. `choice` is the last one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.choice: Choice | None = None
        self.measured_ms: dict[Hashable, dict[int, float]] = {}
        self._beyond_memory: dict[Hashable, int] = {}

    def k(self, budget_ms: object, kind: Hashable, offered: Iterable[int], frame: Callable[[int], None]) -> int:
        """Return the k of one kind of frame; `frame` runs one with a given k and waits for it."""
        limit = checked_budget(budget_ms)
        if kind not in self.measured_ms:
            self.measured_ms[kind] = self._measured(kind, offered, frame)
        self.choice = choose(self.measured_ms[kind], limit, self._beyond_memory.get(kind))
        return self.choice.k

    def _measured(self, kind: Hashable, offered: Iterable[int], frame: Callable[[int], None]) -> dict[int, float]:
        """Return the milliseconds of each k, ascending, up to the first for which there is no memory."""
        found: dict[int, float] = {}
        for k in offered:
            try:
                found[k] = measure(functools.partial(frame, k), self._clock)
            except OutOfMemoryError:
                if not found:
                    raise
                self._beyond_memory[kind] = k
                break
        return found


def checked_budget(budget_ms: object) -> float:
    """Return a budget that is a positive number."""
    is_number = isinstance(budget_ms, (int, float, np.integer, np.floating)) and not isinstance(budget_ms, bool)
    if not is_number or not 0 < float(cast(float, budget_ms)) < float("inf"):
        raise SaccadeError(f"budget_ms {budget_ms!r} is no time; give milliseconds above 0")
    return float(cast(float, budget_ms))
