"""Pictures of features: patch tokens as colours by their principal components, and where each head of cls looks."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from saccade.errors import SaccadeError
from saccade.runtime.overlay import MIN_SIDE, colours_at
from saccade.runtime.sheet import Panel

COMPONENTS = 3  # red, green, blue
STRETCH = (1, 99)  # percentiles that become 0 and 1: a few outlying patches leave the others their contrast
EDGE = np.array([255, 255, 255], dtype=np.uint8)  # around the patches that hold the mass
EDGE_WIDTH = 2  # pixels


@dataclass(frozen=True)
class PcaColours:
    """Three principal components of some features, as colours for these or any other features of the same model."""

    mean: np.ndarray  # (C,)
    axes: np.ndarray  # (C, 3)
    low: np.ndarray  # (3,), what becomes 0
    high: np.ndarray  # (3,), what becomes 1

    def __call__(self, dense: np.ndarray) -> np.ndarray:
        """Return features (B, C, gh, gw) as uint8 colours (B, gh, gw, 3)."""
        span = np.where(self.high > self.low, self.high - self.low, 1)
        shares = np.stack([(_components(each, self.mean, self.axes) - self.low) / span for each in dense])
        colours = np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
        return np.asarray(colours.reshape(len(dense), *dense.shape[2:], COMPONENTS))


def pca_colours(dense: np.ndarray) -> PcaColours:
    """Fit the colours to features (B, C, gh, gw), all images together, so that equal colours mean alike everywhere.

    Raises SaccadeError for features that are not finite.
    """
    if not np.isfinite(dense).all():
        raise SaccadeError("the patch tokens hold NaN or infinity, so they have no principal components; run it in fp32")
    mean = dense.mean(axis=(0, 2, 3), dtype=np.float64)
    covariance = np.zeros((mean.size, mean.size))
    for each in dense:  # one image at a time in float64
        rows = _rows(each) - mean
        covariance += rows.T @ rows
    axes = np.zeros((mean.size, COMPONENTS))
    found = np.linalg.svd(covariance, hermitian=True)[0][:, :COMPONENTS]
    axes[:, : found.shape[1]] = found * np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])
    low, high = np.percentile(np.concatenate([_components(each, mean, axes) for each in dense]), STRETCH, axis=0)
    return PcaColours(mean, axes, low, high)


def _rows(features: np.ndarray) -> np.ndarray:
    """Return one image's features (C, gh, gw) as float64 (gh*gw, C)."""
    return np.moveaxis(features, 0, -1).reshape(-1, features.shape[0]).astype(np.float64)


def _components(features: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.asarray((_rows(features) - mean) @ axes)


def image_panel(image: np.ndarray, name: str) -> Panel:
    """Return a uint8 image (gh*patch, gw*patch, 3), enlarged like its features' pictures."""
    return Panel(_enlarged(image, image, 1), name)


def pca_panel(image: np.ndarray, colours: np.ndarray, patch: int) -> Panel:
    """Return the colours (gh, gw, 3) of an image, a square for each patch."""
    return Panel(_enlarged(image, colours, patch), "PCA of the patch tokens")


def attention_panels(
    image: np.ndarray, attention: np.ndarray, patch: int, masks: np.ndarray | None = None
) -> list[Panel]:
    """Return a heat map for each head's attention (heads, gh*gw) to an image, from the head's least to its most.

    `masks` (heads, gh*gw), where given, are outlined in their heat maps. Raises SaccadeError for NaN and infinity.
    """
    if not np.isfinite(attention).all():
        raise SaccadeError("the attention holds NaN or infinity, so there is nothing to draw; run it in fp32")
    grid = (image.shape[0] // patch, image.shape[1] // patch)
    low = attention.min(axis=1, keepdims=True)
    span = attention.max(axis=1, keepdims=True) - low
    heads = colours_at((attention - low) / np.where(span > 0, span, 1)).reshape(-1, *grid, 3)
    pictures = [_enlarged(image, head, patch) for head in heads]
    if masks is not None:
        pictures = [_outlined(picture, mask.reshape(grid)) for picture, mask in zip(pictures, masks, strict=True)]
    return [Panel(picture, f"head {number}") for number, picture in enumerate(pictures)]


def _enlarged(image: np.ndarray, colours: np.ndarray, times: int) -> Image.Image:
    """Return colours with `times` pixels a side for each, and more by the whole factor that makes `image` large enough."""
    factor = times * max(1, math.ceil(MIN_SIDE / max(image.shape[:2])))
    return Image.fromarray(colours.repeat(factor, axis=0).repeat(factor, axis=1))


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draw a line just inside the border of a mask (gh, gw); the picture's own border is none."""
    pixels = np.array(picture)
    side = pixels.shape[0] // mask.shape[0]
    inside = mask.repeat(side, axis=0).repeat(side, axis=1)
    around = np.pad(inside, EDGE_WIDTH, mode="edge")
    within = np.ones_like(inside)
    for row in range(2 * EDGE_WIDTH + 1):
        for column in range(2 * EDGE_WIDTH + 1):
            within &= around[row : row + inside.shape[0], column : column + inside.shape[1]]
    pixels[inside & ~within] = EDGE
    return Image.fromarray(pixels)
