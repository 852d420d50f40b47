"""Linear probe: a linear classifier trained on frozen image features.

Mirrors PW-Self's (and DINO's) eval_linear.py. With features of one view per image the official augmentation is left out;
give several views (random crops and flips) and epoch e trains on view e.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.checks import check_enough, check_finite, check_labels, check_shape
from saccade.validate.metrics.linear_head import LinearHead, MomentumSgd, cross_entropy, normal_head

# eval_linear.py: defaults of its options, its SGD and its LinearClassifier.
EPOCHS = 100
BATCH = 1500
RATE = 0.001  # for 256 images; scales with the batch
RATE_BATCH = 256
MOMENTUM = 0.9
WEIGHT_DECAY = 0.0
DEVIATION = 0.01
TOP = 5


@dataclass(frozen=True)
class ProbeResult:
    """Per test image the predicted label, int64 (Q,), and whether the truth is the first or among the first five."""

    prediction: np.ndarray
    top1_hits: np.ndarray
    top5_hits: np.ndarray

    @property
    def top1(self) -> float:
        """Share of right predictions, in percent."""
        return float(100 * np.mean(self.top1_hits))

    @property
    def top5(self) -> float:
        """Share of images whose label is among the first five, in percent; of four classes or fewer it is 100."""
        return float(100 * np.mean(self.top5_hits))


def probe_features(cls_blocks: np.ndarray, patch_mean: np.ndarray | None = None) -> np.ndarray:
    """Return the probe's input (B, n*D) or (B, 2*D), float32.

    cls_blocks (n, B, D): cls after the final norm of the last n blocks, earliest first (4 for ViT-S, 1 for ViT-B).
    patch_mean (B, D): mean patch token of the last block, only with n = 1; upstream's stacking interleaves it with cls
    (c0, m0, c1, m1, ...), which its published heads expect.
    """
    if patch_mean is None:
        by_image = np.moveaxis(cls_blocks, 0, 1)  # features kept by image are joined without a copy
        return np.asarray(by_image.reshape(len(by_image), -1).astype(np.float32, copy=False))
    if len(cls_blocks) != 1:
        raise SaccadeError(f"linear probe: a patch mean goes with one block's cls, not with {len(cls_blocks)}")
    return np.stack([cls_blocks[0], patch_mean], axis=-1).reshape(len(patch_mean), -1).astype(np.float32)


def fit_linear_probe(
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: int,
    seed: int,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    rate: float = RATE,
    report: Callable[[int, float], None] | None = None,
) -> LinearHead:
    """Train on views, each (N, D) float32 of the same N images in one order, and labels (N,).

    The rate falls by half a cosine to 0, epoch by epoch. `report` gets each epoch's number and mean loss.
    """
    check_labels("train labels", labels, classes)
    for view in views:
        check_shape("train features", view, (len(labels), views[0].shape[1]))
        check_finite("train features", view)
    check_enough("train images", len(labels), classes, f"{classes} classes")
    head = normal_head(classes, views[0].shape[1], seed, DEVIATION)
    optimizer, random = MomentumSgd(head, MOMENTUM, WEIGHT_DECAY), np.random.default_rng(seed)
    for epoch in range(epochs):
        epoch_rate = cosine_rate(epoch, epochs, rate, batch)
        loss = _train_epoch(optimizer, views[epoch % len(views)], labels, batch, epoch_rate, random)
        if report is not None:
            report(epoch, loss)
    return head


def cosine_rate(epoch: int, epochs: int, rate: float, batch: int) -> float:
    """Return the learning rate of an epoch: linear in the batch, half a cosine over the epochs."""
    return rate * batch / RATE_BATCH * (1 + math.cos(math.pi * epoch / epochs)) / 2


def evaluate_linear_probe(head: LinearHead, features: np.ndarray, labels: np.ndarray) -> ProbeResult:
    """Classify test features (Q, D); equal logits go to the lower label."""
    check_shape("test features", features, (len(labels), head.weight.shape[1]))
    check_labels("test labels", labels, len(head.weight))
    check_enough("test images", len(labels), 1, "a linear probe")
    check_finite("test features", features)
    logits = head.logits(features)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower = np.arange(logits.shape[1]) < labels[:, None]
    ranks = np.count_nonzero((logits > own) | ((logits == own) & lower), axis=1)
    return ProbeResult(logits.argmax(axis=1), ranks < 1, ranks < TOP)


def _train_epoch(
    optimizer: MomentumSgd, features: np.ndarray, labels: np.ndarray, batch: int, rate: float, random: np.random.Generator
) -> float:
    order, losses = random.permutation(len(labels)), []
    for start in range(0, len(order), batch):
        rows = np.sort(order[start : start + batch])  # a memory-mapped file is read forwards, and once
        chosen = features[rows]
        loss, gradient = cross_entropy(optimizer.head.logits(chosen), labels[rows])
        optimizer.step(gradient.T @ chosen, gradient.sum(axis=0), rate)
        losses.append(loss)
    return float(np.mean(losses))
