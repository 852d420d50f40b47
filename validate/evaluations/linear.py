"""Linear probe of an ImageFolder, with PW-Self's and DINO's features and training (eval_linear.py).

Their training sees a new random crop of every image in each epoch. Here features are extracted once: of the middle of each
image, or of `--views` random crops that the epochs take in turns.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.contract import CLS_BLOCKS
from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import (
    ImageFolder,
    failed_note,
    labels_of,
    read_image_folder,
    shares_by_class,
    training_labels,
)
from saccade.validate.evaluations.knn import SHORT_SIDE_OF_CROP, SIZE
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.linear_head import LinearHead
from saccade.validate.metrics.linear_probe import (
    BATCH,
    EPOCHS,
    RATE,
    evaluate_linear_probe,
    fit_linear_probe,
    with_patch_mean,
)
from saccade.validate.preparation import Preparation, RandomCropFlip, ShortSideCrop, checked_side
from saccade.validate.sources import CLS, CLS_LAST4, TOKENS, Source

PATCH_MEAN = "cls_patch_mean"


class LinearSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=0, description="pixels of the crop (0: 224 in whole patches)")] = 0
    blocks: Annotated[
        int, Meta(ge=0, le=CLS_BLOCKS, description="last blocks whose cls are joined (0: 4 if the model gives them, else 1)")
    ] = 0
    patch_mean: Annotated[bool, Meta(description="join the last cls with the mean patch, as published for ViT-B")] = False
    views: Annotated[
        int, Meta(ge=0, le=1000, description="random crops of each training image (0: none, its middle alone)")
    ] = 0
    epochs: Annotated[int, Meta(ge=1, le=100_000, description="of the training")] = EPOCHS
    train_batch: Annotated[int, Meta(ge=1, description="images of a training step")] = BATCH
    rate: Annotated[float, Meta(gt=0, lt=1e6, description="learning rate for 256 images; scales with the batch")] = RATE
    seed: Annotated[int, Meta(ge=0, description="of the crops, the first weights and the order")] = 0


def read(root: Path, settings: LinearSettings) -> ImageFolder:
    """List the images."""
    if settings.patch_mean and settings.blocks > 1:
        raise SaccadeError(f"--patch-mean goes with one block's cls, not with --blocks {settings.blocks}; leave one out")
    return read_image_folder(root)


def evaluate(data: ImageFolder, extract: Extractor, settings: LinearSettings) -> Outcome:
    """Train on the training images, of which as many views as asked for, and classify the validation images."""
    size = checked_side(settings.size, extract.source.patch, SIZE)
    middle = ShortSideCrop(round(size * SHORT_SIDE_OF_CROP), size)
    blocks = _blocks(settings, extract.source)
    crops = [RandomCropFlip(size, view, settings.seed) for view in range(settings.views)]
    train = [
        _extracted(extract, data.train.paths, prepare, settings, blocks, label)
        for label, prepare in _labelled(crops) or [("train", middle)]
    ]
    val = _extracted(extract, data.val.paths, middle, settings, blocks, "val")
    head = _trained(data, train, blocks, extract, settings)
    labels = labels_of(data.val, val)
    result = evaluate_linear_probe(head, _inputs(val, blocks), labels)
    return Outcome(
        (Score("top-1", result.top1), Score("top-5", result.top5)),
        result.top1_hits.astype(np.float64),
        notes=(*data.notes, *failed_note(train[0], "train"), *failed_note(val, "val")),
        details={"blocks": blocks, "top1_by_class": shares_by_class(data, labels, result.top1_hits)},
    )


def cls_patch_mean(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return cls beside the mean of the tokens, so that the tokens need not be kept."""
    return {PATCH_MEAN: with_patch_mean(outputs[CLS], outputs[TOKENS])}


def _blocks(settings: LinearSettings, source: Source) -> int:
    """Return how many blocks' cls are read."""
    if settings.patch_mean:
        return 1
    return settings.blocks or (CLS_BLOCKS if CLS_LAST4 in source.outputs else 1)


def _labelled(crops: list[RandomCropFlip]) -> list[tuple[str, Preparation]]:
    return [(f"train, view {number} of {len(crops)}", crop) for number, crop in enumerate(crops, 1)]


def _extracted(
    extract: Extractor, paths: list[Path], prepare: Preparation, settings: LinearSettings, blocks: int, label: str
) -> Features:
    if settings.patch_mean:
        return extract(paths, prepare, [CLS, TOKENS], label=label, reduce=cls_patch_mean)
    return extract(paths, prepare, [CLS if blocks == 1 else CLS_LAST4], label=label)


def _inputs(features: Features, blocks: int) -> np.ndarray:
    """Return what the probe sees, mapped from disk: cls (N, D), of blocks (N, blocks, D), or with patches (N, D, 2)."""
    if CLS_LAST4 in features.arrays:
        return features.arrays[CLS_LAST4][:, -blocks:]
    return features.arrays[PATCH_MEAN if PATCH_MEAN in features.arrays else CLS]


def _trained(
    data: ImageFolder, train: list[Features], blocks: int, extract: Extractor, settings: LinearSettings
) -> LinearHead:
    views, labels = [_inputs(view, blocks) for view in train], training_labels(data, train[0])
    with extract.bar(settings.epochs * len(labels), f"{extract.source.label}: training") as bar:
        return fit_linear_probe(
            views, labels, len(data.classes), settings.seed, settings.epochs, settings.train_batch, settings.rate,
            report=lambda images, loss: bar.update(images),
        )  # fmt: skip


TASK = Task(
    "linear", "linear probe on cls, of the last four blocks where the model gives them",
    "train/CLASS/*.jpg, val/CLASS/*.jpg (ImageFolder)", LinearSettings, read, evaluate, on_lookwhere=True,
)  # fmt: skip
