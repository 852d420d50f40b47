"""Clusters become classes, and pixels counts, as NeCo's PredsmIoU makes them on the golden maps."""
from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.overcluster import match_greedy, match_hungarian, overcluster, score_clusters
from saccade.validate.metrics.resize import resize_nearest

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_overclustering.npz")
TRUTH = GOLDEN["ground_truth"]
CLASSES = int(GOLDEN["num_classes"])
# name of the golden result -> (its map, clusters, matching)
CASES = {
    "hungarian6": ("clusters6_upsampled", 6, "hungarian"),
    "greedy_precision20": ("clusters20_upsampled", 20, "precision"),
    "greedy_iou20": ("clusters20_upsampled", 20, "iou"),
    "hungarian20": ("clusters20_upsampled", 20, "hungarian"),
}


def test_cluster_maps_are_enlarged_as_officially() -> None:
    assert np.array_equal(resize_nearest(GOLDEN["clusters6"], (25, 25)), GOLDEN["clusters6_upsampled"])


@pytest.mark.parametrize("case", CASES)
def test_matching_and_counts_equal_the_official_ones(case: str) -> None:
    name, clusters, matching = CASES[case]
    result = score_clusters(TRUTH, GOLDEN[name], CLASSES, clusters, matching)
    assert np.array_equal(result.counts.true_positives, GOLDEN[f"{case}_tp"])
    assert np.array_equal(result.counts.false_positives, GOLDEN[f"{case}_fp"])
    assert np.array_equal(result.counts.false_negatives, GOLDEN[f"{case}_fn"])
    assert np.array_equal(result.mapping[GOLDEN[name]][TRUTH != 255], GOLDEN[f"{case}_reordered"])
    assert result.miou == pytest.approx(float(GOLDEN[f"{case}_miou"]), abs=1e-12)
    assert result.background_share == pytest.approx(float(GOLDEN[f"{case}_background_share"]), abs=1e-12)


MATRICES = st.integers(2, 5).flatmap(
    lambda side: st.lists(st.integers(0, 30), min_size=side * side, max_size=side * side).map(
        lambda counts: np.array(counts).reshape(side, side)
    )
)


@given(MATRICES)
def test_hungarian_matching_is_the_best_of_all_permutations(matrix: np.ndarray) -> None:
    side = len(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1)[:, None] - matrix
    iou = matrix / np.maximum(union, 1e-8)
    best = max(sum(iou[label, cluster] for cluster, label in enumerate(order)) for order in permutations(range(side)))
    mapping = match_hungarian(matrix)
    assert sorted(mapping.tolist()) == list(range(side))
    assert sum(iou[mapping, np.arange(side)]) == pytest.approx(best)


@given(MATRICES, st.sampled_from(["precision", "iou"]))
def test_greedy_matching_equals_a_loop_that_keeps_the_first_best(matrix: np.ndarray, score: str) -> None:
    for cluster, found in enumerate(match_greedy(matrix, score)):
        scores = []
        for label in range(len(matrix)):
            hits, extra = matrix[label, cluster], matrix[:, cluster].sum()
            missed = matrix[label].sum() - hits if score == "iou" else 0
            scores.append(hits / max(extra + missed, 1e-8))
        assert found == scores.index(max(scores))


def blobs(images: int = 4, side: int = 10, dim: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens whose direction says their class, and the masks of 40 x 40 pixels that say it too."""
    random = np.random.default_rng(0)
    labels = np.zeros((images, side, side), int)
    labels[:, : side // 2, side // 3 :] = 1
    labels[:, side // 2 :, : side // 2] = 2
    centres = 4 * random.standard_normal((3, dim))
    tokens = centres[labels] + random.standard_normal((images, side, side, dim))
    return tokens.reshape(images, -1, dim).astype(np.float32), labels.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize("clusters", [3, 9])
def test_separate_classes_are_found_whole(clusters: int) -> None:
    tokens, masks = blobs()
    result = overcluster(tokens, (10, 10), masks, 3, clusters, seed=0)
    assert result.miou > 0.99
    assert len(result.confusions) == 4


def test_as_many_clusters_as_classes_are_matched_one_to_one_and_more_many_to_one() -> None:
    tokens, masks = blobs()
    noise = np.random.default_rng(5).standard_normal(tokens.shape).astype(np.float32)  # class 0 is every cluster's best
    as_many, more = (overcluster(noise, (10, 10), masks, 3, clusters, seed=0) for clusters in (3, 9))
    assert sorted(as_many.mapping.tolist()) == [0, 1, 2]
    assert len(set(more.mapping.tolist())) < len(more.mapping)
    assert (as_many.background_share, more.background_share) == (1 / 3, np.mean(more.mapping == 0))


def test_one_seed_always_gives_the_same_clusters() -> None:
    tokens, masks = blobs()
    noise = np.random.default_rng(5).standard_normal(tokens.shape).astype(np.float32)
    first, second = (overcluster(noise, (10, 10), masks, 3, 9, seed=3) for _ in range(2))
    assert np.array_equal(first.confusions, second.confusions)
    other = overcluster(noise, (10, 10), masks, 3, 9, seed=4)
    assert not np.array_equal(first.confusions, other.confusions)


def test_errors_say_what_is_wrong() -> None:
    tokens, masks = blobs()
    with pytest.raises(SaccadeError, match=r"tokens: shape \(4, 100, 60\); expected \(4, 81, any\)"):
        overcluster(tokens, (9, 9), masks, 3, 3, seed=0)
    with pytest.raises(SaccadeError, match="patches: 400 are too few for 401 clusters"):
        overcluster(tokens, (10, 10), masks, 3, 401, seed=0)
    with pytest.raises(SaccadeError, match=r"true masks: .* labels are out of range \(2\); give 0\.\.1 or 255"):
        overcluster(tokens, (10, 10), masks, 2, 3, seed=0)
    with pytest.raises(SaccadeError, match=r"clustering: every pixel is ignored \(255\)"):
        overcluster(tokens, (10, 10), np.full_like(masks, 255), 3, 3, seed=0)
    with pytest.raises(SaccadeError, match="matching: 'best' is unknown; give hungarian, precision or iou"):
        score_clusters(TRUTH, TRUTH % 2, CLASSES, 2, "best")
