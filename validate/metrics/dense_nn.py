"""Retrieval-based segmentation: every patch takes the labels of the most alike patches of the training images.

Mirrors hbird/hbird_eval.py of open-hummingbird-eval, with an exact search. As there, predicted classes are matched to true
ones again (Hungarian) before the mIoU: `overcluster.match_clusters` of all images' confusion matrices.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_finite, check_labels, check_shape
from saccade.validate.metrics.neighbours import nearest, normalize_rows
from saccade.validate.metrics.resize import resize_bilinear

# hbird_eval.py: n_neighbours, beta of _cross_attention, and the smaller of the README's two memories.
NEIGHBOURS = 30
TEMPERATURE = 0.02
MEMORY_SIZE = 1024 * 10**2
LARGE_MEMORY = 1024 * 10**4  # of the README's best figures
UNLABELLED = 255  # in the memory such pixels count as class 0, as upstream

Batch = tuple[np.ndarray, np.ndarray]  # tokens (B, gh*gw, D) float32 and masks (B, H, W) integers


@dataclass(frozen=True)
class Memory:
    """Patches of training images: features (M, D) float32 of length 1, and the class shares of their pixels (M, C)."""

    features: np.ndarray
    labels: np.ndarray


def patch_labels(masks: np.ndarray, grid: tuple[int, int], classes: int) -> np.ndarray:
    """Return each class's share of the pixels under each patch, float32 (B, gh*gw, C), of masks (B, H, W)."""
    images, height, width = masks.shape
    if height % grid[0] or width % grid[1]:
        raise SaccadeError(f"masks of {height}x{width} pixels do not divide into {grid[0]}x{grid[1]} patches; resize them")
    check_labels("train masks", masks, classes, UNLABELLED)
    known = np.where(masks == UNLABELLED, 0, masks)
    cells = known.reshape(images, grid[0], height // grid[0], grid[1], width // grid[1]).transpose(0, 1, 3, 2, 4)
    rows = cells.reshape(images * grid[0] * grid[1], -1)
    places = rows + classes * np.arange(len(rows))[:, None]
    counts = np.bincount(places.ravel(), minlength=len(rows) * classes).reshape(images, -1, classes)
    return np.asarray(counts / rows.shape[1], np.float32)


def sample_patches(labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Choose `count` patches of one image, int64 (count,), from its class shares (N, C); rare classes come first.

    A patch's score is the number of patches that hold each of its classes, summed, times uniform noise; the lowest stay.
    """
    present = labels > 0
    scores = present @ present.sum(axis=0) * random.random(len(labels))
    return np.argsort(scores, kind="stable")[:count]


def build_memory(
    batches: Iterable[Batch], images: int, grid: tuple[int, int], classes: int, seed: int, size: int = MEMORY_SIZE
) -> Memory:
    """Collect a memory of about `size` patches from at most `images` training images.

    Each image gives size // images patches; where that is more than it has, it gives all.
    """
    random, share = np.random.default_rng(seed), max(1, size // max(1, images))
    rows, most = 0, images * min(share, grid[0] * grid[1])
    features, shares = np.empty((0, 0), np.float32), np.empty((most, classes), np.float32)
    for tokens, masks in batches:
        check_shape("train tokens", tokens, (len(masks), grid[0] * grid[1], None))
        check_finite("train tokens", tokens)
        if not rows:
            features = np.empty((most, tokens.shape[2]), np.float32)  # filled in place: joining parts would hold them twice
        for patches, labels in zip(tokens, patch_labels(masks, grid, classes), strict=True):
            chosen = sample_patches(labels, share, random) if share < len(patches) else np.arange(len(patches))
            place = slice(rows, rows + len(chosen))
            features[place], shares[place] = normalize_rows(patches[chosen]), labels[chosen]
            rows += len(chosen)
    check_enough("train images", rows, 1, "a memory")
    return Memory(features[:rows], shares[:rows])


def class_shares(
    tokens: np.ndarray, memory: Memory, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return each patch's class shares, float32 (B, N, C): its neighbours' by softmax of cosine / temperature."""
    check_shape("tokens", tokens, (None, None, memory.features.shape[1]))
    cosines, rows = nearest(normalize_rows(tokens.reshape(-1, tokens.shape[-1])), memory.features, neighbours)
    weights = np.exp((cosines - cosines[:, :1]) / np.float32(temperature))  # the first is the largest
    weights /= weights.sum(axis=1, keepdims=True)
    by_image = (each.reshape(*tokens.shape[:2], neighbours) for each in (weights, rows))
    # Image by image, since the labels of all neighbours are larger than the result by their number.
    return np.stack([(share[:, None] @ memory.labels[chosen])[:, 0] for share, chosen in zip(*by_image, strict=True)])


def predict_masks(shares: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the likeliest class of each pixel, int64 (B, *size): bilinear from class shares (B, gh*gw, C)."""
    maps = np.ascontiguousarray(shares.transpose(0, 2, 1)).reshape(len(shares), -1, *grid)
    return np.asarray(resize_bilinear(maps, size).argmax(axis=1))
