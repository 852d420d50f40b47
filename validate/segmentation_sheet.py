"""A picture of segmentations: image, truth and prediction side by side, a row for each of a few images."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.validate.preparation import Preparation

ROWS = 8
CELL, GAP = 224, 4  # pixels
VOID = (224, 224, 192)  # the colour of VOC's void border


@dataclass(frozen=True)
class Shown:
    """An image with its truth (H, W) and prediction (h, w), integers."""

    path: Path
    truth: np.ndarray
    prediction: np.ndarray


def shown_rows(count: int) -> np.ndarray:
    """Return which of `count` images are shown: at most ROWS, spread over all."""
    return np.unique(np.linspace(0, count - 1, min(ROWS, count)).astype(np.int64))


def sheet_pictures(
    shown: Sequence[Shown], prepare: Preparation, ignore: int
) -> Callable[[], Iterator[tuple[str, Image.Image]]]:
    """Return what yields the picture."""

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        yield "segmentation.png", segmentation_sheet([(prepare(each.path), each) for each in shown], ignore)

    return pictures


def segmentation_sheet(shown: Sequence[tuple[np.ndarray, Shown]], ignore: int) -> Image.Image:
    """Return the picture of images (H, W, 3) with their maps; ignored pixels of the truth have VOC's colour of void."""
    step = CELL + GAP
    sheet = Image.new("RGB", (3 * step - GAP, len(shown) * step - GAP), "white")
    colours = class_colours()
    for row, (pixels, each) in enumerate(shown):
        truth = colours[each.truth]
        truth[each.truth == ignore] = VOID
        for column, picture in enumerate((pixels, truth, colours[each.prediction])):
            filter = Image.Resampling.NEAREST if column else Image.Resampling.BICUBIC
            sheet.paste(Image.fromarray(picture).resize((CELL, CELL), filter), (column * step, row * step))
    return sheet


def class_colours() -> np.ndarray:
    """Return VOC's colours of 256 labels, uint8 (256, 3): bits of the number, spread over the channels' high bits."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours
