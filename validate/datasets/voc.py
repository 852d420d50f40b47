"""Pascal VOC 2012 as NeCo lays it out: images/*.jpg, SegmentationClass(Aug)/*.png, sets/{train,trainaug,val}.txt.

Mirrors data/VOCdevkit/vocdata.py: training masks are SegmentationClassAug's, validation masks SegmentationClass's.
"""
from __future__ import annotations

from pathlib import Path

from saccade.validate.datasets.masked_split import Pair, identity_labels
from saccade.validate.datasets.name_list import read_names

FOLDER = "VOCSegmentation"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LABELS = identity_labels("Pascal VOC", CLASSES, ignore=255)
LAYOUT = "VOCSegmentation/: images/*.jpg, SegmentationClass/*.png, SegmentationClassAug/*.png, sets/{train,trainaug,val}.txt"


def voc_root(root: Path) -> Path | None:
    """Return the folder of the data set, which is `root` or in it, if it is there."""
    found = (root / FOLDER, root)
    return next((folder for folder in found if (folder / "sets").is_dir() and (folder / "images").is_dir()), None)


def voc_pairs(folder: Path, split: str) -> list[Pair]:
    """List a split: train, trainaug or val."""
    masks = folder / ("SegmentationClass" if split == "val" else "SegmentationClassAug")
    names = read_names(folder / "sets" / f"{split}.txt")
    return [(folder / "images" / f"{name}.jpg", masks / f"{name}.png") for name in names]
