"""Labelled images in folders, as torchvision's ImageFolder: SPLIT/CLASS/any depth/image."""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.runtime.images import IMAGE_SUFFIXES
from saccade.validate.features import Features

SPLITS = ("train", "val")


@dataclass(frozen=True)
class LabelledImages:
    """Image files of one split and their labels, int64 (N,), in the order of sorted class names."""

    paths: list[Path]
    labels: np.ndarray


@dataclass(frozen=True)
class ImageFolder:
    """A training and a validation split of the same classes."""

    classes: list[str]
    train: LabelledImages
    val: LabelledImages
    notes: tuple[str, ...]


def read_image_folder(root: Path, splits: Sequence[str] = SPLITS) -> ImageFolder:
    """List both splits. Raises SaccadeError where a split or its images are missing or the classes differ.

    A class of the training split without a single validation image is no error, but noted; one that the training split
    does not have is an error, since no prediction could be right.
    """
    train, val = (_classes(root / split) for split in splits)
    unknown = sorted(val.keys() - train.keys())
    if unknown:
        absent = f"{few(unknown)} of its classes {agreeing(len(unknown), 'is', 'are')} not in {splits[0]}"
        raise SaccadeError(f"{root / splits[1]}: {absent}; add or remove them")
    if len(train) == 1:
        raise SaccadeError(f"{root / splits[0]}: {next(iter(train))} is its only class, so any answer is right; add others")
    for name, paths in train.items():
        if not paths:
            raise SaccadeError(f"{root / splits[0] / name}: a class without an image; add some or remove the folder")
    untested = [name for name in train if not val.get(name)]
    have = agreeing(len(untested), "has", "have")
    notes = (f"{few(untested)} of {len(train)} classes {have} no image in {splits[1]}",) if untested else ()
    return ImageFolder(list(train), _labelled(train, list(train)), _labelled(val, list(train)), notes)


def labels_of(split: LabelledImages, features: Features) -> np.ndarray:
    """Return the labels of the rows that were extracted, int64, without those of unreadable images."""
    return np.asarray(split.labels[features.rows_of(split.paths) >= 0])


def training_labels(data: ImageFolder, features: Features) -> np.ndarray:
    """Return the labels of the training rows; raises SaccadeError for a class of which no image could be read."""
    labels = labels_of(data.train, features)
    unread = np.setdiff1d(np.arange(len(data.classes)), labels)
    if len(unread):
        lost = next(str(path) for path, label in zip(data.train.paths, data.train.labels, strict=True) if label == unread[0])
        names = few([data.classes[label] for label in unread])
        raise SaccadeError(f"no training image of {names} classes can be read, first {lost} ({features.failed[lost]})")
    return labels


def shares_by_class(data: ImageFolder, labels: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """Return the share of right answers in percent of each class that was tested."""
    return {name: float(100 * hits[labels == label].mean()) for label, name in enumerate(data.classes) if label in labels}


def failed_note(features: Features, where: str) -> tuple[str, ...]:
    """Return the line that counts unreadable images and names the first, if there are any."""
    if not features.failed:
        return ()
    first, why = next(iter(features.failed.items()))
    count = len(features.failed)
    lost = f"{count} of {counted(len(features.names) + count, 'image')} of {where}"
    return (f"{lost} cannot be read and {agreeing(count, 'is', 'are')} left out, first {first} ({why})",)


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, at any depth, sorted."""
    return sorted(_walked(folder))


def few(names: Sequence[str]) -> str:
    """Return a count with the first names."""
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _walked(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, onerror=_unlisted):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _unlisted(error: OSError) -> None:
    raise SaccadeError(f"{error.filename}: {error.strerror}, so its images are not known; make it readable") from error


def _classes(split: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, both sorted by name."""
    if not split.is_dir():
        raise SaccadeError(f"{split}: no such folder; images are expected in {split.name}/CLASS/")
    found = {entry.name: image_files(entry) for entry in sorted(split.iterdir()) if entry.is_dir()}
    if not any(found.values()):
        raise SaccadeError(f"{split}: holds no images; they are expected in {split.name}/CLASS/")
    return found


def _labelled(found: dict[str, list[Path]], classes: list[str]) -> LabelledImages:
    number = {name: label for label, name in enumerate(classes)}
    paths = [path for paths in found.values() for path in paths]
    labels = [number[name] for name, paths in found.items() for _ in paths]
    return LabelledImages(paths, np.array(labels, np.int64))

