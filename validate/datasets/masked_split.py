"""Images with masks of classes: the files of a split, and what the numbers in the masks mean."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.mask_file import left_out_note, read_mask, size_problem

NO_LABEL = -1  # in a table of labels: a number that no mask of the data set may hold
Pair = tuple[Path, Path]  # an image and its mask


@dataclass(frozen=True)
class Labels:
    """The classes of a data set: class number `table[n]` belongs to the number n in a mask file.

    `ignore` counts nowhere; it may also be a class (ADE20K ignores its class 0).
    """

    dataset: str
    classes: tuple[str, ...]
    ignore: int
    table: np.ndarray  # int16 (256,)

    def read(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Return the classes of a mask file resized to (height, width) by nearest, uint8.

        Raises SaccadeError for a file that cannot be read and for numbers that the data set does not have.
        """
        numbers = read_mask(path)
        pixels = np.bincount(numbers.ravel(), minlength=256)
        wrong = np.flatnonzero((pixels > 0) & (self.table == NO_LABEL))
        if len(wrong):
            few = ", ".join(map(str, wrong[:3])) + (", …" if len(wrong) > 3 else "")
            raise SaccadeError(f"{path}: {pixels[wrong].sum()} pixels hold labels that {self.dataset} does not have ({few})")
        image = Image.fromarray(self.table[numbers].astype(np.uint8))
        return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


@dataclass(frozen=True)
class MaskedSplit:
    """The images of a split that have a mask of their size, in order."""

    name: str
    images: list[Path]
    masks: dict[Path, Path]
    notes: tuple[str, ...]


def identity_labels(dataset: str, classes: tuple[str, ...], ignore: int) -> Labels:
    """Return labels of masks that hold the class numbers themselves."""
    table = np.full(256, NO_LABEL, np.int16)
    table[: len(classes)] = np.arange(len(classes))
    table[ignore] = ignore
    return Labels(dataset, classes, ignore, table)


def checked_split(name: str, pairs: Iterable[Pair]) -> MaskedSplit:
    """Keep the pairs of one size; raises SaccadeError where there is none. Of the files, only the heads are read."""
    listed = list(pairs)
    problems = {image: problem for image, mask in listed if (problem := size_problem(image, mask))}
    masks = {image: mask for image, mask in listed if image not in problems}
    if not masks:
        first = next(iter(problems.values()), "the split is empty")
        raise SaccadeError(f"{name}: none of {counted(len(listed), 'image')} has a mask of its size ({first})")
    return MaskedSplit(name, list(masks), masks, left_out_note(f"images of {name}", list(problems.values()), len(listed)))


def some_of(pairs: list[Pair], share: float, seed: int = 0) -> list[Pair]:
    """Return a random share of the pairs in their order, the same in every run; at least one."""
    count = max(1, int(len(pairs) * share))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    return [pairs[place] for place in chosen]
