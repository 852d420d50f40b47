"""Phases that are counted: how many there are is said with each, so that a command of minutes shows how far it is."""
from __future__ import annotations

from saccade.cli.console import Phases


class Steps(Phases):
    """The phases of a command that knows beforehand how many it has."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.count(total)

    def count(self, total: int) -> None:
        """Begin to count anew: what follows has `total` phases."""
        self._total, self._begun = total, 0

    def __call__(self, phase: str) -> None:
        """End the phase before and begin `phase`, the next in number."""
        self._begun += 1
        super().__call__(f"{self._begun} of {self._total}: {phase}")


def time_text(seconds: float) -> str:
    """Return an estimated time in words that claim no more than it knows."""
    return f"about {max(10, round(seconds, -1)):.0f} s" if seconds < 90 else f"about {round(seconds / 60)} min"
