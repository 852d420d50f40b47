"""Linear segmentation: one linear layer on frozen patch tokens, as NeCo trains it (linear_finetune.py, eval_linear.py).

Upstream trains on random crops of 80 to 100 % of an image, mirrored half the time, seen anew in every epoch. Here features
are extracted once, of whole images; with `--flips` also of mirrored ones, between which each epoch chooses by chance.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.validate.datasets import segmentation
from saccade.validate.datasets.segmentation import Segmentation, read_segmentation
from saccade.validate.evaluations.miou import counted_pixels, iou_by_class
from saccade.validate.evaluations.overcluster import SIZE
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.masked_features import MaskedFeatures, extract_masked
from saccade.validate.metrics.linear_head import LinearHead
from saccade.validate.metrics.linear_segmentation import (
    BATCH,
    EPOCHS,
    RATE,
    SEED,
    TRAIN_SIZE,
    Batch,
    fit_segmentation_head,
    predict_pixels,
    shuffled_rows,
)
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import ClassCounts, image_counts, mean_iou_of_counts
from saccade.validate.preparation import Mirrored, Preparation, Squash, checked_side
from saccade.validate.segmentation_sheet import Shown, sheet_pictures
from saccade.validate.sources import TOKENS


class LinearSegmentationSettings(Settings, frozen=True):
    """Options of the task."""

    dataset: Annotated[segmentation.Name, Meta(description="which data set DATA holds")] = "auto"
    size: Annotated[int, Meta(ge=0, description="pixels of either side (0: 448 in whole patches)")] = 0
    train_share: Annotated[
        float, Meta(ge=0, le=1, description="of the training images, by chance (0: the protocol's, 0.1 of COCO, else all)")
    ] = 0
    flips: Annotated[bool, Meta(description="extract mirrored training images too; twice the time and disk")] = False
    epochs: Annotated[int, Meta(ge=1, le=100_000, description="of the training")] = EPOCHS
    train_batch: Annotated[
        int, Meta(ge=1, description="images of a training step; on two cores 128 take 2 s with 21 classes, 5 s with 151")
    ] = BATCH
    rate: Annotated[float, Meta(gt=0, lt=1e6, description="learning rate, a tenth of it from epoch 20 on")] = RATE
    seed: Annotated[int, Meta(ge=0, description="of the first weights and the order")] = SEED


def read(root: Path, settings: LinearSegmentationSettings) -> Segmentation:
    """List both splits."""
    data = read_segmentation(root, settings.dataset, train=True, share=settings.train_share)
    assert data.train is not None
    if len(data.train.images) < settings.train_batch:
        images = counted(len(data.train.images), "image")
        have = f"{images} of {data.train.name} {agreeing(len(data.train.images), 'is', 'are')} fewer than a training step's"
        raise SaccadeError(f"{have} {settings.train_batch}; give more, or a smaller --train-batch")
    return data


def evaluate(data: Segmentation, extract: Extractor, settings: LinearSegmentationSettings) -> Outcome:
    """Train a head on the training split and score it at every pixel of the validation split."""
    assert data.train is not None
    side = checked_side(settings.size, extract.source.patch, SIZE)
    size, grid = (side, side), (side // extract.source.patch,) * 2
    whole = Squash(size, "bilinear")
    views: list[Preparation] = [whole, Mirrored(whole)] if settings.flips else [whole]
    train = [
        extract_masked(extract, data.train, data.labels, view, size, [TOKENS], f"train{', mirrored' * place}")
        for place, view in enumerate(views)
    ]
    val = extract_masked(extract, data.val, data.labels, whole, size, [TOKENS], "val")
    head = _trained(data, train, grid, extract, settings)
    counts, shown = scored(val, head, grid)
    total = ClassCounts.of_images(counts)
    return Outcome(
        (Score("mIoU", 100 * total.miou),),
        counts,
        mean_iou_of_counts,
        notes=tuple(dict.fromkeys(train[0].notes + val.notes)),
        details={"iou_by_class": iou_by_class(data.labels.classes, total.iou)},
        pictures=sheet_pictures(shown, whole, data.labels),
    )


def _trained(
    data: Segmentation,
    views: list[MaskedFeatures],
    grid: tuple[int, int],
    extract: Extractor,
    settings: LinearSegmentationSettings,
) -> LinearHead:
    """Train on tokens that stay on disk; masks are held at the size of the training."""
    parts = [
        (rows, [resize_nearest(each, TRAIN_SIZE) for each in (masks, masks[:, :, ::-1])[: len(views)]])
        for rows, masks in views[0].batches("training masks")
    ]
    rows = np.concatenate([rows for rows, _ in parts])
    masks = [np.concatenate(view) for view in zip(*(views for _, views in parts), strict=True)]
    tokens = [view.features.arrays[TOKENS] for view in views]
    batch = settings.train_batch
    with extract.bar(settings.epochs * (len(rows) // batch * batch), f"{extract.source.label}: training") as bar:
        return fit_segmentation_head(
            _batches(tokens, rows, masks, settings), grid, tokens[0].shape[-1], len(data.labels.classes), settings.seed,
            data.labels.ignore, settings.epochs, settings.rate, lambda images, loss: bar.update(images),
        )  # fmt: skip


def _batches(
    tokens: list[np.ndarray], rows: np.ndarray, masks: list[np.ndarray], settings: LinearSegmentationSettings
) -> Callable[[int], Iterator[Batch]]:
    """Return the batches of an epoch; masks (M, h, w) of each view belong to `rows` of its tokens."""
    shuffled = shuffled_rows(len(rows), settings.train_batch, settings.seed, len(tokens))

    def batches(epoch: int) -> Iterator[Batch]:
        for images, seen in shuffled(epoch):
            pairs = list(zip(images, seen, strict=True))
            yield (
                np.stack([tokens[view][rows[image]] for image, view in pairs]),  # copied once, from the mapped file
                np.stack([masks[view][image] for image, view in pairs]),
            )

    return batches


def scored(val: MaskedFeatures, head: LinearHead, grid: tuple[int, int]) -> tuple[np.ndarray, list[Shown]]:
    """Return the counts of each image, int32 (images, 3, C), and what the picture holds."""
    return counted_pixels(val, lambda tokens: predict_pixels(head, tokens, grid, val.size), image_counts, "scoring")


TASK = Task(
    "linear-segmentation", "mIoU of a linear layer on patch tokens", segmentation.LAYOUT, LinearSegmentationSettings, read,
    evaluate, on_lookwhere=True, has_pictures=True,
)  # fmt: skip
