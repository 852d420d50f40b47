"""The linear probe trains as torch's SGD and cosine schedule do, and takes features as the official heads expect."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics import linear_probe
from saccade.validate.metrics.linear_head import LinearHead, cross_entropy, uniform_head
from saccade.validate.metrics.linear_probe import cosine_rate, evaluate_linear_probe, fit_linear_probe, with_patch_mean


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 99))
def test_cross_entropy_and_its_gradient_equal_pytorch_s(rows: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (5 * random.standard_normal((rows, classes))).astype(np.float32)
    labels = random.integers(0, classes, rows)
    counted = random.random(rows) < 0.7
    counted[0] = True
    tensor = torch.from_numpy(logits).requires_grad_()
    expected = functional.cross_entropy(tensor, torch.from_numpy(np.where(counted, labels, -1)), ignore_index=-1)
    expected.backward()
    loss, gradient = cross_entropy(logits, np.where(counted, labels, 255), counted)
    assert loss == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad, atol=1e-6)


def test_training_equals_pytorch_s_sgd_with_its_cosine_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((40, 6), dtype=np.float32), random.integers(0, 3, 40)
    zero = LinearHead(np.zeros((3, 6), np.float32), np.zeros(3, np.float32))
    monkeypatch.setattr(linear_probe, "normal_head", lambda *_: zero)
    head = fit_linear_probe([features], labels, 3, seed=5, epochs=7, batch=16, rate=2.0)

    layer = torch.nn.Linear(6, 3)
    for parameter in layer.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), 2.0 * 16 / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0)
    order = np.random.default_rng(5)
    for _ in range(7):
        shuffled = order.permutation(40)
        for start in range(0, 40, 16):
            rows = shuffled[start : start + 16]
            loss = functional.cross_entropy(layer(torch.from_numpy(features[rows])), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    np.testing.assert_allclose(head.weight, layer.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(head.bias, layer.bias.detach(), atol=1e-5)


def test_the_rate_starts_scaled_by_the_batch_and_ends_near_zero() -> None:
    assert cosine_rate(0, 100, 0.001, 1500) == pytest.approx(0.001 * 1500 / 256)
    assert cosine_rate(50, 100, 0.001, 256) == pytest.approx(0.0005)
    assert 0 < cosine_rate(99, 100, 0.001, 256) < 1e-6


def test_several_views_are_trained_on_in_turn() -> None:
    labels = np.repeat([0, 1], 10)
    useless, useful = np.zeros((20, 2), np.float32), np.eye(2, dtype=np.float32)[labels]
    losses: list[float] = []
    fit_linear_probe(
        [useless, useful], labels, 2, seed=0, epochs=3, rate=10, batch=20, report=lambda _, loss: losses.append(loss)
    )
    assert losses[0] == pytest.approx(np.log(2), rel=1e-3)
    assert losses[1] != pytest.approx(np.log(2), rel=1e-3)
    assert losses[2] == pytest.approx(np.log(2), rel=1e-3)  # the useless view again: nothing to tell the classes by


def test_digits_are_classified_far_above_chance() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    features, labels = (digits.data / 16).astype(np.float32), digits.target
    losses: list[float] = []
    head = fit_linear_probe(
        [features[:1200]], labels[:1200], 10, seed=0, rate=0.3, batch=200, report=lambda _, loss: losses.append(loss)
    )
    result = evaluate_linear_probe(head, features[1200:], labels[1200:])
    assert result.top1 > 85  # chance is 10
    assert result.top5 > 97
    assert len(losses) == 100 * 6  # steps
    assert losses[-1] < losses[0] / 3


def test_cls_of_several_blocks_are_joined_without_a_copy_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    blocks, labels = random.standard_normal((30, 4, 2)).astype(np.float32), random.integers(0, 3, 30)
    part = blocks[:, -3:]  # of a file that holds four
    monkeypatch.setattr(linear_probe, "BATCH", 7)
    heads = [fit_linear_probe([each], labels, 3, seed=0, epochs=2, batch=9) for each in (part, part.reshape(30, 6))]
    assert np.array_equal(heads[0].weight, heads[1].weight)
    results = [evaluate_linear_probe(heads[0], each, labels) for each in (part, part.reshape(30, 6))]
    assert np.array_equal(results[0].prediction, results[1].prediction)
    assert np.array_equal(results[0].prediction, heads[0].logits(part.reshape(30, 6)).argmax(axis=1))


def test_a_training_that_diverges_is_an_error_and_no_hit() -> None:
    features, labels = 1e15 * np.eye(4, dtype=np.float32), np.arange(4)
    with pytest.raises(SaccadeError, match="training has diverged, logits are not finite; give a smaller --rate"):
        fit_linear_probe([features], labels, 4, seed=0, rate=1e10)
    nowhere = LinearHead(np.full((4, 4), np.nan, np.float32), np.zeros(4, np.float32))
    with pytest.raises(SaccadeError, match="training has diverged"):
        evaluate_linear_probe(nowhere, features, labels)


def test_labels_may_have_gaps() -> None:
    features, labels = np.eye(4, dtype=np.float32), np.array([0, 2, 2, 5])
    head = fit_linear_probe([features[[0, 1, 2, 3, 0, 1]]], labels[[0, 1, 2, 3, 0, 1]], 6, seed=0, rate=300, batch=6)
    assert evaluate_linear_probe(head, features, labels).top1 == 100


def test_a_patch_mean_is_interleaved_as_upstream_stacks_it() -> None:
    cls, mean = np.array([[[1.0, 2.0, 3.0]]]), np.array([[10.0, 20.0, 30.0]])
    official = torch.cat((torch.from_numpy(cls[0])[..., None], torch.from_numpy(mean)[..., None]), dim=-1).reshape(1, -1)
    joined = with_patch_mean(cls[0], np.stack([mean - 1, mean + 1], axis=1)).reshape(1, -1)
    assert joined.tolist() == official.tolist() == [[1, 10, 2, 20, 3, 30]]


def test_heads_of_convolutions_start_within_pytorch_s_bounds() -> None:
    head, layer = uniform_head(50, 16, seed=0), torch.nn.Conv2d(16, 50, 1)
    for ours, theirs in ((head.weight, layer.weight), (head.bias, layer.bias)):
        assert ours.std() == pytest.approx(float(theirs.detach().std()), rel=0.25)
        assert np.abs(ours).max() <= 0.25


def test_errors_say_what_is_wrong() -> None:
    features, labels = np.ones((4, 2), np.float32), np.array([0, 1, 2, 1])
    with pytest.raises(SaccadeError, match=r"train labels: 1 label is out of range \(2\); give 0\.\.1"):
        fit_linear_probe([features], labels, 2, seed=0)
    with pytest.raises(SaccadeError, match="train images: 4 are too few for 5 classes"):
        fit_linear_probe([features], labels, 5, seed=0)
    with pytest.raises(SaccadeError, match=r"train features: shape \(3, 2\); expected \(4, 2\)"):
        fit_linear_probe([features, features[:3]], labels, 3, seed=0)
    head = LinearHead(np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    with pytest.raises(SaccadeError, match=r"test features: shape \(4, 1\); expected \(4, 2\)"):
        evaluate_linear_probe(head, features[:, :1], labels)
    with pytest.raises(SaccadeError, match="test images: 0 are too few for a linear probe"):
        evaluate_linear_probe(head, features[:0], labels[:0])
