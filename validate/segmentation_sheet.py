"""A picture of segmentations: image, truth and prediction side by side, a row for each of a few images."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from saccade.runtime.sheet import GAP, Panel, caption_font, sheet, shortened
from saccade.validate.datasets.masked_split import Labels
from saccade.validate.preparation import Preparation

ROWS = 8
CELL = 224  # pixels
LINE = 20  # pixels of a line of the legend
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
    shown: Sequence[Shown], prepare: Preparation, labels: Labels
) -> Callable[[], Iterator[tuple[str, Image.Image]]]:
    """Return what yields the picture."""

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        yield "segmentation.png", segmentation_sheet([(prepare(each.path), each) for each in shown], labels)

    return pictures


def segmentation_sheet(shown: Sequence[tuple[np.ndarray, Shown]], labels: Labels) -> Image.Image:
    """Return the picture of images (H, W, 3) with their maps, and below it which colour is which class.

    Ignored pixels of the truth have VOC's colour of void.
    """
    rows = [
        [
            Panel(_cell(pixels, Image.Resampling.BICUBIC), each.path.name),
            Panel(_cell(_coloured(each.truth, labels.ignore), Image.Resampling.NEAREST), "truth"),
            Panel(_cell(_coloured(each.prediction), Image.Resampling.NEAREST), "prediction"),
        ]
        for pixels, each in shown
    ]
    maps = sheet(rows)
    legend = _legend([each for _, each in shown], labels, maps.width)
    paper = Image.new("RGB", (maps.width, maps.height + legend.height), "white")
    paper.paste(maps, (0, 0))
    paper.paste(legend, (0, maps.height))
    return paper


def _cell(picture: np.ndarray, filter: Image.Resampling) -> Image.Image:
    return Image.fromarray(picture).resize((CELL, CELL), filter)


def _coloured(numbers: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Return a map of class numbers (h, w) as colours."""
    colours = class_colours()
    if ignore is not None:
        colours[ignore] = VOID
    return np.asarray(colours[numbers])


def _legend(shown: Sequence[Shown], labels: Labels, width: int) -> Image.Image:
    """Return the colours of all classes that the maps show, with their names, in lines of a width."""
    in_truth = {int(number) for each in shown for number in np.unique(each.truth)}
    predicted = {int(number) for each in shown for number in np.unique(each.prediction)}
    classes = sorted((in_truth - {labels.ignore}) | predicted)
    named = [(tuple(class_colours()[number].tolist()), labels.classes[number]) for number in classes]
    if labels.ignore in in_truth:
        named.append((VOID, "not counted"))
    font = caption_font(CELL)
    places, left, top = [], GAP, 0
    for _, name in named:
        needed = LINE + int(font.getlength(name)) + 2 * GAP
        if left > GAP and left + needed > width:
            left, top = GAP, top + LINE
        places.append((left, top))
        left += needed
    legend = Image.new("RGB", (width, top + LINE + GAP), "white")
    draw = ImageDraw.Draw(legend)
    for (colour, name), (left, top) in zip(named, places, strict=True):
        draw.rectangle((left, top + 3, left + LINE - 7, top + LINE - 4), fill=colour, outline="black")
        draw.text((left + LINE, top + LINE // 2), shortened(name, font, width - LINE - GAP), "black", font, anchor="lm")
    return legend


def class_colours() -> np.ndarray:
    """Return VOC's colours of 256 labels, uint8 (256, 3): bits of the number, spread over the channels' high bits."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours
