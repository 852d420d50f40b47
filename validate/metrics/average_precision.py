"""Average precision of a ranking by trapezoids, as the Holidays and the revisited Oxford/Paris packages sum it.

Mirrors score_ap_from_ranks_1 of PW-Self's eval_copy_detection.py and compute_ap of its utils.py, which are one formula.
"""
from __future__ import annotations

import numpy as np


def average_precision(ranks: np.ndarray, positives: int) -> float:
    """Return the area under precision over recall, in 0..1.

    ranks: ascending 0-based places of the positives that were found, integers (n,). positives: how many there are in all;
    those not found count as never reached.
    """
    places = np.asarray(ranks, np.float64)
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float(np.sum(before + after) / (2 * positives))
