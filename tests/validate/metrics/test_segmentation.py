"""Pixels are counted as a loop counts them, per image and in all."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.segmentation import (
    ClassCounts,
    confusion,
    image_confusions,
    image_counts,
    matched_counts,
    mean_iou_of_counts,
)

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_linear_segmentation.npz")
# name of the golden result -> (truth, prediction, ignored label)
CASES = {
    "ignore255": ("ground_truth", "prediction", 255),
    "without3": ("ground_truth", "prediction_without3", 255),
    "ignore0": ("ground_truth_zero", "prediction", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_and_miou_equal_the_official_ones(case: str) -> None:
    truth, prediction, ignore = CASES[case]
    counts = image_counts(GOLDEN[truth], GOLDEN[prediction], int(GOLDEN["num_classes"]), ignore)
    total = ClassCounts.of_images(counts)
    assert np.array_equal(total.true_positives, GOLDEN[f"{case}_tp"])
    assert np.array_equal(total.false_positives, GOLDEN[f"{case}_fp"])
    assert np.array_equal(total.false_negatives, GOLDEN[f"{case}_fn"])
    assert total.miou == pytest.approx(float(GOLDEN[f"{case}_miou"]), abs=1e-12)
    assert mean_iou_of_counts(counts.mean(axis=0).ravel()) == pytest.approx(100 * total.miou, abs=1e-9)


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


@given(st.integers(1, 5), st.integers(0, 99), st.sampled_from([None, 0, 255]))
def test_counts_of_images_equal_a_loop_over_classes(classes: int, seed: int, ignore: int | None) -> None:
    random = np.random.default_rng(seed)
    truth, prediction = random.integers(0, classes, (2, 3, 4, 5))
    if ignore == 255:
        truth[random.random(truth.shape) < 0.3] = 255
    counts = image_counts(truth, prediction, classes, ignore)
    assert counts.dtype == np.int32
    assert np.array_equal(matched_counts(image_confusions(truth, prediction, classes, ignore), np.arange(classes)), counts)
    for image in range(3):
        known = truth[image] != ignore
        true, found = truth[image][known], prediction[image][known]
        for label in range(classes):
            hits, extra, missed = counts[image, :, label]
            assert hits == np.count_nonzero((true == label) & (found == label))
            assert (hits + extra, hits + missed) == (np.count_nonzero(found == label), np.count_nonzero(true == label))


@given(st.permutations(range(4)), st.integers(0, 99))
def test_matched_counts_are_those_of_renamed_predictions(mapping: list[int], seed: int) -> None:
    truth, prediction = np.random.default_rng(seed).integers(0, 4, (2, 3, 5, 5))
    renamed = image_counts(truth, np.array(mapping)[prediction], 4)
    assert np.array_equal(matched_counts(image_confusions(truth, prediction, 4), np.array(mapping)), renamed)


def test_iou_of_a_small_case() -> None:
    counts = ClassCounts.of_images(image_counts(np.array([[[0, 0, 1, 1, 255]]]), np.array([[[0, 1, 1, 1, 0]]]), 3))
    assert counts.true_positives.tolist() == [1, 2, 0]
    assert counts.false_positives.tolist() == [0, 1, 0]
    assert counts.false_negatives.tolist() == [1, 0, 0]
    assert counts.iou.tolist() == [1 / 2, 2 / 3, 0]
    assert counts.miou == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_uint8_masks_do_not_overflow() -> None:
    labels = np.arange(200, dtype=np.uint8)
    assert np.array_equal(confusion(labels, labels, 200), np.eye(200))


def test_a_class_that_is_nowhere_counts_as_nothing_found() -> None:
    assert mean_iou_of_counts(np.array([2.0, 0, 0, 0, 0, 0])) == 50


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
    for count in (image_counts, image_confusions):
        with pytest.raises(SaccadeError, match=message):
            count(truth, prediction, 3)
