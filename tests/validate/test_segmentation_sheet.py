"""The sheet of segmentations says which colour is which class, of those that it shows and of no others."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saccade.runtime.sheet import GAP, caption_height
from saccade.validate.datasets import ade20k, voc
from saccade.validate.datasets.masked_split import Labels
from saccade.validate.segmentation_sheet import CELL, LINE, VOID, Shown, class_colours, segmentation_sheet

PIXELS = np.full((40, 60, 3), 77, np.uint8)


def legend_of(truth: np.ndarray, prediction: np.ndarray, labels: Labels = voc.LABELS) -> np.ndarray:
    """Return the pixels of the legend of one image."""
    picture = np.asarray(segmentation_sheet([(PIXELS, Shown(Path("a.jpg"), truth, prediction))], labels))
    assert picture.shape[1] == 3 * (CELL + GAP) + GAP
    return picture[caption_height(CELL) + CELL + 2 * GAP :]


def swatches(legend: np.ndarray) -> set[tuple[int, ...]]:
    """Return the colours of the squares: letters are grey."""
    return {tuple(colour) for colour in np.unique(legend.reshape(-1, 3), axis=0).tolist() if len(set(colour)) > 1}


@pytest.mark.parametrize("void", [False, True])
def test_the_legend_names_what_is_there(void: bool) -> None:
    truth = np.array([[1, 255 if void else 1]], np.uint8)
    expected = {tuple(class_colours()[number].tolist()) for number in (1, 15, 20)} | ({VOID} if void else set())
    assert swatches(legend_of(truth, np.array([[15, 20]]))) == expected


def test_a_class_that_is_not_counted_is_named_so_where_it_is_truth_alone() -> None:
    labels = ade20k.LABELS
    assert labels.ignore == 0
    found = swatches(legend_of(np.array([[0, 3]]), np.array([[3, 3]]), labels))
    assert found == {VOID, tuple(class_colours()[3].tolist())}


def test_many_classes_take_several_lines_and_stay_inside() -> None:
    one, all_of_them = (legend_of(np.zeros((1, 1), int), np.arange(count)[None]) for count in (1, 21))
    assert len(one) == LINE + GAP
    assert len(all_of_them) >= 3 * LINE
    assert (all_of_them[:, -1] == 255).all()
