"""Features of a split's images beside their masks, in batches: neither all tokens nor all masks are held at once."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import failed_note, few
from saccade.validate.datasets.mask_file import left_out_note
from saccade.validate.datasets.masked_split import Labels, MaskedSplit
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.preparation import Preparation

BATCH = 16
BATCH_VALUES = 1 << 26  # of logits or shares at every pixel: 256 MiB of float32


@dataclass
class MaskedFeatures:
    """What was extracted of a split, and its masks at the size of the images that the network saw.

    A mask that cannot be used takes its image's row with it, and is named in `notes` after a pass.
    """

    features: Features
    split: MaskedSplit
    labels: Labels
    size: tuple[int, int]
    extract: Extractor
    problems: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of each label, over the pass

    def batches(self, label: str, images: int = BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield row numbers, int64 (b,), and masks, uint8 (b, H, W), under a bar with a label.

        Raises SaccadeError where no mask is usable, and where all of them hold less than two classes.
        """
        self.problems, self.pixels = [], np.zeros(256, np.int64)
        names, usable = self.features.names, 0
        with (
            self.extract.bar(len(names), f"{self.extract.source.label}: {label}") as bar,
            ThreadPoolExecutor(self.extract.workers) as pool,
        ):
            for start in range(0, len(names), images):
                part = names[start : start + images]
                found = list(pool.map(self._read, part))
                masks = [mask for mask in found if isinstance(mask, np.ndarray)]
                self.problems += [str(mask) for mask in found if isinstance(mask, SaccadeError)]
                if masks:
                    usable += len(masks)
                    self.pixels += np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)
                    rows = [start + place for place, mask in enumerate(found) if isinstance(mask, np.ndarray)]
                    yield np.array(rows), np.stack(masks)
                bar.update(len(part))
        self._check(usable)

    def resized(self, label: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return all row numbers and all masks, brought to a small size by nearest."""
        parts = [(rows, resize_nearest(masks, size)) for rows, masks in self.batches(label)]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([masks for _, masks in parts])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the split has left out, and which classes it lacks."""
        lines = (*self.split.notes, *failed_note(self.features, self.split.name))
        lines += left_out_note(f"masks of {self.split.name}", self.problems, len(self.features.names))
        classes = self.labels.classes
        absent = [name for number, name in enumerate(classes) if not self.pixels[number] and number != self.labels.ignore]
        if absent:
            are = agreeing(len(absent), "is", "are")
            of = f"{len(classes)} classes {are} in no mask of {self.split.name}"
            lines += (f"{few(absent)} of {of}; the mean is over all",)
        return lines

    def _read(self, name: str) -> np.ndarray | SaccadeError:
        try:
            return self.labels.read(self.split.masks[Path(name)], self.size)
        except SaccadeError as error:
            return error

    def _check(self, usable: int) -> None:
        if not usable:
            masks = counted(len(self.problems), "mask")
            raise SaccadeError(f"{self.split.name}: none of {masks} can be used ({self.problems[0]})")
        present = np.flatnonzero(self.pixels)
        present = present[present != self.labels.ignore]
        if len(present) == 0:
            raise SaccadeError(f"{self.split.name}: every pixel is ignored ({self.labels.ignore}); look at the masks")
        if len(present) == 1:
            only = f"{self.labels.classes[present[0]]} is the only class in its masks"
            raise SaccadeError(f"{self.split.name}: {only}, so any answer is right; add others")


def extract_masked(
    extract: Extractor,
    split: MaskedSplit,
    labels: Labels,
    prepare: Preparation,
    size: tuple[int, int],
    outputs: Sequence[str],
    label: str,
) -> MaskedFeatures:
    """Extract outputs of a split's images; `prepare` makes them of `size`."""
    return MaskedFeatures(extract(split.images, prepare, outputs, label=label), split, labels, size, extract)


def token_blocks(
    tokens: np.ndarray, rows: np.ndarray, images: int = BATCH, progress: Callable[[int], object] = lambda images: None
) -> Callable[[], Iterator[np.ndarray]]:
    """Return a function that yields the tokens (images, N, D) of these rows as patches (n, D), some images at a time.

    `progress` hears of how many images each time, when the next ones are asked for.
    """

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), images):
            chosen = rows[start : start + images]
            yield tokens[chosen].reshape(-1, tokens.shape[-1])
            progress(len(chosen))

    return blocks


def images_per_batch(classes: int, size: tuple[int, int]) -> int:
    """Return of how many images the values of all classes at all pixels are held at once."""
    return max(1, min(BATCH, BATCH_VALUES // (classes * size[0] * size[1])))
