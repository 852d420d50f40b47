"""The images of one call to the chain on a GPU: all on the host, or all on the device."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from saccade.errors import SaccadeError
from saccade.runtime.device import Device
from saccade.runtime.device_arrays import DeviceImage, device_images, is_on_device
from saccade.runtime.images import Fit, as_list, native_size
from saccade.runtime.kept import described
from saccade.runtime.pipeline import checked_target


class Batch(NamedTuple):
    """Images of one size, on a grid of patches."""

    images: list[np.ndarray] | list[DeviceImage]
    on_device: bool
    grid: tuple[int, int]


def listed(images: Any) -> tuple[list[Any], bool]:
    """Return one or several images as a list, and whether they lie on the device; a batch there is one array."""
    given: list[Any] = [images] if is_on_device(images) else as_list(images)
    there = [is_on_device(each) for each in given]
    if any(there) and not all(there):
        raise SaccadeError("some images are on the host and some on the device; give all of one kind")
    return given, any(there)


def device_batch(
    arrays: Sequence[Any], target: tuple[int, int] | None, fit: Fit, patch: int, device: Device, stream: int
) -> Batch:
    """Return arrays on the device as images of the (height, width) that is asked for, None where the first decides.

    `stream` waits until they are written. Nothing is resized there: native cuts them to whole patches, else they must fit.
    """
    found: list[DeviceImage] = []
    for index, array in enumerate(arrays):
        found += device_images(array, f"image {index}", device, stream)
    for index, image in enumerate(found):
        if target is None or fit == "native":
            target = checked_target(native_size(cast(Any, image), patch, index, first=target), patch)
        elif image.shape[:2] != target:
            raise SaccadeError(
                f"image {index} is {image.width} x {image.height} px on the device, where nothing is resized; "
                f"give {target[1]} x {target[0]} px, another size=, fit native, or an image on the host"
            )
    assert target is not None  # the list is not empty
    return Batch([image.cut(*target) for image in found], True, (target[0] // patch, target[1] // patch))


def stacked(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return images of the host as one dense array of what a call on the device reads."""
    if isinstance(images, np.ndarray):
        array, found = images, described(images)
    else:
        kinds = sorted({described(each) for each in images})
        array, found = np.stack(list(images)) if len(kinds) == 1 else np.empty(0), " and ".join(kinds) or "none"
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise SaccadeError(f"upload takes uint8 images (height, width, 3) of one size, got {found}")
    return np.ascontiguousarray(array)
