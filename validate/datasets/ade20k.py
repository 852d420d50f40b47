"""ADE20K's scene parsing set: images and annotations, each with training and validation; 150 classes, 0 is everything else.

Mirrors data/ade20k/ade20kdata.py of NeCo: class 0 is ignored and nevertheless counted in the mean.
"""
from __future__ import annotations

from pathlib import Path

from saccade.validate.datasets.image_folder import image_files
from saccade.validate.datasets.masked_split import Pair, identity_labels

FOLDER = "ADEChallengeData2016"
LABELS = identity_labels("ADE20K", ("other", *(str(number) for number in range(1, 151))), ignore=0)
LAYOUT = "ADEChallengeData2016/: images/{training,validation}/*.jpg, annotations/{training,validation}/*.png"


def ade20k_root(root: Path) -> Path | None:
    """Return the folder of the data set, which is `root` or in it, if it is there."""
    return next((folder for folder in (root / FOLDER, root) if (folder / "annotations/validation").is_dir()), None)


def ade20k_pairs(folder: Path, split: str) -> list[Pair]:
    """List a split: training or validation."""
    masks = folder / "annotations" / split
    return [(image, masks / f"{image.stem}.png") for image in image_files(folder / "images" / split)]
