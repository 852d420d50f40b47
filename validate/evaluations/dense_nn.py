"""Dense nearest neighbours: segmentation by the labels of alike patches, as open-hummingbird-eval has it (hbird_eval.py).

Upstream's memory is of random crops with changed colours; here it is of the whole training images as they are.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import counted
from saccade.validate.datasets import segmentation
from saccade.validate.datasets.segmentation import Segmentation, read_segmentation
from saccade.validate.evaluations.miou import counted_pixels, iou_by_class
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.masked_features import MaskedFeatures, extract_masked
from saccade.validate.metrics.dense_nn import (
    LARGE_MEMORY,
    MEMORY_SIZE,
    NEIGHBOURS,
    TEMPERATURE,
    Batch,
    Memory,
    build_memory,
    class_shares,
    predict_masks,
)
from saccade.validate.metrics.overcluster import match_clusters
from saccade.validate.metrics.segmentation import ClassCounts, image_confusions, matched_counts, mean_iou_of_counts
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.segmentation_sheet import Shown, sheet_pictures
from saccade.validate.sources import TOKENS

SIZE = 512  # in whole patches that fit: 504 for patches of 14, as its README has it


class DenseNnSettings(Settings, frozen=True):
    """Options of the task."""

    dataset: Annotated[segmentation.Name, Meta(description="which data set DATA holds")] = "auto"
    size: Annotated[int, Meta(ge=0, description="pixels of either side (0: 512, or what whole patches fill of it)")] = 0
    train_share: Annotated[
        float, Meta(ge=0, le=1, description="of the training images, by chance (0: 0.1 of COCO, else all)")
    ] = 0
    memory: Annotated[
        int,
        Meta(ge=1, description=f"training patches kept, rare classes first; published: 70.2 (S/14), 77.0 of {LARGE_MEMORY}"),
    ] = MEMORY_SIZE
    neighbours: Annotated[int, Meta(ge=1, description="of each patch")] = NEIGHBOURS
    temperature: Annotated[float, Meta(gt=0, description="of the neighbours' weights, exp(cosine / T)")] = TEMPERATURE
    seed: Annotated[int, Meta(ge=0, description="of the choice of patches")] = 0


def read(root: Path, settings: DenseNnSettings) -> Segmentation:
    """List both splits."""
    return read_segmentation(root, settings.dataset, train=True, share=settings.train_share)


def evaluate(data: Segmentation, extract: Extractor, settings: DenseNnSettings) -> Outcome:
    """Keep patches of the training split, and give those of the validation split their neighbours' labels."""
    assert data.train is not None
    patch = extract.source.patch
    side = checked_side(settings.size, patch, max(patch, SIZE // patch * patch))
    size, grid = (side, side), (side // patch,) * 2
    prepare = Squash(size, "bilinear")
    train = extract_masked(extract, data.train, data.labels, prepare, size, [TOKENS], "train")
    val = extract_masked(extract, data.val, data.labels, prepare, size, [TOKENS], "val")
    memory = build_memory(
        _batches(train), len(train.features.names), grid, len(data.labels.classes), settings.seed, settings.memory
    )
    matrices, shown = _predicted(val, memory, grid, settings)
    mapping = match_clusters(matrices.sum(axis=0, dtype=np.int64), data.labels.ignore)
    counts = matched_counts(matrices, mapping)
    total, unmatched = (ClassCounts.of_images(each) for each in (counts, matched_counts(matrices, np.arange(len(mapping)))))
    return Outcome(
        (Score("mIoU", 100 * total.miou), Score("mIoU without matching", 100 * unmatched.miou)),
        counts,
        mean_iou_of_counts,
        notes=(*dict.fromkeys(train.notes + val.notes), *_memory_note(settings.memory)),
        details={"iou_by_class": iou_by_class(data.labels.classes, total.iou), "memory": len(memory.features)},
        pictures=sheet_pictures(shown, prepare, data.labels),
    )


def _memory_note(size: int) -> tuple[str, ...]:
    """Say which published figure compares with a memory, since it moves the mIoU by more than most models differ."""
    figures = f"of VOC, DINOv2 ViT-S/14: 70.2 with {MEMORY_SIZE}, 77.0 with {LARGE_MEMORY}"
    return (f"a memory of {counted(size, 'patch', 'patches')}; published figures {figures}",) if size < LARGE_MEMORY else ()


def _batches(train: MaskedFeatures) -> Iterator[Batch]:
    """Yield tokens with their masks."""
    for rows, masks in train.batches("memory"):
        yield train.features.arrays[TOKENS][rows], masks


def _predicted(
    val: MaskedFeatures, memory: Memory, grid: tuple[int, int], settings: DenseNnSettings
) -> tuple[np.ndarray, list[Shown]]:
    """Return the confusion matrix of each image before matching, int32 (images, C, C), and what the picture holds."""

    def predict(tokens: np.ndarray) -> np.ndarray:
        shares = class_shares(tokens, memory, settings.neighbours, settings.temperature)
        return predict_masks(shares, grid, val.size)

    return counted_pixels(val, predict, image_confusions, "neighbours")


TASK = Task(
    "dense-nn", "mIoU of labels that alike patches give (in-context)", segmentation.LAYOUT, DenseNnSettings, read, evaluate,
    on_lookwhere=True, requires=("scipy.optimize",), has_pictures=True,
)  # fmt: skip
