"""Attention of cls to the patches: masks of the patches that hold most of the mass.

Mirrors PW-Self's (and DINO's) visualize_attention.py, and process_attentions of NeCo's experiments/utils.py.
"""
from __future__ import annotations

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_shape
from saccade.validate.metrics.libraries import library
from saccade.validate.metrics.resize import resize_nearest

MASS = 0.6  # visualize_attention.py's example and video_generation.py's default for --threshold
# NeCo's process_attentions and process_and_store_attentions: the foreground that a network sees by itself.
FOREGROUND_MASS = 0.65
BLUR_SIGMA = 0.6
BLUR_KERNEL = 7
SMALLEST_COMPONENT = 3  # patches


def mass_mask(attention: np.ndarray, mass: float = MASS) -> np.ndarray:
    """Return which patches hold the largest `mass` (a share in 0..1) of attention (..., N): bool (..., N).

    The weakest patches go until less than 1 - mass of the sum would be left out; equal ones go lower place first.
    """
    if not 0 < mass <= 1:
        raise SaccadeError(f"attention: a mass of {mass} is out of range; give a share above 0 and up to 1")
    totals = attention.sum(axis=-1, keepdims=True, dtype=np.float64)
    if not (totals > 0).all() or (attention < 0).any():
        raise SaccadeError("attention: a row is negative or sums to nothing; give the softmax row of cls")
    order = np.argsort(attention, axis=-1, kind="stable")
    passed = np.cumsum(np.take_along_axis(attention / totals, order, axis=-1), axis=-1) > 1 - mass
    mask = np.empty(attention.shape, bool)
    np.put_along_axis(mask, order, passed, axis=-1)
    return mask


def mask_jaccard(masks: np.ndarray, truth: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Return intersection over union of masks (heads, gh, gw) with a foreground truth (H, W), both bool: float64 (heads,).

    Masks are enlarged by nearest. Only pixels of `counted` (H, W) count, if given. Where neither holds anything the two
    agree: 1.
    """
    shown = resize_nearest(masks, truth.shape)
    if counted is not None:
        shown, truth = shown & counted, truth & counted
    union = np.count_nonzero(shown | truth, axis=(1, 2))
    return np.where(union == 0, 1, np.count_nonzero(shown & truth, axis=(1, 2)) / np.maximum(union, 1))


def noisy_foreground(attention: np.ndarray, grid: tuple[int, int], mass: float = FOREGROUND_MASS) -> np.ndarray:
    """Return the foreground that attention alone suggests, bool (B, gh, gw), of cls attention (B, heads, gh*gw).

    Heads are averaged and blurred, the patches that hold the mass stay, components of one or two patches go.
    """
    check_shape("attention", attention, (None, None, grid[0] * grid[1]))
    places = np.arange(BLUR_KERNEL) - BLUR_KERNEL // 2
    kernel = np.exp(-0.5 * (places / BLUR_SIGMA) ** 2)
    maps = attention.mean(axis=1, dtype=np.float64).reshape(-1, *grid)
    for axis in (1, 2):
        maps = library("scipy.ndimage").correlate1d(maps, kernel / kernel.sum(), axis=axis, mode="mirror")
    masks = mass_mask(maps.reshape(len(maps), -1), mass).reshape(maps.shape)
    return np.stack([_without_specks(mask) for mask in masks])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Return a mask (gh, gw) without its small components; patches that touch at a corner are connected."""
    components, count = library("scipy.ndimage").label(mask, structure=np.ones((3, 3), int))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    keep = sizes >= SMALLEST_COMPONENT
    keep[0] = False
    return np.asarray(keep[components])
