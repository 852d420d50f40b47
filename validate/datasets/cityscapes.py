"""Cityscapes: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png; 19 of 34 labels count.

Mirrors data/cityscapes/cityscapes_data.py of NeCo.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from saccade.validate.datasets.masked_split import NO_LABEL, Labels, Pair

FOLDER = "cityscapes"
IMAGE_END, MASK_END = "_leftImg8bit.png", "_gtFine_labelIds.png"
IGNORE = 255
# Label ids of the classes that are scored, in the order of their training numbers.
COUNTED = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light", 20: "traffic sign",
    21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
LARGEST_ID = 33
LAYOUT = "cityscapes/: leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, gtFine/{train,val}/CITY/*_gtFine_labelIds.png"


def _labels() -> Labels:
    table = np.full(256, NO_LABEL, np.int16)
    table[: LARGEST_ID + 1] = IGNORE
    table[255] = IGNORE  # id -1, a licence plate, in 8 bits
    table[list(COUNTED)] = np.arange(len(COUNTED))
    return Labels("Cityscapes", tuple(COUNTED.values()), IGNORE, table)


LABELS = _labels()


def cityscapes_root(root: Path) -> Path | None:
    """Return the folder of the data set, which is `root` or in it, if it is there."""
    return next((folder for folder in (root / FOLDER, root) if (folder / "gtFine").is_dir()), None)


def cityscapes_pairs(folder: Path, split: str) -> list[Pair]:
    """List a split: train or val."""
    images = sorted((folder / "leftImg8bit" / split).glob(f"*/*{IMAGE_END}"))
    masks = folder / "gtFine" / split
    return [(image, masks / image.parent.name / f"{image.name.removesuffix(IMAGE_END)}{MASK_END}") for image in images]
