"""The picture of matched patches: both crops side by side, every patch numbered, those that pair up bright."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.errors import SaccadeError
from saccade.runtime.sheet import Panel, sheet
from saccade.validate.metrics.patch_match import Crop, match_patches

CELL = 40  # pixels of a patch: room for three digits
DIMMED = 3  # what has no partner is shown at a third of its brightness
LINE = (255, 255, 255)


def match_picture(image: np.ndarray, first: Crop, second: Crop) -> Image.Image:
    """Return the picture of two crops of a uint8 (H, W, 3) image; patches are numbered row-major from 1."""
    crops = [_crop_picture(image, *pair) for pair in zip((first, second), match_patches(first, second), strict=True)]
    captions = [f"{name}, mirrored" if crop.flip else name for name, crop in {"first": first, "second": second}.items()]
    return sheet([[Panel(*pair) for pair in zip(crops, captions, strict=True)]])


def check_inside(image: np.ndarray, crop: Crop) -> None:
    """Refuse a crop that reaches out of its image."""
    height, width = image.shape[:2]
    if min(crop.top, crop.left) < 0 or crop.top + crop.height > height or crop.left + crop.width > width:
        box = f"{crop.top},{crop.left},{crop.height},{crop.width}"
        raise SaccadeError(f"the crop {box} (top, left, height, width) reaches out of the image of {width} x {height} px")


def _crop_picture(image: np.ndarray, crop: Crop, matched: np.ndarray) -> Image.Image:
    """Return a crop as the network sees it, with its grid and numbers."""
    side = crop.cells * CELL
    box = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    pixels = np.asarray(Image.fromarray(box).resize((side, side), Image.Resampling.BICUBIC))
    bright = np.isin(np.arange(1, crop.cells**2 + 1), matched).reshape(crop.cells, crop.cells)
    shown = bright.repeat(CELL, axis=0).repeat(CELL, axis=1)[..., None]
    upright = pixels[:, ::-1] if crop.flip else pixels
    picture = Image.fromarray(np.where(shown, upright, upright // DIMMED))
    _draw_numbers(ImageDraw.Draw(picture), crop.cells)
    return picture


def _draw_numbers(draw: ImageDraw.ImageDraw, cells: int) -> None:
    font = ImageFont.load_default(CELL // 3)
    for number in range(cells**2):
        row, column = divmod(number, cells)
        corner, centre = (column * CELL, row * CELL), ((column + 0.5) * CELL, (row + 0.5) * CELL)
        draw.rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), outline=LINE)
        draw.text(centre, str(number + 1), LINE, font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
