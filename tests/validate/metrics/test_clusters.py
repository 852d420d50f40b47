"""k-means finds what is there, weighs rows as told, and the spherical one climbs to a fixed point."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from saccade.errors import SaccadeError
from saccade.validate.metrics import clusters as clusters_module
from saccade.validate.metrics.clusters import POINTS_PER_CENTROID, kmeans, reduce_blocks, spherical_kmeans


def same_partition(ours: np.ndarray, theirs: np.ndarray) -> bool:
    pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
    return len(pairs) == len(set(ours.tolist())) == len(set(theirs.tolist()))


def groups(spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 50)
    return (10 * np.eye(4, 6)[labels] + spread * random.standard_normal((200, 6))).astype(np.float32), labels


@given(st.integers(0, 19))
def test_both_kinds_find_separate_groups(seed: int) -> None:
    features, labels = groups(0.5, seed)
    # Five starts of four random rows can all miss a group; with more clusters than groups every cluster is pure.
    for find in (kmeans, spherical_kmeans):
        found = find(features, 12, seed)
        assert set(found.tolist()) <= set(range(12))
        assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == len(set(found.tolist()))


def test_the_spherical_kind_ignores_length() -> None:
    features, _ = groups(0.5, 0)
    lengths = np.random.default_rng(1).uniform(0.9, 1.1, (200, 1)).astype(np.float32)
    far = features.copy()
    far[::2] *= 40  # plain k-means would now part long rows from short ones
    assert len({*zip(spherical_kmeans(far, 4, 0).tolist(), np.repeat(range(4), 50).tolist(), strict=True)}) == 4
    assert same_partition(spherical_kmeans(features * lengths, 4, 0), spherical_kmeans(far, 4, 0))


@given(st.integers(0, 49), st.integers(1, 8))
def test_spherical_assignments_are_to_the_nearest_mean_direction(seed: int, count: int) -> None:
    features = np.random.default_rng(seed).standard_normal((60, 3)).astype(np.float32)
    found = spherical_kmeans(features, count, seed)
    assert len(set(found.tolist())) == count  # no cluster is left empty
    means = np.stack([features[found == cluster].sum(axis=0) for cluster in range(count)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    products = features @ means.T
    own = products[np.arange(60), found]
    np.testing.assert_allclose(own, products.max(axis=1), atol=1e-5)


def test_an_empty_cluster_starts_anew_at_the_row_that_is_served_worst() -> None:
    sample = np.array([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]], np.float32)
    centres = clusters_module._centres(sample, np.zeros(3, int), np.array([0.5, 0.1, 0.9], np.float32), 2)
    np.testing.assert_allclose(centres, [[6 / 45**0.5, 3 / 45**0.5], [0, 1]], rtol=1e-6)


def test_training_takes_no_more_rows_than_faiss_would(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = clusters_module._spherical_run
    monkeypatch.setattr(
        clusters_module, "_spherical_run", lambda sample, *rest: (seen.append(len(sample)), run(sample, *rest))[1]
    )
    found = spherical_kmeans(np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32), 2, 0)
    assert seen == [2 * POINTS_PER_CENTROID] * 5
    assert found.shape == (1000,)


def test_rows_weigh_as_often_as_they_are_given() -> None:
    features = np.array([[0.0], [1.0], [10.0], [11.0], [50.0]], np.float32)
    without_last = kmeans(features, 2, 0, weights=np.array([2, 1, 1, 2, 0]))
    assert same_partition(without_last[:4], np.array([0, 0, 1, 1]))
    assert without_last[4] == without_last[3]  # not trained on, but assigned


def test_reduced_features_are_standardised_and_then_the_leading_directions() -> None:
    random = np.random.default_rng(2)
    features = (7 * random.standard_normal((500, 8)) @ random.standard_normal((8, 8)) + 3).astype(np.float32)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    _, values, directions = np.linalg.svd(standard.astype(np.float64), full_matrices=False)
    reduced = reduce_blocks(lambda: [features], 3)
    np.testing.assert_allclose(np.abs(reduced), np.abs(standard @ directions[:3].T), atol=1e-3)
    np.testing.assert_allclose((reduced**2).sum(axis=0), values[:3] ** 2, rtol=1e-4)
    assert reduced.dtype == np.float32


@given(st.integers(1, 40), st.integers(0, 19))
def test_blocks_of_features_are_reduced_as_the_whole_is_by_scikit_learn(step: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    features = (random.standard_normal((90, 7)) @ random.standard_normal((7, 7)) + 50).astype(np.float32)
    features[:, 3] = 0.1  # a feature that says nothing
    blocks = [features[start : start + step] for start in range(0, 90, step)]
    reduced = reduce_blocks(lambda: blocks, 4)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    expected = PCA(4, svd_solver="full").fit_transform(standard)
    np.testing.assert_allclose(np.abs(reduced), np.abs(expected), atol=2e-3)


def test_errors_say_what_is_wrong() -> None:
    features = np.ones((30, 8), np.float32)
    with pytest.raises(SaccadeError, match="feature dimensions: 8 are too few for 50 principal components"):
        reduce_blocks(lambda: [np.ones((60, 8), np.float32)])
    with pytest.raises(SaccadeError, match="patches: 30 are too few for 50 principal components"):
        reduce_blocks(lambda: [features])
    with pytest.raises(SaccadeError, match="patches: 2 are too few for 3 clusters"):
        kmeans(features, 3, 0, weights=np.array([2, 2] + 28 * [0]))
    with pytest.raises(SaccadeError, match="patches: 0 are too few for 3 principal components"):
        reduce_blocks(list, 3)
    features[3, 3] = np.nan
    with pytest.raises(SaccadeError, match="features: 1 of 30 rows holds NaN"):
        reduce_blocks(lambda: [features], 3)
    with pytest.raises(SaccadeError, match="features: 1 of 30 rows holds NaN"):
        spherical_kmeans(features, 2, 0)
