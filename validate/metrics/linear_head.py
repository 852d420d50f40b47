"""One linear layer and its training by SGD, in NumPy: the gradient of softmax regression is one subtraction.

Equal to torch.nn.Linear under torch.optim.SGD and CrossEntropyLoss, which a test holds it against; so no task needs torch.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError


@dataclass
class LinearHead:
    """Classes from features: weight (C, D) and bias (C,), float32, changed in place by training."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 logits (..., C) of features (..., D).

        Raises SaccadeError where they are not finite, since a true label that is NaN would come before all others.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            logits = np.asarray(features @ self.weight.T + self.bias)
            total = logits.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise SaccadeError("linear layer: its training has diverged, logits are not finite; give a smaller --rate")
        return logits


def normal_head(classes: int, dim: int, seed: int, deviation: float) -> LinearHead:
    """Return a head of normal weights and zero bias, as the linear probe starts."""
    weight = np.random.default_rng(seed).normal(0, deviation, (classes, dim))
    return LinearHead(weight.astype(np.float32), np.zeros(classes, np.float32))


def uniform_head(classes: int, dim: int, seed: int) -> LinearHead:
    """Return a head as PyTorch makes a linear layer or a 1x1 convolution: uniform within 1 / sqrt(dim), bias included."""
    random, bound = np.random.default_rng(seed), 1 / dim**0.5
    weight = random.uniform(-bound, bound, (classes, dim))
    return LinearHead(weight.astype(np.float32), random.uniform(-bound, bound, classes).astype(np.float32))


class MomentumSgd:
    """Gradient descent with momentum and weight decay on a head, in PyTorch's order of operations."""

    def __init__(self, head: LinearHead, momentum: float, weight_decay: float) -> None:
        self.head = head
        self._momentum, self._weight_decay = np.float32(momentum), np.float32(weight_decay)
        self._velocity = LinearHead(np.zeros_like(head.weight), np.zeros_like(head.bias))

    def step(self, weight_gradient: np.ndarray, bias_gradient: np.ndarray, rate: float) -> None:
        """Move the head; its bias decays as its weight does."""
        self._move(self.head.weight, weight_gradient, self._velocity.weight, rate)
        self._move(self.head.bias, bias_gradient, self._velocity.bias, rate)

    def _move(self, values: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, rate: float) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # the next logits say so
            velocity *= self._momentum
            velocity += gradient + self._weight_decay * values
            values -= np.float32(rate) * velocity


def cross_entropy(logits: np.ndarray, labels: np.ndarray, counted: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Return the mean loss over the rows and its gradient to the logits, float32 (N, C).

    labels: integers (N,). counted: bool (N,); the other rows (ignored pixels) have no loss and no gradient.
    """
    rows = np.arange(len(labels)) if counted is None else np.flatnonzero(counted)
    if not len(rows):
        raise SaccadeError("training: every label of a batch is ignored; give larger batches or look at the masks")
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = exponent / exponent.sum(axis=1, keepdims=True)
    loss = -np.mean(np.log(np.maximum(gradient[rows, labels[rows]], np.finfo(np.float32).tiny)), dtype=np.float64)
    gradient[rows, labels[rows]] -= 1
    if counted is not None:
        gradient[~counted] = 0
    return float(loss), np.asarray(gradient / np.float32(len(rows)))
