"""How an evaluation brings an image file to the pixels that a network sees: the resizing of its protocol, by name.

Each is a value that says all it does, so that stored features are known by it. Resizing is Pillow's, as in torchvision's
transforms of PIL images, which every protocol uses.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from saccade.errors import SaccadeError
from saccade.runtime.images import read_rgb

Filter = Literal["bilinear", "bicubic", "lanczos"]
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip


class Preparation(Protocol):
    """Makes uint8 (H, W, 3) pixels of an image file; its repr says how."""

    def __call__(self, path: Path) -> np.ndarray:
        """Read and resize. Raises SaccadeError for a file that is no image."""


@dataclass(frozen=True)
class ShortSideCrop:
    """Resize so that the shorter side has `side` pixels, and take the `crop` x `crop` pixels in the middle."""

    side: int
    crop: int
    filter: Filter = "bicubic"

    def __call__(self, path: Path) -> np.ndarray:
        """Read and resize."""
        image = read_rgb(path)
        height, width = image.shape[:2]
        # torchvision's Resize truncates the longer side; its CenterCrop rounds the start to even at halves.
        short = min(height, width)
        size = (int(self.side * height / short), int(self.side * width / short))
        resized = resize(image, size, self.filter)
        top, left = (round((extent - self.crop) / 2) for extent in size)
        return np.ascontiguousarray(resized[top : top + self.crop, left : left + self.crop])


@dataclass(frozen=True)
class Squash:
    """Resize to (height, width), whatever the shape was."""

    size: tuple[int, int]
    filter: Filter = "bicubic"

    def __call__(self, path: Path) -> np.ndarray:
        """Read and resize."""
        return resize(read_rgb(path), self.size, self.filter)


def resize(image: np.ndarray, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """Return uint8 (H, W, 3) pixels of `size` (height, width)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], _FILTERS[filter]))


def whole_patches(pixels: int, patch: int) -> int:
    """Return the multiple of `patch` nearest to `pixels`, at least one patch; halves go up."""
    return max(1, (2 * pixels + patch) // (2 * patch)) * patch


def checked_side(pixels: int, patch: int, protocol: int) -> int:
    """Return a side in pixels: the one asked for, which `patch` must divide, or for 0 the protocol's in whole patches."""
    if pixels == 0:
        return whole_patches(protocol, patch)
    if pixels % patch:
        raise SaccadeError(f"--size {pixels} is not a multiple of the {patch} px patch; use {whole_patches(pixels, patch)}")
    return pixels
