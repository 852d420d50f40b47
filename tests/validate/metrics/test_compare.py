"""The bootstrap gives 0 for equal runs, covers the truth as often as it says, and sees a run that is worse."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.clusters import kmeans
from saccade.validate.metrics.compare import groups_of, paired_bootstrap
from saccade.validate.metrics.overcluster import score_clusters
from saccade.validate.metrics.segmentation import ClassCounts, matched_counts, mean_iou_of_counts


@given(st.integers(2, 40), st.integers(0, 99))
def test_equal_runs_differ_by_exactly_nothing(samples: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for scores in (random.random(samples), random.random((samples, 3, 3))):
        found = paired_bootstrap(scores, scores.copy(), lambda mean: float(mean[0]), resamples=20)
        assert (found.difference, found.low, found.high) == (0, 0, 0)
        assert not found.is_significant


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    random = np.random.default_rng(0)
    first = random.random(400)
    second = first + random.normal(0.02, 0.1, 400)
    found = paired_bootstrap(first, second)
    error = (second - first).std(ddof=1) / 20
    assert found.first == pytest.approx(first.mean())
    assert found.difference == pytest.approx((second - first).mean())
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.1 * error)
    assert found.samples == 400


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        first = random.random(80) < 0.7
        second = np.where(random.random(80) < 0.2, random.random(80) < 0.4, first)  # true difference: 0.2 (0.4 - 0.7)
        found = paired_bootstrap(first, second, resamples=300)
        covered += found.low <= -0.06 <= found.high
    assert 0.9 <= covered / 300 <= 0.98


def test_groups_of_dependent_samples_need_to_be_drawn_whole() -> None:
    random, members = np.random.default_rng(10), np.repeat(np.arange(40), 5)
    covered, covered_alone = 0, 0
    for _ in range(150):
        first = random.random(200)
        second = first + random.normal(0, 0.1, 40)[members] + random.normal(0, 0.05, 200)  # true difference: 0
        found = paired_bootstrap(first, second, resamples=150, groups=members)
        alone = paired_bootstrap(first, second, resamples=150)
        assert (found.difference, found.samples, found.units, alone.units) == (alone.difference, 200, 40, 200)
        covered, covered_alone = covered + (not found.is_significant), covered_alone + (not alone.is_significant)
    assert 0.91 <= covered / 150 <= 0.98
    assert covered_alone / 150 < 0.75


def test_few_units_give_an_interval_that_is_too_narrow() -> None:
    random = np.random.default_rng(11)
    sides = ((first, first + random.normal(0, 0.1, 8)) for first in random.random((200, 8)))
    covered = sum(not paired_bootstrap(*each, resamples=150).is_significant for each in sides)
    assert covered / 200 < 0.92


def test_groups_of_one_give_the_interval_of_samples_and_their_numbers_mean_nothing() -> None:
    first, second = np.random.default_rng(12).random((2, 30))
    alone = paired_bootstrap(first, second)
    assert paired_bootstrap(first, second, groups=np.arange(30) * 7 - 4) == alone
    assert alone.units == 30


def test_a_group_counts_as_often_as_it_has_samples() -> None:
    first, second = np.zeros(4), np.array([1.0, 1, 1, 5])
    found = paired_bootstrap(first, second, groups=np.array([8, 8, 8, 3]))
    assert (found.difference, found.low, found.high) == (2, 1, 5)  # one of both twice, or each once: 1, 5 and 2


def test_queries_that_look_for_a_common_image_are_of_one_group() -> None:
    looked_for = [[0, 1], [2], [1, 5], [7], [5, 2], []]
    groups = groups_of([np.array(rows, int) for rows in looked_for])
    assert len({groups[0], groups[1], groups[2], groups[4]}) == 1
    assert len(set(groups.tolist())) == 3


@given(st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=12))
def test_groups_are_the_connected_parts(looked_for: list[list[int]]) -> None:
    from scipy.sparse.csgraph import connected_components

    common = [[bool(set(one) & set(other)) for other in looked_for] for one in looked_for]
    count, expected = connected_components(np.array(common), directed=False)
    groups = groups_of([np.array(rows, int) for rows in looked_for])
    assert len(np.unique(groups)) == count
    assert len({*zip(groups.tolist(), expected.tolist(), strict=True)}) == count


def test_what_samples_share_cancels() -> None:
    random = np.random.default_rng(2)
    hard = 10 * random.random(50)
    paired = paired_bootstrap(hard, hard + 0.1)
    assert paired.low == pytest.approx(0.1)
    assert paired.high == pytest.approx(0.1)
    assert paired.is_significant
    shuffled = paired_bootstrap(hard, random.permutation(hard + 0.1))
    assert not shuffled.is_significant


def test_an_miou_is_compared_from_the_counts_of_its_images() -> None:
    random = np.random.default_rng(3)
    good = random.integers(0, 5, (30, 3, 3)) + 40 * np.eye(3, dtype=int)
    bad = random.integers(0, 9, (30, 3, 3)) + 30 * np.eye(3, dtype=int)
    first, second = (matched_counts(matrices, np.arange(3)) for matrices in (good, bad))
    found = paired_bootstrap(first, second, mean_iou_of_counts)
    assert found.first == pytest.approx(100 * ClassCounts.of_images(first).miou)
    assert found.second == pytest.approx(100 * ClassCounts.of_images(second).miou)
    assert found.high < 0
    assert found.low < found.difference < found.high


def runs_of(random: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Return scores (images, 5 runs) whose runs differ far more than images do."""
    return np.asarray(images[:, None] + random.normal(0, 0.1, 5))


def test_runs_that_chance_begins_are_drawn_too() -> None:
    random, sure, covered = np.random.default_rng(8), 0, 0
    for _ in range(200):
        images = random.random(40)
        first, second = runs_of(random, images), runs_of(random, images)
        covered += not paired_bootstrap(first, second, resamples=200, runs=5).is_significant
        sure += paired_bootstrap(first.mean(axis=1), second.mean(axis=1), resamples=200).is_significant
    assert sure == 200  # by the images alone every pair differs
    assert 0.87 <= covered / 200 <= 0.98  # five runs are too few for all of 0.95


def clustered(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the counts of images in five clusterings of their patches."""
    runs = [kmeans(features.reshape(-1, 8), 21, seed).reshape(labels.shape) for seed in range(5)]
    return np.stack([score_clusters(labels, run, 21, 21).counts for run in runs], axis=1)


def test_a_jitter_of_clustered_features_is_no_difference() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 21, (200, 4, 4))
    features = random.standard_normal((21, 8))[labels] + 0.8 * random.standard_normal((200, 4, 4, 8))
    clean, found = clustered(features, labels), []
    for _ in range(8):
        jittered = features + 0.02 * features.std() * random.standard_normal(features.shape)
        found.append(paired_bootstrap(clean, clustered(jittered, labels), mean_iou_of_counts, resamples=300, runs=5))
    assert all(each.difference for each in found)
    assert sum(each.is_significant for each in found) <= 1  # 5 of them if the runs stand as fixed


def test_the_metric_of_runs_is_the_mean_of_theirs() -> None:
    random = np.random.default_rng(9)
    samples = [random.integers(0, 50, (7, 3, 3, 4)) for _ in range(2)]
    first, second = (side.swapaxes(0, 1) for side in samples)
    found = paired_bootstrap(*samples, mean_iou_of_counts, resamples=9, runs=3)
    assert found.first == pytest.approx(np.mean([100 * ClassCounts.of_images(counts).miou for counts in first]))
    assert found.second == pytest.approx(np.mean([100 * ClassCounts.of_images(counts).miou for counts in second]))
    equal = paired_bootstrap(samples[0], samples[0].copy(), mean_iou_of_counts, resamples=9, runs=3)
    assert (equal.difference, equal.low, equal.high) == (0, 0, 0)


def test_one_seed_gives_one_interval_and_exchanged_runs_the_mirrored_one() -> None:
    first, second = np.random.default_rng(4).random((2, 30))
    found, again = (paired_bootstrap(first, second, seed=5) for _ in range(2))
    assert found == again != paired_bootstrap(first, second, seed=6)
    mirrored = paired_bootstrap(second, first, seed=5)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    first, second = np.random.default_rng(7).random((2, 30))
    narrow, wide = (paired_bootstrap(first, second, confidence=share) for share in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_samples_without_a_score_in_both_runs_are_left_out() -> None:
    first, second = np.array([1, np.nan, 0, 1]), np.array([1, np.nan, 1, 1])
    found = paired_bootstrap(first, second)
    assert (found.samples, found.first, found.second) == (3, pytest.approx(2 / 3), 1)
    assert paired_bootstrap(first, second, groups=np.array([4, 9, 4, 5])).units == 2


@pytest.mark.parametrize(
    ("first", "second", "groups"),
    [([1], [0], None), ([1, np.nan], [0, np.nan], None), ([1, 1, 1], [0, 0, 0], [2, 2, 2]), ([1], [1], None)],
)
def test_one_unit_has_a_difference_and_no_interval(
    first: list[float], second: list[float], groups: list[int] | None
) -> None:
    found = paired_bootstrap(np.array(first), np.array(second), groups=None if groups is None else np.array(groups))
    assert (found.first, found.second, found.difference, found.units) == (1, second[0], second[0] - 1, 1)
    assert np.isnan([found.low, found.high]).all()
    assert not found.is_significant


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(SaccadeError, match=r"second scores: shape \(3,\); expected \(4\)"):
        paired_bootstrap(np.ones(4), np.ones(3))
    with pytest.raises(SaccadeError, match="samples: 0 are too few for a difference, which needs 1"):
        paired_bootstrap(np.empty(0), np.empty(0))
    with pytest.raises(SaccadeError, match="compare: sample 1 has a score in one run only"):
        paired_bootstrap(np.ones(3), np.array([1, np.nan, 1]))
    with pytest.raises(SaccadeError, match="samples with a score: 0 are too few"):
        paired_bootstrap(np.full(2, np.nan), np.full(2, np.nan))
    with pytest.raises(SaccadeError, match=r"groups: shape \(2,\); expected \(3\)"):
        paired_bootstrap(np.ones(3), np.ones(3), groups=np.array([2, 2]))
