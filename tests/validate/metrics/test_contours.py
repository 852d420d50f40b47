"""J and F agree with loops over pixels and with cases one can draw."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.contours import contour, contour_score, region_score, score_video


def random_masks(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    masks = random.random((2, height, width)) < random.choice([0, 0.1, 0.5, 1], (2, 1, 1))
    return masks[0], masks[1]


def contour_by_loop(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for row, column in np.ndindex(height, width):
        for down, right in ((0, 1), (1, 0), (1, 1)):
            there = row + down, column + right
            if there[0] < height and there[1] < width and mask[there] != mask[row, column]:
                found.add((row, column))
    return found


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_contours_equal_a_loop_over_pixels(height: int, width: int, seed: int) -> None:
    mask, _ = random_masks(height, width, seed)
    assert {(int(row), int(column)) for row, column in np.argwhere(contour(mask))} == contour_by_loop(mask)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_f_equals_a_loop_over_contour_pixels(height: int, width: int, seed: int) -> None:
    truth, mask = random_masks(height, width, seed)
    wanted, given_ = contour_by_loop(truth), contour_by_loop(mask)
    reach = math.ceil(0.008 * math.hypot(height, width))

    def share_near(ours: set[tuple[int, int]], theirs: set[tuple[int, int]]) -> float:
        if not ours or not theirs:
            return 1.0 if not ours else 0.0
        return sum(any(math.dist(point, other) <= reach for other in theirs) for point in ours) / len(ours)

    precision, recall = share_near(given_, wanted), share_near(wanted, given_)
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert contour_score(truth, mask) == pytest.approx(expected)


def square(top: int, left: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((100, 120), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_scores_of_masks_one_can_draw() -> None:
    truth = square(30, 40)
    assert (region_score(truth, truth), contour_score(truth, truth)) == (1, 1)
    assert region_score(truth, square(30, 50)) == pytest.approx(200 / 600)
    assert contour_score(truth, square(31, 41)) == 1  # within 2 pixels, 0.008 of the diagonal
    assert contour_score(truth, square(60, 90)) == 0
    nothing = np.zeros_like(truth)
    assert (region_score(truth, nothing), contour_score(truth, nothing)) == (0, 0)
    assert (region_score(nothing, nothing), contour_score(nothing, nothing)) == (1, 1)


def test_a_video_is_scored_per_object_without_its_first_and_last_frame() -> None:
    truth = np.zeros((4, 100, 120), np.uint8)
    truth[:, square(30, 20)] = 1
    truth[:, square(30, 60)] = 2
    truth[:, 0, 0] = 255  # void is no object
    masks = np.where(truth == 255, 0, truth)
    masks[[0, 3]] = 0
    masks[2][truth[2] == 2] = 0
    score = score_video(truth, masks)
    assert score.region.tolist() == [[1, 1], [1, 0]]
    assert score.object_means.tolist() == [[1, 1], [0.5, 0.5]]
    assert score.object_recalls.tolist() == [[1, 1], [0.5, 0.5]]


def test_errors_say_what_is_wrong() -> None:
    truth = np.ones((3, 4, 4), np.uint8)
    with pytest.raises(SaccadeError, match=r"video masks: shape \(3, 4, 5\); expected \(3, 4, 4\)"):
        score_video(truth, np.ones((3, 4, 5), np.uint8))
    with pytest.raises(SaccadeError, match="video: 2 frames; the first and the last are not scored, so give at least 3"):
        score_video(truth[:2], truth[:2])
    with pytest.raises(SaccadeError, match="video: the first mask holds no object"):
        score_video(np.zeros_like(truth), truth)
    with pytest.raises(SaccadeError, match=r"video masks: 48 labels are out of range \(2\); give 0\.\.1"):
        score_video(truth, 2 * truth)
