"""Linear probe: a linear classifier trained on frozen image features.

Mirrors PW-Self's (and DINO's) eval_linear.py. With features of one view per image the official augmentation is left out;
give several views (random crops and flips) and epoch e trains on view e.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from saccade.validate.metrics.checks import check_enough, check_finite, check_labels, check_shape
from saccade.validate.metrics.classification import TOP, Classified, labels_before
from saccade.validate.metrics.linear_head import LinearHead, MomentumSgd, cross_entropy, normal_head

# eval_linear.py: defaults of its options, its SGD and its LinearClassifier.
EPOCHS = 100
BATCH = 1500
RATE = 0.001  # for 256 images; scales with the batch
RATE_BATCH = 256
MOMENTUM = 0.9
WEIGHT_DECAY = 0.0
DEVIATION = 0.01


def with_patch_mean(cls: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return cls (B, D) of the last block and the mean of its tokens (B, N, D), float32 (B, D, 2).

    Upstream's stacking interleaves them (c0, m0, c1, m1, ...), which its published heads expect.
    """
    return np.stack([cls, tokens.mean(axis=1)], axis=-1).astype(np.float32)


def fit_linear_probe(
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: int,
    seed: int,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    rate: float = RATE,
    report: Callable[[int, float], None] = lambda images, loss: None,
) -> LinearHead:
    """Train on views, each (N, ...) float32 of the same N images in one order, and labels (N,).

    An image's features are joined as they stand, batch by batch: (N, 4, D) of four blocks' cls may stay on disk, and so may
    a part of it. The rate falls by half a cosine to 0, epoch by epoch. `report` gets each step's number of images and mean
    loss.
    """
    check_labels("train labels", labels, classes)
    for view in views:
        check_shape("train features", view, (len(labels), *views[0].shape[1:]))
        check_finite("train features", view)
    check_enough("train images", len(labels), classes, f"{classes} classes")
    head = normal_head(classes, math.prod(views[0].shape[1:]), seed, DEVIATION)
    optimizer, random = MomentumSgd(head, MOMENTUM, WEIGHT_DECAY), np.random.default_rng(seed)
    for epoch in range(epochs):
        view, epoch_rate = views[epoch % len(views)], cosine_rate(epoch, epochs, rate, batch)
        order = random.permutation(len(labels))
        for start in range(0, len(order), batch):
            rows = np.sort(order[start : start + batch])  # a memory-mapped file is read forwards, and once
            report(len(rows), _step(optimizer, _joined(view[rows]), labels[rows], epoch_rate))
    return head


def cosine_rate(epoch: int, epochs: int, rate: float, batch: int) -> float:
    """Return the learning rate of an epoch: linear in the batch, half a cosine over the epochs."""
    return rate * batch / RATE_BATCH * (1 + math.cos(math.pi * epoch / epochs)) / 2


def evaluate_linear_probe(head: LinearHead, features: np.ndarray, labels: np.ndarray) -> Classified:
    """Classify test features (Q, ...), joined as in training; equal logits go to the lower label."""
    check_labels("test labels", labels, len(head.weight))
    check_enough("test images", len(labels), 1, "a linear probe")
    check_finite("test features", features)
    predictions, ranks = [], []
    for start in range(0, len(labels), BATCH):
        block = slice(start, start + BATCH)
        joined = _joined(features[block])
        check_shape("test features", joined, (len(labels[block]), head.weight.shape[1]))
        logits = head.logits(joined)
        predictions.append(logits.argmax(axis=1))
        ranks.append(labels_before(logits, labels[block]))
    rank = np.concatenate(ranks)
    return Classified(np.concatenate(predictions), rank < 1, rank < TOP)


def _joined(features: np.ndarray) -> np.ndarray:
    """Return features (B, ...) as one row for each image, float32."""
    return features.reshape(len(features), -1).astype(np.float32, copy=False)


def _step(optimizer: MomentumSgd, features: np.ndarray, labels: np.ndarray, rate: float) -> float:
    """Take one step on features (B, D) and labels (B,); return the mean loss."""
    loss, gradient = cross_entropy(optimizer.head.logits(features), labels)
    optimizer.step(gradient.T @ features, gradient.sum(axis=0), rate)
    return loss
