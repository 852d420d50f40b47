"""How an evaluation brings an image file to the pixels that a network sees: the resizing of its protocol, by name.

Each is a value that says all it does, so that stored features are known by it. Resizing is Pillow's, as in torchvision's
transforms of PIL images, which every protocol uses; so is the reading, which is not as strict as a pipeline's.
"""
from __future__ import annotations

import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from saccade.errors import SaccadeError
from saccade.runtime.images import MAX_PIXELS, reading
from saccade.runtime.kept import MAX_CELLS

Filter = Literal["bilinear", "bicubic", "lanczos"]
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip


# Modes that Pillow's conversion to RGB clips to white or black instead of scaling them.
_CLIPPED_MODES = ("I", "F")


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
        image = read_as_pillow(path)
        height, width = image.shape[:2]
        # torchvision's Resize truncates the longer side; its CenterCrop rounds the start to even at halves.
        short = min(height, width)
        size = (int(self.side * height / short), int(self.side * width / short))
        if size[0] * size[1] > MAX_PIXELS:
            raise SaccadeError(f"{path}: {width} x {height} px is too narrow to be resized to a shorter side of {self.side}")
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
        return resize(read_as_pillow(path), self.size, self.filter)


@dataclass(frozen=True)
class Mirrored:
    """What another preparation gives, with left and right exchanged."""

    of: Preparation

    def __call__(self, path: Path) -> np.ndarray:
        """Read, resize and mirror."""
        return np.ascontiguousarray(self.of(path)[:, ::-1])


@dataclass(frozen=True)
class RandomCropFlip:
    """Resize a random part of the image to `side` x `side` and mirror half of them, as training sees images.

    The parts are torchvision's RandomResizedCrop's. An image's name, `view` and `seed` decide, so every run sees the same.
    """

    side: int
    view: int
    seed: int
    filter: Filter = "bilinear"

    def __call__(self, path: Path) -> np.ndarray:
        """Read, cut, resize and mirror."""
        image = read_as_pillow(path)
        random = np.random.default_rng([self.seed, self.view, zlib.crc32(f"{path.parent.name}/{path.name}".encode())])
        top, left, height, width = _random_part(image.shape[0], image.shape[1], random)
        resized = resize(image[top : top + height, left : left + width], (self.side, self.side), self.filter)
        return np.ascontiguousarray(resized[:, ::-1] if random.random() < 0.5 else resized)


@dataclass(frozen=True)
class Thumbnail:
    """Shrink to fit `side` x `side` with the aspect kept, as Pillow's thumbnail; smaller images stay as they are.

    An image of which a side is then shorter than `shortest` counts as unreadable.
    """

    side: int
    shortest: int

    def __call__(self, path: Path) -> np.ndarray:
        """Read and shrink."""
        image = Image.fromarray(read_as_pillow(path))
        image.thumbnail((self.side, self.side), _FILTERS["lanczos"])
        if min(image.size) < self.shortest:
            raise SaccadeError(f"{path}: {image.width} x {image.height} px is too narrow; {self.shortest} px are needed")
        return np.asarray(image)


def read_as_pillow(path: Path) -> np.ndarray:
    """Return an image file as uint8 (H, W, 3), as `Image.open(path).convert("RGB")` of the official projects does.

    EXIF rotation is not applied, so that masks fit, alpha is dropped and CMYK converted: some of ImageNet's JPEGs are CMYK.
    Raises SaccadeError for what is no image, too large, or of more than 8 bits in a mode that would be clipped.
    """
    with reading(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF and of size, which is bounded below
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SaccadeError(f"{path} is a device or a pipe; give an image file")
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise SaccadeError(f"{path}: more than {MAX_PIXELS // 10**6} megapixels; make it smaller first")
            if opened.mode.startswith(_CLIPPED_MODES):
                raise SaccadeError(f"{path}: an image of mode {opened.mode} would be clipped; convert it to 8-bit RGB first")
            return np.asarray(opened.convert("RGB"))


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
    if (pixels // patch) ** 2 > MAX_CELLS:
        raise SaccadeError(f"--size {pixels} makes {(pixels // patch) ** 2} patches; at most {MAX_CELLS} are supported")
    if pixels % patch:
        raise SaccadeError(f"--size {pixels} is not a multiple of the {patch} px patch; use {whole_patches(pixels, patch)}")
    return pixels


# torchvision's RandomResizedCrop: shares of the area, shapes, and how often it tries before it takes the middle.
AREAS = (0.08, 1.0)
SHAPES = (3 / 4, 4 / 3)
TRIES = 10


def _random_part(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a part of random area and shape."""
    for _ in range(TRIES):
        area = height * width * random.uniform(*AREAS)
        shape = math.exp(random.uniform(math.log(SHAPES[0]), math.log(SHAPES[1])))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            return int(random.integers(height - down + 1)), int(random.integers(width - across + 1)), down, across
    down, across = min(height, round(width / SHAPES[0])), min(width, round(height * SHAPES[1]))
    return (height - down) // 2, (width - across) // 2, down, across
