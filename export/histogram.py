"""The histogram of an activation's absolute values, image after image, whatever the first image showed.

It starts at 0 and doubles its width where a larger value comes: bins of a width taken from the first image would be none
for a constant activation, and memory without end where a black image comes before a bright one.
"""
from __future__ import annotations

import numpy as np

BINS = 2048  # between half of them and all lie below the largest value


class Histogram:
    """Counts of absolute values in BINS equal bins from 0 to `top`; `top` is 0 as long as there was nothing but zeros."""

    def __init__(self, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.top = 0.0
        self.largest = 0.0

    @property
    def edges(self) -> np.ndarray:
        """The ends of the bins (bins + 1,)."""
        return np.linspace(0, self.top, len(self.counts) + 1)

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape."""
        found = np.abs(values, dtype=np.float64).ravel()
        self.largest = max(self.largest, float(found.max()))
        if not self.largest:
            self.counts[0] += len(found)
            return
        self.top = self.top or self.largest
        while self.top < self.largest:
            self._double()
        self.counts += np.histogram(found, bins=len(self.counts), range=(0, self.top))[0]

    def _double(self) -> None:
        half = len(self.counts) // 2
        self.counts[:half] = self.counts.reshape(half, 2).sum(axis=1)
        self.counts[half:] = 0
        self.top *= 2
