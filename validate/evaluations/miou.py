"""What evaluations by mIoU report: scores of several runs, samples for comparisons, IoU of each class."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.validate.evaluations.task import Score
from saccade.validate.metrics.overcluster import ClusterResult
from saccade.validate.metrics.segmentation import class_counts, image_counts

Results = Sequence[ClusterResult]  # of one seed each, on the same images


def run_scores(name: str, results: Results) -> tuple[Score, Score]:
    """Return the mean over seeds and their standard deviation."""
    values = [100 * result.miou for result in results]
    return Score(name, float(np.mean(values))), Score(f"{name}: deviation over seeds", float(np.std(values)))


def run_samples(results: Results) -> np.ndarray:
    """Return the counts of each image in every run, int64 (images, runs, 3, C)."""
    return np.stack([image_counts(result.confusions) for result in results], axis=1)


def run_note(results: Results) -> tuple[str, ...]:
    """Say what an interval of one clustering cannot hold."""
    return ("one clustering: an interval leaves out what another seed would change",) if len(results) == 1 else ()


def run_details(classes: Sequence[str], results: Results) -> dict[str, object]:
    """Return the mIoU of every seed, and the IoU of each class averaged over seeds, in percent."""
    ious = np.mean([class_counts(result.confusions).iou for result in results], axis=0)
    return {"miou_by_seed": [100 * result.miou for result in results], "iou_by_class": iou_by_class(classes, ious)}


def iou_by_class(classes: Sequence[str], ious: np.ndarray) -> dict[str, float]:
    """Return the IoU of each class in percent, of shares (C,)."""
    return {name: round(100 * float(iou), 4) for name, iou in zip(classes, ious, strict=True)}
