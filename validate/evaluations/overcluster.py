"""Overclustering of validation images by their patch tokens, as NeCo scores it (eval_overcluster.py).

Upstream leaves out images that do not fill a batch of 32; here all count.
"""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import counted
from saccade.validate.datasets import segmentation
from saccade.validate.datasets.segmentation import Segmentation, read_segmentation
from saccade.validate.evaluations.miou import run_details, run_note, run_samples, run_scores
from saccade.validate.evaluations.task import Outcome, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.masked_features import extract_masked, token_blocks
from saccade.validate.metrics.clusters import kmeans, reduce_blocks
from saccade.validate.metrics.overcluster import MASK_SIZE, SEEDS, ClusterResult, Matching, score_clusters
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import mean_iou_of_counts
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.segmentation_sheet import Shown, sheet_pictures, shown_rows
from saccade.validate.sources import TOKENS

SIZE = 448


class OverclusterSettings(Settings, frozen=True):
    """Options of the task."""

    dataset: Annotated[segmentation.Name, Meta(description="which data set DATA holds")] = "auto"
    size: Annotated[int, Meta(ge=0, description="pixels of either side (0: 448 in whole patches)")] = 0
    clusters: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(min_length=1, description="how many; 0: as many as classes; the published VOC figure is of 500"),
    ] = (0,)
    matching: Annotated[
        Matching,
        Meta(description="how clusters become classes; protocol: hungarian for as many as classes, else precision"),
    ] = "protocol"
    seeds: Annotated[int, Meta(ge=1, le=1000, description="clusterings that the score is the mean of")] = len(SEEDS)


def read(root: Path, settings: OverclusterSettings) -> Segmentation:
    """List the validation split."""
    return read_segmentation(root, settings.dataset)


def evaluate(data: Segmentation, extract: Extractor, settings: OverclusterSettings) -> Outcome:
    """Cluster all patches together, several times, and score the clusters as classes."""
    side = checked_side(settings.size, extract.source.patch, SIZE)
    prepare, grid = Squash((side, side), "bilinear"), (side // extract.source.patch,) * 2
    val = extract_masked(extract, data.val, data.labels, prepare, (side, side), [TOKENS], "val")
    rows, masks = val.resized("masks", MASK_SIZE)
    with extract.bar(2 * len(rows), f"{extract.source.label}: principal components") as bar:  # seen twice
        reduced = reduce_blocks(token_blocks(val.features.arrays[TOKENS], rows, progress=bar.update))
    classes, ignore = len(data.labels.classes), data.labels.ignore
    numbers = list(dict.fromkeys(clusters or classes for clusters in settings.clusters))
    results: dict[int, list[ClusterResult]] = {clusters: [] for clusters in numbers}
    with extract.bar(len(numbers) * settings.seeds, f"{extract.source.label}: k-means", unit="run") as bar:
        for clusters in numbers:
            for seed in range(settings.seeds):
                patches = kmeans(reduced, clusters, seed).reshape(-1, *grid)
                scored = score_clusters(masks, patches, classes, clusters, ignore, settings.matching)
                results[clusters].append(scored)
                bar.update(1)
                if clusters == numbers[0] and seed == 0:
                    shown = _shown(val.features.names, rows, masks, scored.mapping[patches])
    return Outcome(
        tuple(score for each, found in results.items() for score in run_scores(f"mIoU, {counted(each, 'cluster')}", found)),
        run_samples(results[numbers[0]]),
        mean_iou_of_counts,
        runs=settings.seeds,
        notes=(*val.notes, *run_note(results[numbers[0]])),
        details={str(each): run_details(data.labels.classes, found) for each, found in results.items()},
        pictures=sheet_pictures(shown, prepare, data.labels),
    )


def _shown(names: list[str], rows: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> list[Shown]:
    """Return what the picture holds of the first clustering, at the size that is scored."""
    return [
        Shown(Path(names[rows[place]]), masks[place], resize_nearest(labels[place], MASK_SIZE))
        for place in shown_rows(len(rows))
    ]


TASK = Task(
    "overcluster", "mIoU of clusters of patch tokens", segmentation.LAYOUT, OverclusterSettings, read, evaluate,
    on_lookwhere=True, requires=("scipy.optimize", "sklearn.cluster"), has_pictures=True,
)  # fmt: skip
