"""Rows of features stay beside their own masks, whatever is left out between them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.validate.datasets import voc
from saccade.validate.datasets.masked_split import checked_split
from saccade.validate.extraction import Extractor
from saccade.validate.masked_features import MaskedFeatures, extract_masked, images_per_batch, token_blocks
from saccade.validate.preparation import Squash


@pytest.fixture
def extracted(tmp_path: Path, patch_colours: Any) -> MaskedFeatures:
    """Return seven images of the grey 10 * number, beside masks that say the number and one pixel of void.

    The image of number 2 cannot be read, and the mask of number 5 holds a label that there is not.
    """
    pairs = []
    for number in range(7):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}-mask.png"
        Image.new("RGB", (28, 28), (10 * number,) * 3).save(image)
        labels = np.full((28, 28), 99 if number == 5 else number, np.uint8)
        labels[0, 0] = 255
        Image.fromarray(labels).save(mask)
        pairs.append((image, mask))
    split = checked_split("val", pairs)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) - 30])  # its head still says its size
    extract = Extractor(patch_colours(), tmp_path / "features", progress_bar)
    return extract_masked(extract, split, voc.LABELS, Squash((28, 28), "bilinear"), (28, 28), ["tokens"], "val")


@pytest.mark.parametrize("images", [1, 2, 3, 16])
def test_rows_belong_to_their_masks(extracted: MaskedFeatures, images: int) -> None:
    found = []
    for rows, masks in extracted.batches("masks", images):
        assert len(rows) == len(masks) <= images
        for row, mask in zip(rows, masks, strict=True):
            found.append((Path(extracted.features.names[row]).stem, int(mask[5, 5])))
    assert found == [(str(number), number) for number in (0, 1, 3, 4, 6)]
    assert [extracted.pixels[label] for label in (0, 2, 5, 255)] == [783, 0, 0, 5]


def test_small_masks_are_of_the_same_rows(extracted: MaskedFeatures) -> None:
    rows, masks = extracted.resized("masks", (4, 4))
    assert rows.tolist() == [0, 1, 2, 3, 5]  # of six that were extracted
    assert masks.shape == (5, 4, 4)
    assert masks[:, 1, 1].tolist() == [0, 1, 3, 4, 6]


def test_notes_count_what_is_left_out_of_one_pass(extracted: MaskedFeatures) -> None:
    for _ in range(2):
        extracted.resized("masks", (4, 4))
        unread, unusable, absent = extracted.notes
        assert unread.startswith("1 of 7 images of val cannot be read and is left out, first ")
        assert unusable.startswith("1 of 6 masks of val is left out, first: ")
        assert absent == "16 (bicycle, bottle, car, …) of 21 classes are in no mask of val; the mean is over all"


@pytest.mark.parametrize("images", [1, 2, 16])
def test_blocks_are_the_patches_of_the_rows_asked_for(images: int) -> None:
    tokens = np.arange(5 * 4 * 3).reshape(5, 4, 3)
    blocks = token_blocks(tokens, np.array([0, 2, 3]), images)
    for _ in range(2):  # as often as asked
        assert np.array_equal(np.concatenate(list(blocks())), tokens[[0, 2, 3]].reshape(-1, 3))
        assert max(len(block) for block in blocks()) == 4 * min(images, 3)


def test_batches_hold_so_many_images_that_their_values_fit() -> None:
    assert images_per_batch(21, (448, 448)) == 15
    assert images_per_batch(151, (448, 448)) == 2
    assert images_per_batch(2, (100, 100)) == 16
    assert images_per_batch(151, (2000, 2000)) == 1
