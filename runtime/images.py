"""Bring what the caller has (a path, a PIL image, an array) to one uint8 RGB array of the size the model is asked for."""
from __future__ import annotations

import contextlib
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from saccade.errors import SaccadeError
from saccade.runtime.kernels import resize_bicubic

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"
# Files of a folder that are taken for images, whoever lists it: torchvision's ImageFolder takes the same.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
Fit = Literal["squash", "crop", "native"]
FITS: tuple[Fit, ...] = ("squash", "crop", "native")
# Modes that hold 8 bits a channel and become RGB without a choice to make; those with alpha only where it is opaque.
_PLAIN_MODES = frozenset({"RGB", "L", "P", "1"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA"})
# What Pillow reads as 8 bits a channel, dropping the lower half of 16 (without B, L or N, RGB;16 is 5-6-5).
_DEEP_RAW_MODE = re.compile(r"LA?;16|RGB[AXa]?;16[BLN]")
# Their further frames are no other picture: a preview or a second lens (MPO, which phones write as .jpg), layers (PSD).
_ONE_PICTURE_FORMATS = frozenset({"MPO", "PSD"})
_J2K_START = b"\xff\x4f\xff\x51"  # markers SOC and SIZ of a JPEG 2000 codestream
_AV1_DEEP_BITS = 0x40  # high_bitdepth in the third byte of an AVIF file's av1C box
# A larger image is taken for a decompression bomb. Twice Pillow's MAX_IMAGE_PIXELS, where it refuses to open a file.
MAX_PIXELS = 178_956_970
_TOO_LARGE = f"more than {MAX_PIXELS // 10**6} megapixels; make it smaller first"


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return one or several images as a list; a 4-D array is a batch of HWC images."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(images, Iterable):
        return [images]
    return list(images)


def read_rgb(image: ImageLike, name: str = "image") -> np.ndarray:
    """Return any accepted image as uint8 (height, width, 3) RGB, EXIF rotation applied.

    Raises SaccadeError for what is no image and for what cannot become 8-bit RGB without a choice that is the caller's.
    """
    if isinstance(image, np.ndarray):
        return _checked_array(image, name)
    if isinstance(image, Image.Image):
        with reading(name):
            return _rgb_array(image, name)
    if not isinstance(image, (str, os.PathLike)):
        raise SaccadeError(f"{name}: {type(image).__name__} is no type of image; give a path, a PIL image or a uint8 array")
    path = Path(image)
    with reading(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF says nothing of the pixels; MAX_PIXELS is our own bound
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SaccadeError(f"{path} is a device or a pipe; give an image file")
        if path.is_file() and path.stat().st_size == 0:
            raise SaccadeError(f"{path} is empty")
        with Image.open(path) as opened:
            _check_single(opened, str(path))  # not for a PIL image: its caller has chosen the frame
            return _rgb_array(opened, str(path))


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Put whatever goes wrong while Pillow opens or decodes `name` into one line."""
    try:
        yield
    except SaccadeError:
        raise
    except FileNotFoundError as error:
        raise SaccadeError(f"{name}: no such image file") from error
    except IsADirectoryError as error:
        raise SaccadeError(f"{name} is a folder; give image files") from error
    except Image.DecompressionBombError as error:
        raise SaccadeError(f"{name}: {_TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        raise SaccadeError(f"{name} is not an image that Pillow can read") from error
    except Exception as error:  # on damaged files Pillow raises nearly anything, TypeError and MemoryError among them
        if isinstance(error, OSError) and error.strerror:
            raise SaccadeError(f"cannot read {name}: {error.strerror}") from error
        raise SaccadeError(f"{name}: damaged or truncated image ({str(error) or type(error).__name__})") from error


def _checked_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise SaccadeError(f"{name}: arrays must be uint8 (height, width, 3) RGB, got {array.dtype} {list(array.shape)}")
    if array.size == 0:
        raise SaccadeError(f"{name}: the array is empty, {list(array.shape)}")
    return np.ascontiguousarray(array) if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)


def _rgb_array(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise SaccadeError(f"{name}: {_TOO_LARGE}")
    deep = _is_deep(image)
    if image.mode not in _PLAIN_MODES | _ALPHA_MODES or deep:
        kind = f"16-bit {image.mode}" if deep else image.mode
        raise SaccadeError(
            f"{name}: {kind} images are not accepted (16-bit, float and CMYK lose something on the way); "
            "convert it to 8-bit RGB first"
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = _opaque(image, name)
    upright: Image.Image = ImageOps.exif_transpose(image)
    return np.asarray(upright.convert("RGB"))


def _check_single(image: Image.Image, name: str) -> None:
    """Refuse a file of several frames: which of them is meant is not ours to guess."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _ONE_PICTURE_FORMATS:
        raise SaccadeError(f"{name} holds {frames} frames; extract the frame you mean")


def _is_deep(image: Image.Image) -> bool:
    """Tell whether a file just opened holds more than 8 bits a channel where Pillow's mode does not say so."""
    if image.format in ("JPEG2000", "AVIF"):
        return _is_deep_stream(image)
    for tile in getattr(image, "tile", ()):
        raw_mode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if _DEEP_RAW_MODE.match(str(raw_mode)) or (image.format == "PPM" and others and others[0] > 255):
            return True
    return False


def _is_deep_stream(image: Image.Image) -> bool:
    """Tell it of a JPEG 2000 or AVIF file, whose depth Pillow leaves in the file."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", ()):  # a PIL image that is decoded already: 8 bits are all there is
        return False
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    if image.format == "AVIF":
        _, found, box = content.partition(b"av1C")
        return bool(found) and len(box) > 2 and bool(box[2] & _AV1_DEEP_BITS)
    siz = content[content.find(_J2K_START) :]
    (channels,) = struct.unpack_from(">H", siz, 40)
    return any((depth & 0x7F) + 1 > 8 for depth in siz[42 : 42 + 3 * channels : 3])


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """Drop an alpha channel that says nothing; refuse one that does, since the background would be ours to invent."""
    rgba = image.convert("RGBA")
    lowest: Any = rgba.getchannel("A").getextrema()[0]
    if lowest < 255:
        raise SaccadeError(f"{name} is translucent; put it on a background first")
    return rgba


def fit_image(image: np.ndarray, size: tuple[int, int], fit: Fit, patch: int) -> np.ndarray:
    """Bring a uint8 (h, w, 3) image to (height, width) pixels.

    squash resizes both sides; crop resizes so that the shorter side fits, then takes the centre; native resizes nothing
    and leaves out the right and bottom remainder of the patch grid, as a strided convolution does (`size` is not used).
    Resizing is Pillow's antialiased bicubic, as in the README of antofuller/lookwhere, in our own kernel: it is several
    times as fast, and its pixels do not depend on the version of Pillow.
    """
    if fit == "native":
        height, width = (extent - extent % patch for extent in image.shape[:2])
        return image[:height, :width]
    if image.shape[:2] == size:
        return image
    if fit == "squash":
        return resize_bicubic(image, size)
    return _centre_crop(image, size)


def _centre_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by the larger of both ratios, so that `size` is covered, and cut its centre out."""
    scale = max(wanted / extent for wanted, extent in zip(size, image.shape[:2], strict=True))
    covering = tuple(max(wanted, round(extent * scale)) for wanted, extent in zip(size, image.shape[:2], strict=True))
    if covering[0] * covering[1] > MAX_PIXELS:
        raise SaccadeError(f"a {image.shape[1]} x {image.shape[0]} px image is too narrow for fit crop; use fit squash")
    top, left = ((extent - wanted) // 2 for wanted, extent in zip(size, covering, strict=True))
    return resize_bicubic(image, (covering[0], covering[1]), (top, left, *size))


def native_size(image: np.ndarray, patch: int, index: int, first: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the (height, width) of image number `index` cut to whole patches; it must be that of image 0, if given."""
    height, width = (extent - extent % patch for extent in image.shape[:2])
    if not height or not width:
        raise SaccadeError(f"image {index} is smaller than one {patch} px patch; use --fit squash")
    if first is not None and (height, width) != first:
        raise SaccadeError(
            f"images of one run share a grid: image 0 is {first[1]} x {first[0]} px in whole patches, "
            f"image {index} is {width} x {height}; run them apart, or use --fit squash or crop"
        )
    return height, width


def check_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return `size` (height, width) if the patch divides it, else name the nearest size that it does divide."""
    if any(extent <= 0 or extent % patch for extent in size):
        near = "x".join(str(max(patch, round(extent / patch) * patch)) for extent in size)
        raise SaccadeError(f"size {size[0]}x{size[1]} is not a multiple of the {patch} px patch; the nearest is {near}")
    return size
