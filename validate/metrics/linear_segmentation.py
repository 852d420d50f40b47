"""Linear segmentation: a 1x1 convolution over frozen patch tokens, trained on masks and scored by mIoU.

Mirrors NeCo's experiments/linear_segmentation/linear_finetune.py (training) and eval_linear.py (the published figure).
Upstream enlarges the tokens and then applies the head. The head is linear and the weights of bilinear interpolation sum
to 1, so here the logits are enlarged instead: the same numbers from classes instead of D channels.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from saccade.validate.metrics.checks import check_enough, check_finite, check_labels, check_shape
from saccade.validate.metrics.linear_head import LinearHead, MomentumSgd, cross_entropy, uniform_head
from saccade.validate.metrics.resize import bilinear_weights, resize_bilinear, resize_nearest
from saccade.validate.metrics.segmentation import IGNORE

# linear_finetune.py and the configs in experiments/linear_segmentation/configs.
EPOCHS = 25
BATCH = 128
RATE = 0.01
RATE_DROP = 0.1
DROP_EVERY = 20  # epochs
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
SEED = 400
CHUNK = 8  # images whose logits are held at once; of a whole batch and ADE20K's classes they would take 773 MB
TRAIN_SIZE = (100, 100)  # masks and predictions in training; the evaluation runs at the masks' own size

Batch = tuple[np.ndarray, np.ndarray]  # tokens (B, gh*gw, D) float32 and masks (B, H, W) integers


def grid_logits(head: LinearHead, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return logits on the patch grid, float32 (B, C, gh, gw), of tokens (B, gh*gw, D)."""
    check_shape("tokens", tokens, (None, grid[0] * grid[1], head.weight.shape[1]))
    check_finite("tokens", tokens)
    logits = head.logits(tokens.astype(np.float32, copy=False))
    return np.ascontiguousarray(logits.transpose(0, 2, 1)).reshape(len(tokens), -1, *grid)


def pixel_logits(head: LinearHead, tokens: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return logits at every pixel, float32 (B, C, *size): bilinear, align_corners False."""
    return resize_bilinear(grid_logits(head, tokens, grid), size)


def predict_pixels(head: LinearHead, tokens: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the class of each pixel, int64 (B, *size), of tokens (B, gh*gw, D); of equal logits the lower class."""
    return np.asarray(pixel_logits(head, tokens, grid, size).argmax(axis=1))


def fit_segmentation_head(
    batches: Callable[[int], Iterable[Batch]],
    grid: tuple[int, int],
    dim: int,
    classes: int,
    seed: int = SEED,
    ignore: int = IGNORE,
    epochs: int = EPOCHS,
    rate: float = RATE,
    report: Callable[[int, float], None] = lambda images, loss: None,
) -> LinearHead:
    """Train a head on batches(epoch), each of tokens (B, gh*gw, dim) and masks; `rate` falls to a tenth every 20 epochs.

    `report` gets each step's number of images and mean loss.
    """
    head = uniform_head(classes, dim, seed)
    optimizer = MomentumSgd(head, MOMENTUM, WEIGHT_DECAY)
    for epoch in range(epochs):
        epoch_rate = rate * RATE_DROP ** (epoch // DROP_EVERY)
        for tokens, masks in batches(epoch):
            report(len(tokens), train_step(optimizer, tokens, masks, grid, epoch_rate, ignore))
    return head


def shuffled_rows(
    images: int, batch: int = BATCH, seed: int = SEED, views: int = 1
) -> Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Return batches(epoch) of image numbers and the number of the view that each is seen in, int64 (batch,) both.

    Numbers ascend, so that a memory-mapped file is read forwards.
    """
    check_enough("train images", images, batch, f"a batch of {batch}")

    def batches(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng((seed, epoch))
        order, seen = random.permutation(images), random.integers(views, size=images)
        for start in range(0, images - batch + 1, batch):
            rows = np.sort(order[start : start + batch])
            yield rows, seen[rows]

    return batches


def train_step(
    optimizer: MomentumSgd, tokens: np.ndarray, masks: np.ndarray, grid: tuple[int, int], rate: float, ignore: int = IGNORE
) -> float:
    """Take one step on tokens (B, gh*gw, D) and masks (B, H, W); return the mean loss over the pixels not ignored."""
    head, classes = optimizer.head, len(optimizer.head.weight)
    check_shape("masks", masks, (len(tokens), None, None))
    check_labels("train masks", masks, classes, ignore)
    labels = resize_nearest(masks, TRAIN_SIZE)
    counted = np.count_nonzero(labels != ignore)
    weight, bias, loss = np.zeros_like(head.weight), np.zeros_like(head.bias), 0.0
    for start in range(0, len(tokens), CHUNK):
        chunk = slice(start, start + CHUNK)
        pixels = np.count_nonzero(labels[chunk] != ignore)
        if not pixels and counted:
            continue
        part, by_weight, by_bias = _gradient(head, tokens[chunk], labels[chunk], grid, ignore)
        share = np.float32(pixels / counted)
        loss, weight, bias = loss + pixels / counted * part, weight + share * by_weight, bias + share * by_bias
    optimizer.step(weight, bias, rate)
    return loss


def _gradient(
    head: LinearHead, tokens: np.ndarray, labels: np.ndarray, grid: tuple[int, int], ignore: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean loss of labels (B, *TRAIN_SIZE) and its gradient to the head's weight and bias."""
    classes, known = len(head.weight), labels.ravel() != ignore
    logits = resize_bilinear(grid_logits(head, tokens, grid), TRAIN_SIZE).transpose(0, 2, 3, 1).reshape(-1, classes)
    gradient = np.zeros_like(logits)
    loss, gradient[known] = cross_entropy(logits[known], labels.ravel()[known])
    by_pixel = gradient.reshape(len(tokens), *TRAIN_SIZE, classes).transpose(0, 3, 1, 2)
    down, across = bilinear_weights(grid[0], TRAIN_SIZE[0]), bilinear_weights(grid[1], TRAIN_SIZE[1])
    by_cell = (down.T @ by_pixel @ across).reshape(len(tokens), classes, -1)  # the enlargement's own gradient
    by_row = by_cell.transpose(1, 0, 2).reshape(classes, -1)
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32, copy=False)
    return loss, by_row @ rows, by_row.sum(axis=1)
