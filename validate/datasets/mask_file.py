"""Masks of labels in image files: indexed or grey PNG, a number for every pixel."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.counted import agreeing
from saccade.errors import SaccadeError
from saccade.runtime.images import MAX_PIXELS, reading

MODES = ("P", "L")  # 8 bits a pixel: the number itself, with or without a palette


def read_mask(path: Path) -> np.ndarray:
    """Return the labels of a mask, uint8 (H, W). Raises SaccadeError for what holds colours instead of labels."""
    with reading(str(path)), Image.open(path) as opened:
        if opened.mode not in MODES:
            raise SaccadeError(f"{path}: a mask of mode {opened.mode}; give an 8-bit indexed or grey PNG")
        if opened.width * opened.height > MAX_PIXELS:
            raise SaccadeError(f"{path}: a mask of more than {MAX_PIXELS // 10**6} megapixels; make it smaller first")
        return np.asarray(opened)


def read_palette(path: Path) -> list[int] | None:
    """Return the colours of a mask's labels as Pillow wants them back (R, G, B, R, ...); None for a grey mask."""
    with reading(str(path)), Image.open(path) as opened:
        palette: list[int] | None = opened.getpalette()
        return palette


def size_of(path: Path) -> tuple[int, int]:
    """Return the (height, width) that an image file's head promises; no pixel is decoded."""
    with reading(str(path)), Image.open(path) as opened:
        return opened.height, opened.width


def size_problem(image: Path, mask: Path) -> str | None:
    """Say what keeps a mask from belonging to its image, if anything does; of both, only the heads are read.

    EXIF rotation is ignored, as it is where the image's features are extracted.
    """
    try:
        sizes = size_of(image), size_of(mask)
    except SaccadeError as error:
        return str(error)
    if sizes[0] == sizes[1]:
        return None
    (height, width), (mask_height, mask_width) = sizes
    return f"{mask} is {mask_width} x {mask_height} px and its image {width} x {height}"


def left_out_note(what: str, problems: Sequence[str], total: int) -> tuple[str, ...]:
    """Return the line that counts what is left out and gives the first reason, if there is any."""
    are = agreeing(len(problems), "is", "are")
    return (f"{len(problems)} of {total} {what} {are} left out, first: {problems[0]}",) if problems else ()
