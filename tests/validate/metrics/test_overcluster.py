"""Clusters become classes, and pixels counts, as NeCo's PredsmIoU makes them on the golden maps."""
from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics import overcluster
from saccade.validate.metrics.clusters import kmeans
from saccade.validate.metrics.overcluster import ClusterResult, Matching, match_hungarian, match_precision, score_clusters
from saccade.validate.metrics.resize import resize_nearest

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_overclustering.npz")
TRUTH = GOLDEN["ground_truth"]
CLASSES = int(GOLDEN["num_classes"])
# name of the golden result -> (its map, clusters, the ways of matching that lead there)
CASES = {
    "hungarian6": ("clusters6", 6, ("protocol", "hungarian")),
    "greedy_precision20": ("clusters20_upsampled", 20, ("protocol", "precision")),
    "greedy_iou20": ("clusters20_upsampled", 20, ("iou",)),
    "hungarian20": ("clusters20_upsampled", 20, ("hungarian",)),
}


def test_cluster_maps_are_enlarged_as_officially() -> None:
    assert np.array_equal(resize_nearest(GOLDEN["clusters6"], (25, 25)), GOLDEN["clusters6_upsampled"])


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize(("case", "matching"), [(case, matching) for case in CASES for matching in CASES[case][2]])
def test_matching_and_counts_equal_the_official_ones(
    case: str, matching: Matching, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overcluster, "BATCH", batch)
    name, clusters, _ = CASES[case]
    result = score_clusters(TRUTH, GOLDEN[name], CLASSES, clusters, matching=matching)
    assert np.array_equal(result.total.true_positives, GOLDEN[f"{case}_tp"])
    assert np.array_equal(result.total.false_positives, GOLDEN[f"{case}_fp"])
    assert np.array_equal(result.total.false_negatives, GOLDEN[f"{case}_fn"])
    enlarged = resize_nearest(GOLDEN[name], (25, 25))
    assert np.array_equal(result.mapping[enlarged][TRUTH != 255], GOLDEN[f"{case}_reordered"])
    assert result.total.miou == pytest.approx(float(GOLDEN[f"{case}_miou"]), abs=1e-12)


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


@given(MATRICES)
def test_matching_by_precision_equals_a_loop_that_keeps_the_first_best(matrix: np.ndarray) -> None:
    for cluster, found in enumerate(match_precision(matrix)):
        precisions = [matrix[label, cluster] / max(matrix[:, cluster].sum(), 1e-8) for label in range(len(matrix))]
        assert found == precisions.index(max(precisions))


def blobs(images: int = 4, side: int = 10, dim: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens whose direction says their class, and the masks of 40 x 40 pixels that say it too."""
    random = np.random.default_rng(0)
    labels = np.zeros((images, side, side), int)
    labels[:, : side // 2, side // 3 :] = 1
    labels[:, side // 2 :, : side // 2] = 2
    centres = 4 * random.standard_normal((3, dim))
    tokens = centres[labels] + random.standard_normal((images, side, side, dim))
    return tokens.reshape(images, -1, dim).astype(np.float32), labels.repeat(4, axis=1).repeat(4, axis=2)


def clustered(tokens: np.ndarray, masks: np.ndarray, clusters: int, seed: int = 0) -> ClusterResult:
    found = kmeans(tokens.reshape(-1, tokens.shape[-1]), clusters, seed).reshape(-1, 10, 10)
    return score_clusters(masks, found, 3, clusters)


@pytest.mark.parametrize("clusters", [3, 9])
def test_separate_classes_are_found_whole(clusters: int) -> None:
    result = clustered(*blobs(), clusters)
    assert result.total.miou > 0.99
    assert result.counts.shape == (4, 3, 3)


def test_as_many_clusters_as_classes_are_matched_one_to_one_and_more_many_to_one() -> None:
    tokens, masks = blobs()
    noise = np.random.default_rng(5).standard_normal(tokens.shape).astype(np.float32)  # class 0 is every cluster's best
    as_many, more = (clustered(noise, masks, clusters) for clusters in (3, 9))
    assert sorted(as_many.mapping.tolist()) == [0, 1, 2]
    assert len(set(more.mapping.tolist())) < len(more.mapping)


def test_one_seed_always_gives_the_same_clusters() -> None:
    tokens, masks = blobs()
    noise = np.random.default_rng(5).standard_normal(tokens.shape).astype(np.float32)
    first, second, other = (clustered(noise, masks, 9, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.counts, second.counts)
    assert not np.array_equal(first.counts, other.counts)


def test_a_cluster_and_a_class_without_a_pixel_change_nothing() -> None:
    truth, found = np.array([[[0, 2, 2, 255]]]), np.array([[[4, 1, 1, 3]]])  # clusters 0, 2 and 3 and class 1 are nowhere
    result = score_clusters(truth, found, 3, 5)
    assert result.mapping[[4, 1]].tolist() == [0, 2]
    assert result.counts[0].tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_errors_say_what_is_wrong() -> None:
    _, masks = blobs()
    found = np.zeros((4, 10, 10), int)
    with pytest.raises(SaccadeError, match=r"cluster maps: shape \(3, 10, 10\); expected \(4, any, any\)"):
        score_clusters(masks, found[:3], 3, 3)
    with pytest.raises(SaccadeError, match=r"true masks: .* labels are out of range \(2\); give 0\.\.1 or 255"):
        score_clusters(masks, found, 2, 3)
    with pytest.raises(SaccadeError, match=r"predicted masks: .* labels are out of range \(3\); give 0\.\.2"):
        score_clusters(masks, found + 3, 3, 3)
    with pytest.raises(SaccadeError, match=r"clustering: every pixel is ignored \(255\)"):
        score_clusters(np.full_like(masks, 255), found, 3, 3)
