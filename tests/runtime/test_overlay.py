"""The picture of where the model looked."""
from __future__ import annotations

import numpy as np
import pytest

from saccade.runtime.overlay import MAP_SHARE, MIN_SIDE, OUTLINE, heat_map, outline_cells, overlay

PATCH = 14
SCORES = np.arange(6, dtype=np.float32).reshape(2, 3)
IMAGE = np.random.default_rng(0).integers(0, 200, (2 * PATCH, 3 * PATCH, 3), dtype=np.uint8)  # nowhere white


def brightness(colours: np.ndarray) -> np.ndarray:
    return colours.astype(float) @ [0.299, 0.587, 0.114]


def test_heat_map_grows_brighter_with_the_score() -> None:
    assert (np.diff(brightness(heat_map(SCORES)).ravel()) > 0).all()


def test_heat_map_goes_by_rank_so_that_an_outlier_changes_nothing() -> None:
    outlier = SCORES.copy()
    outlier[1, 2] = 1e9
    np.testing.assert_array_equal(heat_map(outlier), heat_map(SCORES))


@pytest.mark.parametrize("scores", [np.zeros((1, 1)), np.zeros((3, 1)), np.full((2, 2), np.nan)])
def test_heat_map_takes_one_cell_equal_scores_and_nan(scores: np.ndarray) -> None:
    colours = heat_map(scores.astype(np.float32))
    assert (colours.dtype, colours.shape) == (np.uint8, (*scores.shape, 3))


def test_small_images_are_enlarged_by_a_whole_factor_that_reaches_the_minimum() -> None:
    picture = overlay(IMAGE, SCORES, None, PATCH)
    factor = picture.width // IMAGE.shape[1]
    assert picture.size == (factor * IMAGE.shape[1], factor * IMAGE.shape[0])
    assert MIN_SIDE <= max(picture.size) < MIN_SIDE + max(IMAGE.shape)


def test_large_images_keep_their_size() -> None:
    picture = overlay(np.zeros((32 * PATCH, 40 * PATCH, 3), np.uint8), np.zeros((32, 40), np.float32), None, PATCH)
    assert picture.size == (40 * PATCH, 32 * PATCH)


def test_kept_patches_stay_as_they_are_inside_a_white_frame() -> None:
    picture = np.asarray(overlay(IMAGE, SCORES, np.array([4], np.int32), PATCH))
    factor = picture.shape[0] // IMAGE.shape[0]
    side = PATCH * factor
    cell = picture[side : 2 * side, side : 2 * side]
    original = IMAGE[PATCH : 2 * PATCH, PATCH : 2 * PATCH].repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(cell[1:-1, 1:-1], original[1:-1, 1:-1])
    for edge in (cell[0], cell[-1], cell[:, 0], cell[:, -1]):
        assert (edge == OUTLINE).all()


def test_other_patches_take_their_share_of_the_score_colour() -> None:
    picture = np.asarray(overlay(IMAGE, SCORES, np.array([4], np.int32), PATCH))
    factor = picture.shape[0] // IMAGE.shape[0]
    expected = (1 - MAP_SHARE) * IMAGE[0, 0] + MAP_SHARE * heat_map(SCORES)[0, 0]
    np.testing.assert_allclose(picture[0, 0], expected, atol=0.51)
    assert not (picture[: PATCH * factor] == OUTLINE).all(axis=-1).any()


def test_without_indices_nothing_is_outlined() -> None:
    assert not (np.asarray(overlay(IMAGE, SCORES, None, PATCH)) == OUTLINE).all(axis=-1).any()


def test_the_image_given_is_not_drawn_on() -> None:
    before = IMAGE.copy()
    overlay(IMAGE, SCORES, np.arange(6, dtype=np.int32), PATCH)
    np.testing.assert_array_equal(IMAGE, before)


def test_outlines_have_the_width_asked_for() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    outline_cells(picture, np.array([[False, True], [False, False]]), 10, OUTLINE, width=3)
    framed = (picture == OUTLINE).all(axis=-1)
    assert framed[:10, 10:].sum() == 100 - 16
    assert framed.sum() == 100 - 16
