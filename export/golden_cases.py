"""The images of golden.npz and the choice of k: made here, so that a bundle's self-test needs no photograph."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from saccade.backbone_golden import BackboneCase
from saccade.bundle import Defaults, ImageContract
from saccade.contract import extras_of
from saccade.export.backbone_checkpoint import BackboneCheckpoint
from saccade.export.backbone_reference import BackboneReference, backbone_case
from saccade.export.checkpoint import Checkpoint
from saccade.export.reference import FILL_NEIGHBOURS, IMAGENET, Reference, reference_case
from saccade.golden import Case

# A batch that is not the tracer's example and a grid that is not the base one nor square.
SECOND_BATCH = 3


def golden_cases(checkpoint: Checkpoint, task: str, defaults: Defaults, progress: Callable[[str], None]) -> list[Case]:
    """Return one image at the default size, and a batch on another grid with another k."""
    progress("reference in float32 and float64")
    reference, exact = Reference(checkpoint, task), Reference(checkpoint, task, torch.float64)
    patch = checkpoint.model.patch
    rows, columns = (extent // patch for extent in defaults.size)
    cells = rows * columns
    k = defaults.k_on(cells)
    other = _other_grid(rows, columns)
    images = [synthetic_image((other[0] * patch, other[1] * patch), seed) for seed in range(1, 1 + SECOND_BATCH)]
    return [
        reference_case(reference, exact, [synthetic_image(defaults.size, 0)], k),
        reference_case(reference, exact, images, max(FILL_NEIGHBOURS, other[0] * other[1] // 4)),
    ]


def backbone_golden_cases(
    checkpoint: BackboneCheckpoint, progress: Callable[[str], None], image: ImageContract = IMAGENET
) -> list[BackboneCase]:
    """Return one image on the position table's own grid, where nothing is resized, and a batch on another grid."""
    progress("reference in float32 and float64")
    model, extras = checkpoint.model, extras_of(checkpoint.model)
    reference, exact = (BackboneReference(checkpoint, extras, dtype, image) for dtype in (torch.float32, torch.float64))
    (rows, columns), patch = model.base_grid, model.patch
    other = _other_grid(rows, columns)
    return [
        backbone_case(reference, exact, [synthetic_image((rows * patch, columns * patch), 0)]),
        backbone_case(reference, exact, [synthetic_image((other[0] * patch, other[1] * patch), seed) for seed in (1, 2)]),
    ]


def _other_grid(rows: int, columns: int) -> tuple[int, int]:
    """Return a smaller grid that is not square."""
    return max(3, rows * 2 // 5), max(4, columns * 3 // 5)


def synthetic_image(size: tuple[int, int], seed: int) -> np.ndarray:
    """Return a uint8 (height, width, 3) picture with structure at all scales: blobs, a grating and fine noise."""
    height, width = size
    random = np.random.RandomState(seed)  # the legacy generator, frozen across NumPy versions
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    picture = np.full((height, width, 3), 110.0)
    for _ in range(12):
        centre = random.uniform(0, 1, 2) * (height, width)
        spread = random.uniform(0.03, 0.2) * max(height, width)
        blob = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * spread**2))
        picture += blob[:, :, None] * random.uniform(-110, 110, 3)
    angle, wavelength = random.uniform(0, np.pi), random.uniform(8, 40)
    grating = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / wavelength)
    picture += 18 * (grating * (columns > width / 2))[:, :, None] + random.normal(0, 4, picture.shape)
    clipped: np.ndarray = np.clip(picture, 0, 255)
    return clipped.astype(np.uint8)
