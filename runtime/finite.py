"""Whether features are numbers at all: an engine in a low precision may overflow."""
from __future__ import annotations

import numpy as np


def row_not_finite(array: np.ndarray) -> int | None:
    """Return the first row of an array (N, ...) that holds NaN or infinity, or None."""
    sums = array.reshape(len(array), -1).sum(axis=1, dtype=np.float64)  # as wide as the rows, unlike isfinite of all values
    rows = np.flatnonzero(~np.isfinite(sums))
    return int(rows[0]) if len(rows) else None
