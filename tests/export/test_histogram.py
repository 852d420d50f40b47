"""The histogram: what NumPy counts at once over everything, whatever order it comes in."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saccade.export.histogram import Histogram

# Exponents far apart: a black image before a bright one, and the other way round.
EXPONENTS = st.lists(st.integers(-20, 20), min_size=1, max_size=6)


@given(seed=st.integers(0, 2**32 - 1), exponents=EXPONENTS)
def test_it_counts_what_numpy_counts_of_all_values_at_once(seed: int, exponents: list[int]) -> None:
    random = np.random.default_rng(seed)
    parts = [(random.standard_normal((7, 3)) * 2.0**exponent).astype(np.float32) for exponent in exponents]
    histogram = Histogram(64)
    for part in parts:
        histogram.add(part)
    values = np.abs(np.concatenate(parts).astype(np.float64))
    assert histogram.largest == values.max() <= histogram.top
    assert histogram.top < 2 * values.max() or len(exponents) == 1
    apart = np.cumsum(histogram.counts) - np.cumsum(np.histogram(values, bins=histogram.edges)[0])
    assert (apart[-1], apart.min()) == (0, 0)
    assert apart.max() <= len(exponents)  # a part's largest value may lie on the edge of two bins


def test_zeros_alone_have_no_range_and_count_once_there_is_one() -> None:
    histogram = Histogram(4)
    histogram.add(np.zeros((2, 3), np.float32))
    assert (histogram.largest, histogram.top) == (0, 0)
    histogram.add(np.array([4.0, -1.5], np.float32))
    assert histogram.counts.tolist() == [6, 1, 0, 1]
    assert histogram.edges.tolist() == [0, 1, 2, 3, 4]
