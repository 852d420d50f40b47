"""Data sets for semantic segmentation by name or by what a folder holds: Pascal VOC, ADE20K, COCO and Cityscapes."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from saccade.errors import SaccadeError
from saccade.validate.datasets import ade20k, cityscapes, coco, voc
from saccade.validate.datasets.masked_split import Labels, MaskedSplit, Pair, checked_split, some_of

Name = Literal["auto", "voc", "ade20k", "coco-stuff", "coco-things", "cityscapes"]
LAYOUT = f"one of\n  {voc.LAYOUT}\n  {ade20k.LAYOUT}\n  {coco.LAYOUT}\n  {cityscapes.LAYOUT}"


@dataclass(frozen=True)
class Segmentation:
    """A data set: what its masks mean, the validation split, and the training split where a task needs one."""

    name: str
    labels: Labels
    val: MaskedSplit
    train: MaskedSplit | None = None


def read_segmentation(root: Path, name: Name, *, train: bool = False, share: float = 0) -> Segmentation:
    """List the validation split, and with `train` the training split or a share of it (0: as the protocol has it).

    Raises SaccadeError where the folder holds none or several of the data sets, or a split has no usable image.
    """
    found = _found(root)
    if name == "auto":
        if len(found) != 1:
            which = f"holds {' and '.join(found)}" if found else "holds no data set with masks that is known"
            raise SaccadeError(f"{root} {which}; give --dataset ({', '.join(get_args(Name)[1:])})")
        (name,) = found
    if name not in found:
        raise SaccadeError(f"{root} does not hold {name}; its folders are expected as --help shows them")
    labels = _labels(name, found[name])
    val = checked_split(f"{labels.dataset} val", _pairs(name, root, found[name], "val"))
    if not train:
        return Segmentation(name, labels, val)
    listed = _pairs(name, root, found[name], "train")
    share = share or (coco.TRAIN_SHARE if name.startswith("coco") else 1)
    return Segmentation(name, labels, val, checked_split(f"{labels.dataset} train", some_of(listed, share)))


def _found(root: Path) -> dict[Name, Path]:
    """Return the data sets below a folder by name, each with the folder that it is read from."""
    places: dict[Name, Path | None] = {
        "voc": voc.voc_root(root),
        "ade20k": ade20k.ade20k_root(root),
        "coco-stuff": coco.coco_annotations(root, "stuff"),
        "coco-things": coco.coco_annotations(root, "things"),
        "cityscapes": cityscapes.cityscapes_root(root),
    }
    return {name: place for name, place in places.items() if place is not None}


def _labels(name: Name, place: Path) -> Labels:
    if name.startswith("coco"):
        return coco.coco_labels(place, name.removeprefix("coco-"))
    return {"voc": voc.LABELS, "ade20k": ade20k.LABELS, "cityscapes": cityscapes.LABELS}[name]


def _pairs(name: Name, root: Path, place: Path, split: Literal["train", "val"]) -> list[Pair]:
    if name == "voc":
        return voc.voc_pairs(place, "trainaug" if split == "train" else "val")
    if name == "ade20k":
        return ade20k.ade20k_pairs(place, "training" if split == "train" else "validation")
    if name == "cityscapes":
        return cityscapes.cityscapes_pairs(place, split)
    return coco.coco_pairs(root, place, name.removeprefix("coco-"), split)
