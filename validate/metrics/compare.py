"""Whether two runs differ: a paired bootstrap over the samples, for `--compare`."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_shape

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
FEWEST_UNITS = 20  # below, the percentiles' interval is too narrow: of 10 units it covers 90 % where it says 95

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Difference:
    """A metric of two runs on the same samples, and second minus first with its interval."""

    first: float
    second: float
    difference: float
    low: float  # NaN, as is `high`, where there is but one unit: nothing can be drawn that would tell
    high: float
    confidence: float
    samples: int
    units: int  # what was drawn: groups of samples that belong together, or samples

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def _mean(sample_mean: np.ndarray) -> float:
    return float(sample_mean[0])


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Statistic = _mean,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    runs: int = 1,
    groups: np.ndarray | None = None,
) -> Difference:
    """Compare scores (N,) or counts (N, …) of the same N samples in one order; equal inputs give exactly 0 throughout.

    The metric is statistic(mean over samples, flattened): by default the mean score itself; `segmentation.mean_iou` of
    confusion matrices (images, C, C), since an mIoU is no mean over images. A sample that is NaN in both (a query without
    positives) is left out. Samples are drawn alike for both, so what they share cancels; the interval is the percentiles'.

    runs: the scores are (N, runs, ...), of clusterings that chance begins; the metric is the mean of the runs' own. Runs are
    drawn for each side by itself, since a seed does not lead two sides to the same clusters.

    groups: a number for every sample (N,); samples of one group are no news of each other (queries of one landmark), so
    whole groups are drawn. None: every sample stands for itself. One group, or one sample, has no interval.
    """
    ours, theirs, members = _samples(first, second, groups)
    units = int(members.max()) + 1
    whole = np.full(len(ours), 1 / len(ours))
    values = [float(_by_run(statistic, whole @ side, runs).mean()) for side in (ours, theirs)]
    difference = values[1] - values[0]
    if units == 1:
        return Difference(values[0], values[1], difference, math.nan, math.nan, confidence, len(ours), units)
    if np.array_equal(ours, theirs):
        return Difference(values[0], values[0], 0, 0, 0, confidence, len(ours), units)
    random = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        times = np.bincount(random.integers(units, size=units), minlength=units)[members]
        weights = times / times.sum()
        minus, plus = (_drawn_mean(_by_run(statistic, weights @ side, runs), random) for side in (ours, theirs))
        drawn[number] = plus - minus
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(values[0], values[1], difference, float(low), float(high), confidence, len(ours), units)


def groups_of(positives: Sequence[np.ndarray]) -> np.ndarray:
    """Return the group of each query by the rows that it looks for, int64: queries with a row in common are of one group.

    So are those that a third query links.
    """
    groups = np.arange(len(positives))
    first: dict[int, int] = {}  # row -> the first query that looks for it
    for query, rows in enumerate(positives):
        for row in rows.tolist():
            groups[groups == groups[query]] = groups[first.setdefault(row, query)]
    return groups


def _by_run(statistic: Statistic, sample_mean: np.ndarray, runs: int) -> np.ndarray:
    """Return the metric of every run, float64 (runs,)."""
    return np.array([statistic(mean) for mean in sample_mean.reshape(runs, -1)])


def _drawn_mean(metrics: np.ndarray, random: np.random.Generator) -> float:
    """Return the mean of runs drawn with replacement: one fewer than there are, or five would seem surer than they are."""
    if len(metrics) == 1:
        return float(metrics[0])
    return float(metrics[random.integers(len(metrics), size=len(metrics) - 1)].mean())


def _samples(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both as float64 (N, F) without the samples that have no score, and the group of each, counted from 0."""
    check_shape("second scores", second, first.shape)
    check_enough("samples", len(first), 1, "a difference")
    ours, theirs = (np.asarray(side, np.float64).reshape(len(side), -1) for side in (first, second))
    unscored, theirs_unscored = (np.asarray(np.isnan(side).any(axis=1)) for side in (ours, theirs))
    if not np.array_equal(unscored, theirs_unscored):
        place = int(np.flatnonzero(unscored != theirs_unscored)[0])
        raise SaccadeError(f"compare: sample {place} has a score in one run only; both must have seen the same samples")
    check_enough("samples with a score", int(np.count_nonzero(~unscored)), 1, "a difference")
    given = np.arange(len(first)) if groups is None else groups
    check_shape("groups", given, (len(first),))
    return ours[~unscored], theirs[~unscored], np.unique(given[~unscored], return_inverse=True)[1]
