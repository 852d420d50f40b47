"""Patches of two crops pair up as PW-Self's correspondences pair them, on the golden boxes and by geometry."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.patch_match import Crop, match_patches

GOLDEN = np.load(Path(__file__).parents[2] / "golden/pwself_patch_matching.npz")
NAMES = GOLDEN["names"].tolist()


def golden_crops(number: int) -> list[Crop]:
    boxes, extras = GOLDEN["boxes"][number], GOLDEN["side_patch_flip"][number]
    pairs = zip(boxes.tolist(), extras.tolist(), strict=True)
    return [Crop(*box, side // patch, bool(flip)) for box, (side, patch, flip) in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_index_lists_equal_the_official_ones(name: str) -> None:
    number = NAMES.index(name)
    for side, found in zip(("first", "second"), match_patches(*golden_crops(number)), strict=True):
        start, end = GOLDEN[f"{side}_offsets"][number : number + 2]
        assert found.tolist() == GOLDEN[side][start:end].tolist()


CROPS = st.builds(
    Crop, st.integers(0, 90), st.integers(0, 90), st.integers(1, 120), st.integers(1, 120), st.integers(1, 14), st.booleans()
)


@given(CROPS, CROPS)
def test_lists_are_equally_long_and_begin_with_cls(first: Crop, second: Crop) -> None:
    ours, theirs = match_patches(first, second)
    assert len(ours) == len(theirs)
    assert ours[0] == theirs[0] == 0
    for crop, numbers in ((first, ours), (second, theirs)):
        assert ((numbers[1:] >= 1) & (numbers[1:] <= crop.cells**2)).all()
        assert len(set(numbers.tolist())) == len(numbers)


@given(CROPS, CROPS)
def test_exchanging_the_crops_exchanges_the_lists(first: Crop, second: Crop) -> None:
    for ours, theirs in zip(match_patches(first, second), reversed(match_patches(second, first)), strict=True):
        assert ours.tolist() == theirs.tolist()


@given(CROPS)
def test_a_crop_matches_itself_patch_by_patch(crop: Crop) -> None:
    ours, theirs = match_patches(crop, crop)
    assert ours.tolist() == theirs.tolist()
    assert sorted(ours.tolist()) == list(range(crop.cells**2 + 1))


def test_a_mirrored_twin_matches_from_the_other_side() -> None:
    ours, theirs = match_patches(Crop(0, 0, 60, 60, 3, False), Crop(0, 0, 60, 60, 3, True))
    assert ours.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert theirs.tolist() == [0, 3, 2, 1, 6, 5, 4, 9, 8, 7]


def test_a_crop_of_nothing_is_refused() -> None:
    with pytest.raises(SaccadeError, match="patch match: a crop of 0x5 pixels in 3 cells; give 1 or more"):
        Crop(0, 0, 0, 5, 3, False)
