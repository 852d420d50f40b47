"""Features as colours are scikit-learn's principal components, and a head's heat map is its attention."""
from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from saccade.errors import SaccadeError
from saccade.runtime.feature_pictures import EDGE, STRETCH, attention_panels, image_panel, pca_colours, pca_panel
from saccade.runtime.overlay import colours_at

PATCH, GRID = 8, (5, 7)
IMAGE = np.random.default_rng(0).integers(0, 200, (GRID[0] * PATCH, GRID[1] * PATCH, 3), dtype=np.uint8)  # nowhere white
FACTOR = 8  # the smallest that makes the longer side of 56 px at least 448


def features(count: int = 3, width: int = 20, seed: int = 0) -> np.ndarray:
    """Return (count, width, 5, 7) with a few strong directions, far from the origin."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count * GRID[0] * GRID[1], width)) * np.geomspace(10, 0.1, width)
    mixed = (rows @ np.linalg.qr(rng.standard_normal((width, width)))[0] + 30).astype(np.float32)
    return np.moveaxis(mixed.reshape(count, *GRID, width), -1, 1)


def rows_of(dense: np.ndarray) -> np.ndarray:
    return np.moveaxis(dense, 1, -1).reshape(-1, dense.shape[1])


# ---- principal components


def test_the_components_are_those_of_scikit_learn() -> None:
    dense = features()
    found = pca_colours(dense)
    expected = PCA(3, svd_solver="full").fit(rows_of(dense).astype(np.float64))
    np.testing.assert_allclose(found.mean, expected.mean_, rtol=1e-12)
    cosines = np.abs((found.axes.T * expected.components_).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-9)  # a component has no sign


def test_colours_are_the_components_stretched_between_percentiles() -> None:
    dense = features()
    fitted = pca_colours(dense)
    scores = (rows_of(dense).astype(np.float64) - fitted.mean) @ fitted.axes
    low, high = np.percentile(scores, STRETCH, axis=0)
    expected = 255 * np.clip((scores - low) / (high - low), 0, 1)
    colours = fitted(dense)
    assert (colours.dtype, colours.shape) == (np.uint8, (3, *GRID, 3))
    np.testing.assert_allclose(colours.reshape(-1, 3), expected, atol=0.51)


def test_one_wild_patch_leaves_the_others_their_contrast() -> None:
    dense = features()
    wild = dense.copy()
    wild[0, :, 0, 0] += 1000 * pca_colours(dense).axes[:, 0].astype(np.float32)
    spread = pca_colours(wild)(wild).reshape(-1, 3)[1:].std(axis=0)
    assert (spread > 40).all()


def test_images_of_one_call_share_their_colours() -> None:
    dense = features(2)
    dense[1] = dense[0, :, ::-1]
    colours = pca_colours(dense)(dense)
    np.testing.assert_array_equal(colours[1], colours[0, ::-1])


def test_signs_are_settled_so_that_noise_does_not_turn_a_colour_round() -> None:
    dense = features()
    noisy = dense + 1e-4 * np.random.default_rng(1).standard_normal(dense.shape).astype(np.float32)
    near = pca_colours(noisy)(noisy).astype(int) - pca_colours(dense)(dense)
    assert np.abs(near).max() <= 2


@pytest.mark.parametrize("width", [1, 2, 3])
def test_features_of_few_channels_and_flat_ones_have_colours(width: int) -> None:
    assert pca_colours(features(width=width))(features(width=width)).shape == (3, *GRID, 3)
    flat = np.ones((1, width, *GRID), np.float32)
    assert len(np.unique(pca_colours(flat)(flat))) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    dense = features()
    dense[1, 2, 3, 4] = value
    with pytest.raises(SaccadeError, match=r"the patch tokens hold NaN or infinity.*run it in fp32"):
        pca_colours(dense)


def test_the_picture_has_the_image_and_a_square_of_colour_for_each_patch() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (*GRID, 3), dtype=np.uint8)
    image, found = np.asarray(image_panel(IMAGE, "name").picture), np.asarray(pca_panel(IMAGE, colours, PATCH).picture)
    assert image.shape == found.shape == (IMAGE.shape[0] * FACTOR, IMAGE.shape[1] * FACTOR, 3)
    np.testing.assert_array_equal(image[::FACTOR, ::FACTOR], IMAGE)
    squares = found.reshape(GRID[0], PATCH * FACTOR, GRID[1], PATCH * FACTOR, 3)
    np.testing.assert_array_equal(squares, np.broadcast_to(colours[:, None, :, None], squares.shape))


# ---- attention


def heads_of(attention: np.ndarray, masks: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the pixels of each head's panel."""
    panels = attention_panels(IMAGE, attention, PATCH, masks)
    assert [each.caption for each in panels] == [f"head {number}" for number in range(len(attention))]
    return [np.asarray(each.picture) for each in panels]


def test_each_head_goes_from_its_darkest_to_its_lightest_patch() -> None:
    attention = np.random.default_rng(0).random((3, GRID[0] * GRID[1])).astype(np.float32) * [[1], [1e-3], [0.1]]
    side = PATCH * FACTOR
    for head, row in zip(heads_of(attention), attention, strict=True):
        expected = colours_at((row - row.min()) / (row.max() - row.min())).reshape(*GRID, 3)
        np.testing.assert_array_equal(head[::side, ::side], expected)
        np.testing.assert_array_equal(head[side - 1 :: side, side - 1 :: side], expected)


def test_a_head_that_looks_everywhere_alike_is_dark() -> None:
    (head,) = heads_of(np.full((1, 35), 0.01))
    assert (head == colours_at(np.zeros(()))).all()


def test_a_mask_is_outlined_within_its_patches_and_nowhere_else() -> None:
    masks = np.zeros((1, *GRID), bool)
    masks[0, 1:3, 2:4] = True
    masks[0, 0, 0] = True  # in a corner of the picture, whose border is none of the mask's
    attention = np.full((1, 35), 0.01)
    (head,) = heads_of(attention, masks.reshape(1, -1))
    side = PATCH * FACTOR
    lined = (head == EDGE).all(axis=-1).reshape(GRID[0], side, GRID[1], side).any(axis=(1, 3))
    np.testing.assert_array_equal(lined, masks[0])
    white = (head == EDGE).all(axis=-1)
    assert white[side, 2 * side : 4 * side].all()
    assert not white[2 * side, 2 * side + 3 : 4 * side - 3].any()  # between two patches of the mask
    assert not white[0, : side - 3].any()
    assert white[: side - 1, side - 1].all()


def test_attention_that_is_not_finite_is_refused() -> None:
    with pytest.raises(SaccadeError, match="the attention holds NaN or infinity"):
        attention_panels(IMAGE, np.full((1, 35), np.nan), PATCH)
