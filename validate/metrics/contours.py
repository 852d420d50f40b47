"""J and F of a video: how well masks of objects agree with the truth in their regions and along their contours.

Mirrors davis2017/metrics.py and evaluation.py of davis2017-evaluation, the semi-supervised task.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_labels, check_shape
from saccade.validate.metrics.libraries import library

BOUND = 0.008  # how far contours may lie apart, as a share of the image's diagonal
RECALL_ABOVE = 0.5
VOID = 255  # in a DAVIS annotation: no object


@dataclass(frozen=True)
class VideoScore:
    """One video: J and F per object and frame, float64 (objects, frames), first and last frame left out."""

    region: np.ndarray
    contour: np.ndarray

    @property
    def object_means(self) -> np.ndarray:
        """J and F per object, float64 (objects, 2); the data set's J&F is the mean of J and F over all its objects."""
        return np.stack([self.region.mean(axis=1), self.contour.mean(axis=1)], axis=1)

    @property
    def object_recalls(self) -> np.ndarray:
        """The share of frames above 0.5, of J and F per object, float64 (objects, 2)."""
        over = [np.mean(scores > RECALL_ABOVE, axis=1) for scores in (self.region, self.contour)]
        return np.stack(over, axis=1)


def score_video(truth: np.ndarray, masks: np.ndarray) -> VideoScore:
    """Score masks (frames, H, W) against the truth, integers both, the first frame included; label 0 is background.

    Objects are the labels 1..n of the truth's first frame; the masks may hold no label above n.
    """
    check_shape("video masks", masks, truth.shape)
    if len(truth) < 3:
        given = counted(len(truth), "frame")
        raise SaccadeError(f"video: {given}; the first and the last are not scored, so give at least 3")
    known = np.where(truth == VOID, 0, truth)
    objects = int(known[0].max())
    if not objects:
        raise SaccadeError("video: the first mask holds no object, so there is nothing to follow")
    check_labels("video masks", masks, objects + 1)
    region, contour = [], []
    for label in range(1, objects + 1):  # one after the other: two masks of each frame and object are hundreds of MB
        frames = [(true == label, mask == label) for true, mask in zip(known[1:-1], masks[1:-1], strict=True)]
        region.append([region_score(*frame) for frame in frames])
        contour.append([contour_score(*frame) for frame in frames])
    return VideoScore(np.array(region), np.array(contour))


def region_score(truth: np.ndarray, mask: np.ndarray) -> float:
    """Return J, the intersection over union of two bool masks (H, W); 1 where both are empty."""
    union = np.count_nonzero(truth | mask)
    return float(np.count_nonzero(truth & mask) / union) if union else 1.0


def contour_score(truth: np.ndarray, mask: np.ndarray) -> float:
    """Return F, the harmonic mean of contour precision and recall of bool masks (H, W); 1 where both have no contour."""
    true_edge, edge = contour(truth), contour(mask)
    if not edge.any() or not true_edge.any():
        return float(edge.any() == true_edge.any())
    reach = np.ceil(BOUND * np.hypot(*truth.shape))
    precision = np.mean(_within(true_edge, reach)[edge])
    recall = np.mean(_within(edge, reach)[true_edge])
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a bool mask (H, W) that differ from the one right, below or across: bool (H, W)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")  # at the border only the neighbours that exist count
    here = padded[:-1, :-1]
    return np.asarray((here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:]))


def _within(edge: np.ndarray, reach: float) -> np.ndarray:
    """Return the pixels at most `reach` pixels from an edge, in a straight line."""
    return np.asarray(library("scipy.ndimage").distance_transform_edt(~edge) <= reach)
