"""Whether two runs differ: a paired bootstrap over the samples, for `--compare`."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_shape

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Difference:
    """A metric of two runs on the same samples, and second minus first with its interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    samples: int

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
) -> Difference:
    """Compare scores (N,) or counts (N, …) of the same N samples in one order; equal inputs give exactly 0 throughout.

    The metric is statistic(mean over samples, flattened): by default the mean score itself; `segmentation.mean_iou` of
    confusion matrices (images, C, C), since an mIoU is no mean over images. A sample that is NaN in both (a query without
    positives) is left out. Samples are drawn alike for both, so what they share cancels; the interval is the percentiles'.

    runs: the scores are (N, runs, ...), of clusterings that chance begins; the metric is the mean of the runs' own. Runs are
    drawn for each side by itself, since a seed does not lead two sides to the same clusters.
    """
    ours, theirs = _samples(first, second)
    whole = np.full(len(ours), 1 / len(ours))
    values = [float(_by_run(statistic, whole @ side, runs).mean()) for side in (ours, theirs)]
    if np.array_equal(ours, theirs):
        return Difference(values[0], values[0], 0, 0, 0, confidence, len(ours))
    random = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(random.integers(len(ours), size=len(ours)), minlength=len(ours)) / len(ours)
        minus, plus = (_drawn_mean(_by_run(statistic, weights @ side, runs), random) for side in (ours, theirs))
        drawn[number] = plus - minus
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(values[0], values[1], values[1] - values[0], float(low), float(high), confidence, len(ours))


def _by_run(statistic: Statistic, sample_mean: np.ndarray, runs: int) -> np.ndarray:
    """Return the metric of every run, float64 (runs,)."""
    return np.array([statistic(mean) for mean in sample_mean.reshape(runs, -1)])


def _drawn_mean(metrics: np.ndarray, random: np.random.Generator) -> float:
    """Return the mean of runs drawn with replacement: one fewer than there are, or five would seem surer than they are."""
    if len(metrics) == 1:
        return float(metrics[0])
    return float(metrics[random.integers(len(metrics), size=len(metrics) - 1)].mean())


def _samples(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 (N, F) without the samples that have no score."""
    check_shape("second scores", second, first.shape)
    check_enough("samples", len(first), 2, "a confidence interval")
    ours, theirs = (np.asarray(side, np.float64).reshape(len(side), -1) for side in (first, second))
    unscored, theirs_unscored = (np.asarray(np.isnan(side).any(axis=1)) for side in (ours, theirs))
    if not np.array_equal(unscored, theirs_unscored):
        place = int(np.flatnonzero(unscored != theirs_unscored)[0])
        raise SaccadeError(f"compare: sample {place} has a score in one run only; both must have seen the same samples")
    check_enough("samples with a score", int(np.count_nonzero(~unscored)), 2, "a confidence interval")
    return ours[~unscored], theirs[~unscored]
