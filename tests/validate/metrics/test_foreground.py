"""Foreground clusters are chosen as loops over images and cuts choose them."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.attention import noisy_foreground
from saccade.validate.metrics.clusters import spherical_kmeans
from saccade.validate.metrics.foreground import (
    choose_threshold,
    cluster_precisions,
    foreground_clusters,
    foreground_masks,
)
from saccade.validate.metrics.overcluster import score_clusters
from saccade.validate.metrics.resize import resize_nearest


@given(st.integers(1, 6), st.integers(0, 99))
def test_precisions_equal_a_loop_over_images(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    clusters, noisy = random.integers(0, count, (3, 4, 4)), random.random((3, 4, 4)) < 0.4
    assume(len(np.unique(clusters)) == count)
    for cluster, found in enumerate(cluster_precisions(clusters, noisy, count)):
        shares = [np.mean(mask[image == cluster]) for image, mask in zip(clusters, noisy, strict=True) if cluster in image]
        assert found == pytest.approx(np.mean(shares))


@given(st.integers(5, 24), st.integers(0, 99))
def test_the_threshold_is_that_of_the_best_cut_tried(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    clusters, truth = random.integers(0, count, (3, 9, 9)), random.choice([0, 1, 255], (3, 9, 9))
    precisions = random.random(count)
    best, precision = -1.0, 0.0
    for cut in range(int(0.55 * count), int(0.75 * count)):
        mask = np.isin(clusters, np.argsort(precisions)[cut:])
        unions = [np.count_nonzero(pair[0] | (pair[1] != 0)) for pair in zip(mask, truth, strict=True)]
        both = [np.count_nonzero(pair[0] & (pair[1] != 0)) for pair in zip(mask, truth, strict=True)]
        iou = np.mean(np.array(both) / np.array(unions))
        if iou >= best:
            best, precision = float(iou), float(np.sort(precisions)[cut])
    expected = min(np.arange(0, 1, 0.05), key=lambda step: abs(step - precision))
    assert choose_threshold(clusters, truth, precisions) == pytest.approx(expected)


def test_of_equal_cuts_the_one_with_more_background_wins() -> None:
    clusters = np.array([[[0, 1, 2, 3, 5, 6, 7]]])  # without cluster 4, cuts before and after it give the same mask
    precisions = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])
    assert choose_threshold(clusters, clusters // 5, precisions) == pytest.approx(0.6)


def test_masks_are_the_clusters_at_or_above_the_threshold() -> None:
    clusters = np.array([[[0, 1], [2, 1]]])
    assert foreground_masks(clusters, np.array([0.4, 0.5, 0.6]), 0.5).tolist() == [[[False, True], [True, True]]]


def scene(images: int = 6, side: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (images, side*side, 16), attention (images, 2, side*side) and labels (images, side, side).

    One of two objects stands in each image before one of four backgrounds; attention likes the object.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros((images, side, side), int)
    surface = np.repeat(random.integers(0, 4, images), side * side).reshape(labels.shape)
    for image in range(images):
        row, column = random.integers(0, side // 2, 2)
        labels[image, row : row + side // 2, column : column + side // 2] = 1 + image % 2
    kinds = np.where(labels > 0, 3 + labels, surface)
    features = 6 * np.eye(6, 16)[kinds] + 0.4 * random.standard_normal((*labels.shape, 16))
    attention = np.where(labels > 0, 3.0, 0.5)[:, None] * random.uniform(0.8, 1.2, (images, 2, side, side))
    return features.reshape(images, -1, 16).astype(np.float32), attention.reshape(images, 2, -1), labels


def test_objects_are_extracted_and_told_apart_from_attention_and_features_alone() -> None:
    features, attention, labels = scene(seed=1)
    grid, count = (20, 20), 20
    clusters = spherical_kmeans(features.reshape(-1, 16), count, seed=0).reshape(-1, *grid)
    noisy = noisy_foreground(attention, grid)
    precisions = cluster_precisions(clusters, noisy, count)
    masks = foreground_masks(clusters, precisions, choose_threshold(clusters, labels, precisions))
    assert np.mean(noisy == (labels > 0)) < 0.98
    assert np.mean(masks == (labels > 0)) > 0.99  # clusters are cleaner than the attention that they are judged by
    large = resize_nearest(masks, (100, 100))
    found = foreground_clusters(features, grid, large, clusters=2, seed=0)
    assert np.array_equal(found == 2, ~large)
    assert score_clusters(resize_nearest(labels, (100, 100)), found, 3, 3).total.miou > 0.9


def test_a_patch_weighs_as_many_pixels_as_it_covers() -> None:
    features = np.array([[[0.0], [1.0], [30.0], [31.0]]], np.float32)
    masks = np.ones((1, 4, 4), bool)
    masks[:, :, 3] = False
    found = foreground_clusters(features, (1, 4), masks, 2, seed=0)
    assert found[0, 0, 0] == found[0, 0, 1] != found[0, 0, 2]
    assert (found[~masks] == 2).all()


def test_errors_say_what_is_wrong() -> None:
    clusters, masks = np.array([[[0, 2]]]), np.array([[[True, False]]])
    with pytest.raises(SaccadeError, match=r"clusters that an image shows: 2 are too few .*, which needs 3"):
        cluster_precisions(clusters, masks, 3)
    with pytest.raises(SaccadeError, match=r"noisy foreground: shape \(1, 2, 1\); expected \(1, 1, 2\)"):
        cluster_precisions(clusters, masks.reshape(1, 2, 1), 3)
    with pytest.raises(SaccadeError, match=r"no cluster reaches the precision 0\.90 .* \(the best has 0\.300\)"):
        foreground_masks(clusters, np.array([0.1, 0.2, 0.3]), 0.9)
    with pytest.raises(SaccadeError, match="foreground: 2 clusters leave no cut to try; give at least 3"):
        choose_threshold(clusters // 2, clusters, np.array([0.1, 0.2]))
    with pytest.raises(SaccadeError, match="patches: 1 is too few for 2 clusters"):
        foreground_clusters(np.ones((1, 2, 3), np.float32), (1, 2), masks, 2, seed=0)
