"""Segmentation without labels: foreground by attention and clusters (CBFE), its clusters as objects, and with
`--communities` clusters that lie side by side joined to objects (CD), as in NeCo's fully_unsup_seg.py on Pascal VOC.

Masks of the training split choose the threshold of the foreground, as upstream; nothing else sees a mask before the score.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import agreeing
from saccade.errors import SaccadeError
from saccade.validate.datasets import voc
from saccade.validate.datasets.masked_split import MaskedSplit, checked_split
from saccade.validate.evaluations.miou import run_details, run_note, run_samples, run_scores
from saccade.validate.evaluations.overcluster import SIZE
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.masked_features import MaskedFeatures, extract_masked, token_blocks
from saccade.validate.metrics.attention import noisy_foreground
from saccade.validate.metrics.clusters import REDOS, reduce_blocks, spherical_kmeans
from saccade.validate.metrics.communities import RUNS, community_links, cooccurrence, detect_communities
from saccade.validate.metrics.foreground import (
    CLUSTERS,
    FEWEST_CLUSTERS,
    MAP_SIZE,
    OBJECTS,
    SEED,
    choose_threshold,
    cluster_precisions,
    foreground_clusters,
    foreground_masks,
    mean_foreground_iou,
)
from saccade.validate.metrics.libraries import library
from saccade.validate.metrics.overcluster import SEEDS, ClusterResult, score_clusters
from saccade.validate.metrics.resize import resize_nearest
from saccade.validate.metrics.segmentation import mean_iou_of_counts
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.segmentation_sheet import Shown, sheet_pictures, shown_rows
from saccade.validate.sources import ATTENTION, TOKENS

LABELS = voc.LABELS
CLASSES = len(LABELS.classes)
LARGEST_COMMUNITIES = 255  # clusters of the foreground: upstream's co-occurrences have 256 levels


class ForegroundSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=0, description="pixels of either side (0: 448 in whole patches)")] = 0
    clusters: Annotated[int, Meta(ge=FEWEST_CLUSTERS, description="of which some are the foreground")] = CLUSTERS
    seeds: Annotated[int, Meta(ge=1, le=1000, description="clusterings that the score is the mean of")] = len(SEEDS)
    communities: Annotated[
        int, Meta(ge=0, le=LARGEST_COMMUNITIES, description="clusters that are joined to communities, 69 to 249 upstream")
    ] = 0
    markov_time: Annotated[float, Meta(gt=0, description="of the communities, 0.1 to 2 upstream; larger: fewer")] = 1.0
    link_weight: Annotated[float, Meta(gt=0, le=1, description="of the weakest link, 0.01 to 0.1 upstream")] = 0.05


@dataclass(frozen=True)
class VocSplits:
    """Training and validation images with masks."""

    train: MaskedSplit
    val: MaskedSplit


@dataclass(frozen=True)
class Found:
    """Both splits, training images first: reduced tokens (B, N, 50), attention's foreground and masks (B, 100, 100)."""

    reduced: np.ndarray
    noisy: np.ndarray
    truth: np.ndarray
    trained: int  # images of the training split

    @property
    def parts(self) -> tuple[slice, slice]:
        """The rows of each split."""
        return slice(self.trained), slice(self.trained, None)


def read(root: Path, settings: ForegroundSettings) -> VocSplits:
    """List both splits."""
    if settings.communities:
        library("infomap")  # before anything slow
    folder = voc.voc_root(root)
    if folder is None:
        raise SaccadeError(f"{root} does not hold Pascal VOC; its folders are expected as --help shows them")
    train, val = (checked_split(f"Pascal VOC {split}", voc.voc_pairs(folder, split)) for split in ("train", "val"))
    return VocSplits(train, val)


def evaluate(data: VocSplits, extract: Extractor, settings: ForegroundSettings) -> Outcome:
    """Extract the foreground of both splits, cluster it, and score the clusters on the validation split."""
    side = checked_side(settings.size, extract.source.patch, SIZE)
    prepare, grid = Squash((side, side), "bilinear"), (side // extract.source.patch,) * 2
    splits = [
        extract_masked(extract, split, LABELS, prepare, prepare.size, [TOKENS, ATTENTION], label)
        for split, label in ((data.train, "train"), (data.val, "val"))
    ]
    found, rows = _joined(splits, grid, extract)
    val = found.parts[1]
    masks, threshold = _foreground(found, grid, settings.clusters, extract)
    runs = {"CBFE": _objects(found, grid, masks, extract, settings.seeds)}
    if settings.communities:
        runs = {"communities": _communities(found, grid, masks, extract, settings), **runs}
    places = shown_rows(len(rows))
    scored = {name: _scored(found.truth[val], maps, places) for name, maps in runs.items()}
    results, classes = next(iter(scored.values()))
    foreground = Score("foreground IoU", 100 * mean_foreground_iou(masks[val], found.truth[val]))
    shown = [
        Shown(Path(splits[1].features.names[rows[place]]), found.truth[val][place], labels)
        for place, labels in zip(places, classes, strict=True)
    ]
    return Outcome(
        (*(score for name, (each, _) in scored.items() for score in run_scores(f"mIoU, {name}", each)), foreground),
        run_samples(results),
        mean_iou_of_counts,
        runs=len(results),
        notes=(*dict.fromkeys(splits[0].notes + splits[1].notes), *run_note(results)),
        details={"threshold": threshold, **{name: run_details(LABELS.classes, each) for name, (each, _) in scored.items()}},
        pictures=sheet_pictures(shown, prepare, LABELS),
    )


def _joined(splits: Sequence[MaskedFeatures], grid: tuple[int, int], extract: Extractor) -> tuple[Found, np.ndarray]:
    """Return what is computed on, and the rows of the validation split's features that it holds."""
    kept = [split.resized("masks", MAP_SIZE) for split in splits]
    truth = np.concatenate([masks for _, masks in kept])
    with extract.bar(2 * len(truth), f"{extract.source.label}: principal components") as bar:  # seen twice
        blocks = [
            token_blocks(split.features.arrays[TOKENS], rows, progress=bar.update)
            for split, (rows, _) in zip(splits, kept, strict=True)
        ]
        reduced = reduce_blocks(lambda: (block for each in blocks for block in each()))
    attention = [split.features.arrays[ATTENTION][rows] for split, (rows, _) in zip(splits, kept, strict=True)]
    noisy = np.concatenate([noisy_foreground(each, grid) for each in attention])
    trained, tokens = len(kept[0][0]), grid[0] * grid[1]
    return Found(reduced.reshape(len(truth), tokens, -1), resize_nearest(noisy, MAP_SIZE), truth, trained), kept[1][0]


def _foreground(found: Found, grid: tuple[int, int], count: int, extract: Extractor) -> tuple[np.ndarray, float]:
    """Return the foreground of all images, bool (B, 100, 100), and the precision from which clusters belong to it."""
    with extract.bar(REDOS, f"{extract.source.label}: {count} clusters", unit="run") as bar:
        clusters = _clusters(found, grid, count, bar.update)
    _check_shown(found, grid, clusters, count)
    maps = resize_nearest(clusters, MAP_SIZE)
    train, val = found.parts
    precisions = [cluster_precisions(maps[part], found.noisy[part], count) for part in (train, val)]
    threshold = choose_threshold(maps[train], found.truth[train], precisions[0])
    masks = [foreground_masks(maps[part], each, threshold) for part, each in zip((train, val), precisions, strict=True)]
    return np.concatenate(masks), threshold


def _clusters(
    found: Found, grid: tuple[int, int], count: int, progress: Callable[[int], object] = lambda runs: None
) -> np.ndarray:
    """Return the cluster of each patch, int32 (B, gh, gw)."""
    return spherical_kmeans(found.reduced.reshape(-1, found.reduced.shape[-1]), count, SEED, progress).reshape(-1, *grid)


def _check_shown(found: Found, grid: tuple[int, int], clusters: np.ndarray, count: int) -> None:
    """Refuse clusters that one split does not show, since it could not judge them; say how many both show."""
    for split, part in zip(("training", "validation"), found.parts, strict=True):
        missing = count - len(np.unique(clusters[part]))
        if missing:
            fewer = 3 * count // 4
            while fewer >= FEWEST_CLUSTERS and not _all_shown(found, _clusters(found, grid, fewer), fewer):
                fewer = 3 * fewer // 4
            remedy = f" or --clusters {fewer}" if fewer >= FEWEST_CLUSTERS else ""
            are, them = agreeing(missing, "is", "are"), agreeing(missing, "it", "them")
            lacking = f"{missing} of {count} clusters {are} in no {split} image, so attention cannot judge {them}"
            raise SaccadeError(f"foreground: {lacking}; give more images{remedy}")


def _all_shown(found: Found, clusters: np.ndarray, count: int) -> bool:
    return all(len(np.unique(clusters[part])) == count for part in found.parts)


def _objects(
    found: Found, grid: tuple[int, int], masks: np.ndarray, extract: Extractor, seeds: int
) -> Iterator[np.ndarray]:
    """Yield the validation maps of clusters of the foreground, int32 (images, 100, 100), one of each seed."""
    with extract.bar(seeds, f"{extract.source.label}: objects", unit="run") as bar:
        for seed in range(seeds):
            yield foreground_clusters(found.reduced, grid, masks, OBJECTS, seed)[found.parts[1]]
            bar.update(1)


def _communities(
    found: Found, grid: tuple[int, int], masks: np.ndarray, extract: Extractor, settings: ForegroundSettings
) -> Iterator[np.ndarray]:
    """Yield the validation maps of communities, int32 (images, 100, 100), one of each run of Infomap."""
    count = settings.communities
    with extract.bar(RUNS, f"{extract.source.label}: communities", unit="run") as bar:
        clusters = foreground_clusters(found.reduced, grid, masks, count, SEED)
        links = community_links(cooccurrence(clusters, count + 1), settings.link_weight)
        for seed in range(RUNS):
            yield detect_communities(links, count + 1, settings.markov_time, seed)[clusters[found.parts[1]]]
            bar.update(1)


def _scored(truth: np.ndarray, runs: Iterable[np.ndarray], places: np.ndarray) -> tuple[list[ClusterResult], np.ndarray]:
    """Score the maps of each run as it comes, since all together are gigabytes; the background is a cluster as the others.

    Returns the first run's classes (places, 100, 100) too.
    """
    results, classes = [], np.empty(0)
    for maps in runs:
        results.append(score_clusters(truth, maps, CLASSES, CLASSES, LABELS.ignore))
        if len(results) == 1:
            classes = results[0].mapping[maps[places]]
    return results, classes


TASK = Task(
    "foreground", "mIoU of objects found without labels, by attention and clusters", voc.LAYOUT, ForegroundSettings, read,
    evaluate, on_lookwhere=False, requires=("scipy.ndimage", "scipy.optimize", "sklearn.cluster"), has_pictures=True,
)  # fmt: skip
