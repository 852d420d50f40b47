"""COCO 2017 with stuff or things merged to their super-categories: 15 of stuff without "other", 12 of things.

Mirrors data/coco/coco_data_module.py of NeCo; which category belongs where is read from the annotations' own JSON.
"""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import image_files
from saccade.validate.datasets.masked_split import NO_LABEL, Labels, Pair

IGNORE = 255
OTHER = "other"  # stuff that is none of the classes
LARGEST_ID = 200  # of a category; numbers up to it that are no category's are unlabelled, as upstream takes them
MAX_JSON_BYTES = 1 << 29
TRAIN_SHARE = 0.1  # of train2017, in linear_finetune.py
IMAGES = ("images", "coco/images")
ANNOTATIONS = ("annotations", "annotations/annotations")
JSONS = {"stuff": "stuff_annotations/stuff_val2017.json", "things": "panoptic_annotations/panoptic_val2017.json"}
# Where masks are: DATASET.md has the second of things, with its spelling, and the code the first.
MASKS = {
    "stuff": ("stuff_annotations/stuff_{}2017_pixelmaps",),
    "things": ("{}2017", "panoptic_annotations/semantic_segmenations_{}2017"),
}
LAYOUT = (
    "[coco/]images/{train,val}2017/*.jpg and annotations/ with stuff_annotations/ (stuff_val2017.json,\n"
    "    stuff_{train,val}2017_pixelmaps/*.png) or panoptic_annotations/panoptic_val2017.json and {train,val}2017/*.png"
)


class _Category(Struct):
    id: int
    supercategory: str
    isthing: int = 0


class _Annotations(Struct):
    categories: list[_Category]


def coco_annotations(root: Path, kind: str) -> Path | None:
    """Return the folder of the annotations of "stuff" or "things", if there are any."""
    return next((root / folder for folder in ANNOTATIONS if (root / folder / JSONS[kind]).is_file()), None)


def coco_labels(annotations: Path, kind: str) -> Labels:
    """Return the merged classes that the JSON's categories give."""
    categories = _categories(annotations / JSONS[kind])
    is_counted = {
        category.id: category.supercategory != OTHER if kind == "stuff" else category.isthing == 1 for category in categories
    }
    classes = sorted({category.supercategory for category in categories if is_counted[category.id]})
    table = np.full(256, NO_LABEL, np.int16)
    table[[0, IGNORE]] = IGNORE
    if kind == "things":
        table[: LARGEST_ID + 1] = IGNORE
    for category in categories:
        table[category.id] = classes.index(category.supercategory) if is_counted[category.id] else IGNORE
    return Labels(f"COCO {kind}", tuple(classes), IGNORE, table)


def coco_pairs(root: Path, annotations: Path, kind: str, split: str) -> list[Pair]:
    """List a split: train or val."""
    images = _first_folder((root / folder / f"{split}2017" for folder in IMAGES), "its images")
    masks = _first_folder((annotations / name.format(split) for name in MASKS[kind]), f"its masks of {kind}")
    return [(image, masks / f"{image.stem}.png") for image in image_files(images)]


def _categories(path: Path) -> list[_Category]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SaccadeError(f"{path}: more than {MAX_JSON_BYTES >> 20} MiB; give COCO's own file of the validation split")
    try:
        categories = msgspec.json.decode(path.read_bytes(), type=_Annotations).categories
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SaccadeError(f"{path}: {error}; give COCO's own file of the validation split") from error
    if not categories or any(not 0 < category.id < IGNORE for category in categories):
        raise SaccadeError(f"{path}: its categories have no numbers between 0 and {IGNORE}; give COCO's own file")
    if len({category.id for category in categories}) < len(categories):
        raise SaccadeError(f"{path}: a number is given to several categories; give COCO's own file")
    return categories


def _first_folder(folders: Iterable[Path], what: str) -> Path:
    listed = list(folders)
    for folder in listed:
        if folder.is_dir():
            return folder
    raise SaccadeError(f"{listed[0]}: no such folder; COCO needs {what} there")
