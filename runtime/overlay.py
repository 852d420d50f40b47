"""A picture of where the model looked: the score map as colour, the kept patches bright and outlined."""
from __future__ import annotations

import math

import numpy as np
from PIL import Image

# Dark violet to yellow, even in lightness, so that it reads in grey too; corner colours of a heat map (own choice).
_COLOURS = np.array(
    [[13, 8, 60], [84, 12, 120], [160, 35, 120], [220, 80, 80], [248, 150, 50], [250, 240, 110]], dtype=np.float64
)
MAP_SHARE = 0.55  # of the score colour in patches that were not kept
OUTLINE = np.array([255, 255, 255], dtype=np.uint8)
MIN_SIDE = 448  # smaller images are enlarged by a whole factor, so that outlines can be seen


def heat_map(score_map: np.ndarray) -> np.ndarray:
    """Return scores (gh, gw) as uint8 colours (gh, gw, 3), by rank: outliers do not darken the rest."""
    ranks = np.argsort(np.argsort(score_map, axis=None)).reshape(score_map.shape)
    return colours_at(ranks / max(1, ranks.size - 1))


def colours_at(shares: np.ndarray) -> np.ndarray:
    """Return shares from 0 to 1 (...) as uint8 colours (..., 3), from dark to light."""
    place = shares * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - low)[..., None]
    colours = (1 - share) * _COLOURS[low] + share * _COLOURS[low + 1]
    return np.asarray(np.rint(colours), np.uint8)


def overlay(image: np.ndarray, score_map: np.ndarray, indices: np.ndarray | None, patch: int) -> Image.Image:
    """Blend the score colours over a uint8 image (gh*patch, gw*patch, 3); kept patches stay as they are, outlined."""
    colours = heat_map(score_map).repeat(patch, axis=0).repeat(patch, axis=1)
    flat = np.zeros(score_map.size, bool)
    if indices is not None:
        flat[indices] = True
    kept = flat.reshape(score_map.shape)
    shown = kept.repeat(patch, axis=0).repeat(patch, axis=1)[..., None]
    blended = np.where(shown, image, (1 - MAP_SHARE) * image + MAP_SHARE * colours).round().astype(np.uint8)
    factor = max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))
    blended = blended.repeat(factor, axis=0).repeat(factor, axis=1)
    outline_cells(blended, kept, patch * factor, OUTLINE)
    return Image.fromarray(blended)


def outline_cells(picture: np.ndarray, chosen: np.ndarray, side: int, colour: np.ndarray, width: int = 1) -> None:
    """Draw, in place, a frame just inside every chosen cell (gh, gw) of `side` pixels."""
    for row, column in np.argwhere(chosen):
        cell = picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
        cell[:width] = cell[-width:] = colour
        cell[:, :width] = cell[:, -width:] = colour
