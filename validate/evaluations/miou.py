"""What evaluations by mIoU share: pixels counted image by image, scores of several runs, IoU of each class."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from saccade.validate.evaluations.task import Score
from saccade.validate.masked_features import MaskedFeatures, images_per_batch
from saccade.validate.metrics.overcluster import ClusterResult
from saccade.validate.segmentation_sheet import Shown, shown_rows
from saccade.validate.sources import TOKENS

Results = Sequence[ClusterResult]  # of one seed each, on the same images
Count = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]  # of truth and prediction, with classes and ignored label


def counted_pixels(
    val: MaskedFeatures, predict: Callable[[np.ndarray], np.ndarray], count: Count, label: str
) -> tuple[np.ndarray, list[Shown]]:
    """Return what `count` (`image_counts` or `image_confusions`) makes of every image, and what the picture holds.

    predict: tokens (b, N, D) -> classes of the pixels, integers (b, H, W), of the size of the masks.
    """
    classes, names = len(val.labels.classes), val.features.names
    wanted, counts, shown = set(shown_rows(len(names)).tolist()), [], []
    for rows, masks in val.batches(label, images_per_batch(classes, val.size)):
        predicted = predict(val.features.arrays[TOKENS][rows])
        counts.append(count(masks, predicted, classes, val.labels.ignore))
        shown += [Shown(Path(names[row]), *maps) for row, *maps in zip(rows, masks, predicted, strict=True) if row in wanted]
    return np.concatenate(counts), shown


def run_scores(name: str, results: Results) -> tuple[Score, Score]:
    """Return the mean over seeds and their standard deviation."""
    values = [100 * result.total.miou for result in results]
    return Score(name, float(np.mean(values))), Score(f"{name}: deviation over seeds", float(np.std(values)))


def run_samples(results: Results) -> np.ndarray:
    """Return the counts of each image in every run, int32 (images, runs, 3, C)."""
    return np.stack([result.counts for result in results], axis=1)


def run_note(results: Results) -> tuple[str, ...]:
    """Say what an interval of one clustering cannot hold."""
    return ("one clustering: an interval leaves out what another seed would change",) if len(results) == 1 else ()


def run_details(classes: Sequence[str], results: Results) -> dict[str, object]:
    """Return the mIoU of every seed, and the IoU of each class averaged over seeds, in percent."""
    totals = [result.total for result in results]
    ious = np.mean([total.iou for total in totals], axis=0)
    return {"miou_by_seed": [100 * total.miou for total in totals], "iou_by_class": iou_by_class(classes, ious)}


def iou_by_class(classes: Sequence[str], ious: np.ndarray) -> dict[str, float]:
    """Return the IoU of each class in percent, of shares (C,)."""
    return {name: round(100 * float(iou), 4) for name, iou in zip(classes, ious, strict=True)}
