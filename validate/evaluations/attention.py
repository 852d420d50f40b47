"""Attention of cls against the foreground: Jaccard of the patches that hold most of its mass (visualize_attention.py)."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import failed_note
from saccade.validate.datasets.mask_file import left_out_note, read_mask
from saccade.validate.datasets.masked_images import read_masked_images
from saccade.validate.datasets.masked_split import MaskedSplit
from saccade.validate.evaluations.task import Outcome, Pictures, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.attention import MASS, head_pictures, mask_jaccard, mass_mask
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import IGNORE
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.sources import ATTENTION

SIZE = 480
DIMMED = 4  # what a mask leaves out is shown at a quarter of its brightness


class AttentionSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=0, description="pixels of either side (0: 480 in whole patches)")] = 0
    mass: Annotated[float, Meta(gt=0, le=1, description="share of a head's attention that its mask holds")] = MASS


def read(root: Path, settings: AttentionSettings) -> MaskedSplit:
    """List the images that have a mask."""
    return read_masked_images(root)


def evaluate(data: MaskedSplit, extract: Extractor, settings: AttentionSettings) -> Outcome:
    """Compare every head's mask with the foreground of every image; one without a foreground is left out, and counted."""
    patch = extract.source.patch
    side = checked_side(settings.size, patch, SIZE)
    prepare, grid = Squash((side, side), "bilinear"), (side // patch, side // patch)
    found = extract(data.images, prepare, [ATTENTION])
    jaccards, problems = [], []
    with extract.bar(len(found.names), f"{extract.source.label}: masks") as bar:
        for name, attention in zip(found.names, found.arrays[ATTENTION], strict=True):
            masks = mass_mask(attention, settings.mass).reshape(-1, *grid)
            try:
                foreground, counted = _truth(data.masks[Path(name)])
                jaccards.append(mask_jaccard(masks, foreground, counted))
            except SaccadeError as error:
                problems.append(str(error))
            bar.update(1)
    if not jaccards:
        raise SaccadeError(f"{data.name}: none of {len(found.names)} masks can be used ({problems[0]})")
    return _outcome(
        np.stack(jaccards),
        (*data.notes, *failed_note(found, data.name), *left_out_note("masks", problems, len(found.names))),
        lambda: _pictures(found, prepare, grid, settings.mass),
    )


def _truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the foreground of a mask file and the pixels that count, which are those it does not call void."""
    labels = read_mask(path)
    counted = labels != IGNORE
    foreground = (labels > 0) & counted
    if not foreground.any():
        raise SaccadeError(f"{path} holds no foreground")
    return foreground, counted


def _outcome(jaccards: np.ndarray, notes: tuple[str, ...], pictures: Pictures) -> Outcome:
    """Return the scores of Jaccards (images, heads)."""
    means = 100 * jaccards.mean(axis=0)
    # The published figure takes the masks to choose a head for each image: it rises with noise, so no gate stands on it.
    scores = (
        Score("Jaccard, mean of the heads", float(means.mean())),
        Score("Jaccard, the best head of all", float(means.max())),
        Score("Jaccard, best head of each image (as published)", float(100 * jaccards.max(axis=1).mean())),
    )
    samples = jaccards.mean(axis=1)
    return Outcome(scores, samples, notes=notes, details={"heads": means.round(2).tolist()}, pictures=pictures)


def _pictures(
    found: Features, prepare: Squash, grid: tuple[int, int], mass: float
) -> Iterator[tuple[str, Image.Image]]:
    """Yield one picture per image: every head's map in the upper row, its mask on the image in the lower."""
    for name, attention in zip(found.names, found.arrays[ATTENTION], strict=True):
        pixels = prepare(Path(name))
        maps = head_pictures(attention, grid, pixels.shape[0] // grid[0])
        shown = resize_nearest(mass_mask(attention, mass).reshape(-1, *grid), prepare.size)[..., None]
        masked = np.where(shown, pixels, pixels // DIMMED)
        rows = [pixels, *maps[..., None].repeat(3, axis=-1)], [pixels, *masked]
        yield f"{Path(name).stem}.png", Image.fromarray(np.vstack([np.hstack(row) for row in rows]))


TASK = Task(
    "attention", "Jaccard of cls attention with the foreground",
    "images/NAME.jpg, SegmentationClass/NAME.png, perhaps sets/val.txt",
    AttentionSettings, read, evaluate, on_lookwhere=False, has_pictures=True,
)  # fmt: skip
