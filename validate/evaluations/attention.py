"""Attention of cls against the foreground: Jaccard of the patches that hold most of its mass (visualize_attention.py)."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from PIL import Image

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.runtime.feature_pictures import attention_panels, image_panel
from saccade.runtime.sheet import Panel, sheet, wrapped
from saccade.validate.datasets.image_folder import failed_note
from saccade.validate.datasets.mask_file import left_out_note, read_mask
from saccade.validate.datasets.masked_images import read_masked_images
from saccade.validate.datasets.masked_split import MaskedSplit
from saccade.validate.evaluations.task import Outcome, Pictures, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.attention import MASS, mask_jaccard, mass_mask
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import IGNORE
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.sources import ATTENTION

SIZE = 480
COLUMNS = 4  # of a sheet, which shows one image
DIMMED = 4  # what the foreground leaves out is shown at a quarter of its brightness


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
    jaccards, problems, used = [], [], []
    with extract.bar(len(found.names), f"{extract.source.label}: masks") as bar:
        for row, (name, attention) in enumerate(zip(found.names, found.arrays[ATTENTION], strict=True)):
            masks = mass_mask(attention, settings.mass).reshape(-1, *grid)
            try:
                jaccards.append(mask_jaccard(masks, *_truth(data.masks[Path(name)])))
                used.append(row)
            except SaccadeError as error:
                problems.append(str(error))
            bar.update(1)
    if not jaccards:
        raise SaccadeError(f"{data.name}: none of {counted(len(found.names), 'mask')} can be used ({problems[0]})")
    return _outcome(
        np.stack(jaccards),
        (*data.notes, *failed_note(found, data.name), *left_out_note("masks", problems, len(found.names))),
        lambda: _pictures(data, found, dict(zip(used, jaccards, strict=True)), prepare, patch, settings.mass),
    )


def _truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the foreground of a mask file and the pixels that count, which are those it does not call void."""
    labels = read_mask(path)
    known = labels != IGNORE
    foreground = (labels > 0) & known
    if not foreground.any():
        raise SaccadeError(f"{path} holds no foreground")
    return foreground, known


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
    data: MaskedSplit, found: Features, jaccards: Mapping[int, np.ndarray], prepare: Squash, patch: int, mass: float
) -> Iterator[tuple[str, Image.Image]]:
    """Yield one picture per image that was scored: itself, its foreground, and every head's map, its mask outlined."""
    for row, shares in jaccards.items():
        path, attention = Path(found.names[row]), np.asarray(found.arrays[ATTENTION][row])
        pixels = prepare(path)
        foreground = resize_nearest(_truth(data.masks[path])[0][None], prepare.size)[0][..., None]
        truth = np.where(foreground, pixels, pixels // DIMMED)
        maps = attention_panels(pixels, attention, patch, mass_mask(attention, mass))
        heads = [Panel(each.picture, f"{each.caption}: {share:.0%}") for each, share in zip(maps, shares, strict=True)]
        panels = [image_panel(pixels, path.name), image_panel(truth, "truth: the foreground"), *heads]
        yield f"{path.stem}.png", sheet(wrapped(panels, COLUMNS))


TASK = Task(
    "attention", "Jaccard of cls attention with the foreground",
    "images/NAME.jpg, SegmentationClass/NAME.png, perhaps sets/val.txt",
    AttentionSettings, read, evaluate, on_lookwhere=False, has_pictures=True,
)  # fmt: skip
