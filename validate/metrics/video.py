"""Video object segmentation (DAVIS 2017): labels of the first frame spread through the frames by feature likeness.

Mirrors PW-Self's (and DINO's) eval_video_segmentation.py: every patch takes the labels of its five most alike patches among
the first frame and the last seven, each within 12 patches of its own place.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_finite, check_labels, check_shape
from saccade.validate.metrics.neighbours import BLOCK_VALUES, normalize_rows
from saccade.validate.metrics.resize import resize_bilinear

# eval_video_segmentation.py: its options and the 0.1 of its label_propagation.
LAST_FRAMES = 7
RADIUS = 12  # patches, in each direction; 0 means everywhere
TOP_K = 5
TEMPERATURE = 0.1

Frame = tuple[np.ndarray, np.ndarray]  # normalised features (gh*gw, D) and soft labels (C, gh*gw)


def first_labels(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the first frame's labels on the grid, one-hot float32 (C, gh, gw), of its uint8 mask (H, W).

    Shrunk by Pillow's nearest, as upstream. C is the largest label left plus one, background included.
    """
    check_labels("first mask", mask, 256)
    small = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(grid[::-1], Image.Resampling.NEAREST))
    return np.asarray(small == np.arange(small.max() + 1)[:, None, None], np.float32)


def propagate_labels(
    features: Iterable[np.ndarray],
    first: np.ndarray,
    radius: int = RADIUS,
    last_frames: int = LAST_FRAMES,
    top_k: int = TOP_K,
) -> Iterator[np.ndarray]:
    """Yield each later frame's soft labels, float32 (C, gh, gw), as its features come.

    features: patch tokens (gh*gw, D) per frame, the first frame's first. first: its labels (C, gh, gw).
    """
    grid = (first.shape[1], first.shape[2])
    near = neighbourhood(grid, radius)
    frames = _checked(features, grid[0] * grid[1])
    beginning = next(frames, None)
    if beginning is None:
        raise SaccadeError("video: no frame at all; give the features of the first frame and of at least one more")
    start: Frame = (beginning, first.reshape(len(first), -1))
    recent: deque[Frame] = deque(maxlen=last_frames)
    for target in frames:
        labels = propagate_once(target, [start, *recent], near, top_k)
        recent.append((target, labels))
        yield labels.reshape(len(labels), *grid)


def propagate_once(target: np.ndarray, context: list[Frame], near: np.ndarray, top_k: int = TOP_K) -> np.ndarray:
    """Return a frame's soft labels, float32 (C, N), from frames of context; features (N, D) have length 1 per row.

    near: bool (N, N), which source patch (column) each target patch (row) may look at. Patches as alike as the
    `top_k`-th all count.
    """
    sources = np.concatenate([features for features, _ in context])
    known = np.concatenate([labels for _, labels in context], axis=1)  # (C, context*N)
    check_enough("patches in context", len(sources), top_k, f"the {top_k} most alike")
    found = np.empty((len(known), len(target)), np.float32)
    step = max(1, BLOCK_VALUES // len(sources))
    for start in range(0, len(target), step):
        block = slice(start, start + step)
        weights = np.exp(target[block] @ sources.T / np.float32(TEMPERATURE))
        weights *= np.tile(near[block], (1, len(context)))
        bound = np.partition(weights, -top_k, axis=1)[:, -top_k, None]
        weights[weights < bound] = 0
        found[:, block] = known @ (weights / weights.sum(axis=1, keepdims=True)).T
    return found


def neighbourhood(grid: tuple[int, int], radius: int) -> np.ndarray:
    """Return which patches lie within `radius` rows and columns of each other, bool (gh*gw, gh*gw); all, for radius 0."""
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    if radius == 0:
        return np.ones((rows.size, rows.size), bool)
    near_rows = np.abs(rows[:, None] - rows) <= radius
    return np.asarray(near_rows & (np.abs(columns[:, None] - columns) <= radius))


def frame_mask(labels: np.ndarray, patch: int, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a frame, uint8 (H, W) = size, of soft labels (C, gh, gw).

    Enlarged by bilinear to `patch` pixels each, every label stretched to 0..1, the largest taken, then Pillow's nearest.
    """
    maps = resize_bilinear(labels, (labels.shape[1] * patch, labels.shape[2] * patch))
    top = maps.max(axis=(1, 2), keepdims=True)
    low = maps.min(axis=(1, 2), keepdims=True)
    stretched = np.where(top > 0, (maps - low) / np.where(top > low, top - low, 1), maps)
    mask = stretched.argmax(axis=0).astype(np.uint8)
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _checked(features: Iterable[np.ndarray], patches: int) -> Iterator[np.ndarray]:
    for number, frame in enumerate(features):
        check_shape(f"features of frame {number}", frame, (patches, None))
        check_finite(f"features of frame {number}", frame)
        yield normalize_rows(frame)
