"""Pixels are counted as a loop counts them, per image and in all."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.segmentation import (
    class_counts,
    confusion,
    image_confusions,
    image_counts,
    mean_iou_of_counts,
    merge_clusters,
)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 99), st.sampled_from([None, 0, 255]))
def test_confusion_equals_a_loop_over_pixels(classes: int, predicted: int, seed: int, ignore: int | None) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (2, 4, 5))
    if ignore == 255:
        truth[random.random(truth.shape) < 0.3] = 255
    prediction = random.integers(0, predicted, truth.shape).astype(np.uint8)
    expected = np.zeros((classes, predicted), int)
    for label, found in zip(truth.ravel(), prediction.ravel(), strict=True):
        if label != ignore:
            expected[label, found] += 1
    assert np.array_equal(confusion(truth, prediction, classes, predicted, ignore), expected)
    assert np.array_equal(image_confusions(truth, prediction, classes, predicted, ignore).sum(axis=0), expected)


def test_iou_of_a_small_case() -> None:
    counts = class_counts(confusion(np.array([0, 0, 1, 1, 255]), np.array([0, 1, 1, 1, 0]), 3))
    assert counts.true_positives.tolist() == [1, 2, 0]
    assert counts.false_positives.tolist() == [0, 1, 0]
    assert counts.false_negatives.tolist() == [1, 0, 0]
    assert counts.iou.tolist() == [1 / 2, 2 / 3, 0]
    assert counts.miou == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_uint8_masks_do_not_overflow() -> None:
    labels = np.arange(200, dtype=np.uint8)
    assert np.array_equal(confusion(labels, labels, 200), np.eye(200))


def test_mean_counts_of_images_have_the_miou_of_their_matrices() -> None:
    matrices = np.random.default_rng(1).integers(0, 50, (7, 4, 4))
    counts = image_counts(matrices)
    assert counts.shape == (7, 3, 4)
    assert mean_iou_of_counts(counts.mean(axis=0).ravel()) == pytest.approx(100 * class_counts(matrices).miou, abs=1e-12)


def test_a_class_that_is_nowhere_counts_as_nothing_found() -> None:
    assert mean_iou_of_counts(np.array([2.0, 0, 0, 0, 0, 0])) == 50


def test_clusters_merge_into_their_classes() -> None:
    matrix = np.array([[[1, 2, 4], [8, 16, 32]]])
    assert merge_clusters(matrix, np.array([1, 0, 1]), 2).tolist() == [[[2, 5], [16, 40]]]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, int)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (zeros(2, 3, 3), zeros(2, 3, 4), r"predicted masks: shape \(2, 3, 4\); expected \(2, 3, 3\)"),
        (zeros(1, 2, 2) + 3, zeros(1, 2, 2), r"true masks: 4 labels are out of range \(3\); give 0\.\.2 or 255"),
        (zeros(1, 2, 2), zeros(1, 2, 2) + 255, r"predicted masks: 4 labels are out of range \(255\); give 0\.\.2$"),
        (zeros(1, 2, 2) + 0.5, zeros(1, 2, 2), "true masks: labels are float64; give whole numbers"),
        (zeros(0, 2, 2), zeros(0, 2, 2), "segmentation: no image at all; give at least one"),
    ],
)
def test_what_cannot_be_counted_is_refused(truth: np.ndarray, prediction: np.ndarray, message: str) -> None:
    with pytest.raises(SaccadeError, match=message):
        image_confusions(truth, prediction, 3)
