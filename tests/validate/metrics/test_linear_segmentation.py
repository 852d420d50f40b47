"""The segmentation head: predictions as NeCo's on the golden tokens, training as PyTorch's on enlarged ones."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics import linear_segmentation
from saccade.validate.metrics.linear_head import LinearHead, MomentumSgd
from saccade.validate.metrics.linear_segmentation import (
    Batch,
    fit_segmentation_head,
    pixel_logits,
    predict_pixels,
    shuffled_rows,
    train_step,
)
from saccade.validate.metrics.segmentation import ClassCounts, image_counts

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_linear_segmentation.npz")
HEAD = LinearHead(GOLDEN["head_weight"], GOLDEN["head_bias"])


def test_the_head_on_the_grid_equals_the_official_head_on_enlarged_tokens() -> None:
    logits = pixel_logits(HEAD, GOLDEN["tokens"], (7, 7), (20, 20))
    np.testing.assert_allclose(logits, GOLDEN["tokens_logits"], atol=1e-6)
    assert np.array_equal(predict_pixels(HEAD, GOLDEN["tokens"], (7, 7), (20, 20)), GOLDEN["tokens_prediction"])


@pytest.mark.parametrize("ignore", [255, 0])
def test_training_steps_equal_pytorch_s_on_enlarged_tokens(ignore: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_segmentation, "CHUNK", 2)  # so that three images are two chunks of unequal size
    random = np.random.default_rng(0)
    tokens = random.standard_normal((3, 3, 24, 6), dtype=np.float32)  # steps, images, 4x6 patches
    masks = random.integers(0, 5, (3, 3, 40, 56))
    masks[masks == 4] = ignore
    masks[1, 2] = ignore  # a chunk without a pixel that counts
    head = LinearHead(random.standard_normal((4, 6), dtype=np.float32), random.standard_normal(4, dtype=np.float32))

    layer = torch.nn.Conv2d(6, 4, 1)
    layer.weight.data = torch.from_numpy(head.weight.copy())[..., None, None]
    layer.bias.data = torch.from_numpy(head.bias.copy())
    official = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    ours = MomentumSgd(head, 0.9, 1e-4)
    for batch, mask in zip(tokens, masks, strict=True):
        maps = torch.from_numpy(batch).transpose(1, 2).reshape(3, 6, 4, 6)
        large = functional.interpolate(maps, size=(100, 100), mode="bilinear")
        labels = functional.interpolate(torch.from_numpy(mask)[:, None].float(), size=(100, 100)).long()[:, 0]
        loss = functional.cross_entropy(layer(large), labels, ignore_index=ignore)
        official.zero_grad()
        loss.backward()
        official.step()
        assert train_step(ours, batch, mask, (4, 6), 0.05, ignore) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(head.weight, layer.weight.detach()[..., 0, 0], atol=1e-5)
    np.testing.assert_allclose(head.bias, layer.bias.detach(), atol=1e-5)


def halves(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens that tell left from right, where the right half's label is 1 and a stripe is ignored."""
    random = np.random.default_rng(1)
    labels = np.zeros((images, 6, 6), int)
    labels[:, :, 3:] = 1
    directions = np.eye(2, 8) * 3
    tokens = directions[labels] + 0.3 * random.standard_normal((images, 6, 6, 8))
    masks = labels.repeat(5, axis=1).repeat(5, axis=2)
    masks[:, :2] = 255
    return tokens.reshape(images, 36, 8).astype(np.float32), masks


def all_at_once(tokens: np.ndarray, masks: np.ndarray) -> Callable[[int], list[Batch]]:
    return lambda epoch: [(tokens, masks)]


def test_a_trained_head_segments_what_it_was_shown() -> None:
    tokens, masks = halves(6)
    steps: list[tuple[int, float]] = []
    halved = [(tokens[:3], masks[:3]), (tokens[3:], masks[3:])]
    head = fit_segmentation_head(lambda _: halved, (6, 6), 8, 2, epochs=10, report=lambda *step: steps.append(step))
    assert [images for images, _ in steps] == [3] * 20
    assert steps[-1][1] < steps[0][1] / 2
    assert ClassCounts.of_images(image_counts(masks, predict_pixels(head, tokens, (6, 6), (30, 30)), 2)).miou > 0.9


def test_the_learning_rate_falls_to_a_tenth_after_twenty_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = MomentumSgd.step
    monkeypatch.setattr(MomentumSgd, "step", lambda *arguments: (rates.append(arguments[-1]), step(*arguments))[1])
    fit_segmentation_head(all_at_once(*halves(1)), (6, 6), 8, 2)
    np.testing.assert_allclose(rates, [0.01] * 20 + [0.001] * 5)


def test_batches_are_full_shuffled_anew_and_the_same_for_one_seed() -> None:
    batches = shuffled_rows(7, batch=3)
    epochs = [[rows.tolist() for rows, _ in batches(epoch)] for epoch in (0, 1, 0)]
    assert [len(rows) for rows in epochs[0]] == [3, 3]
    assert epochs[0] == epochs[2] != epochs[1]


def test_every_epoch_takes_each_image_once_in_a_view_by_chance() -> None:
    batches = shuffled_rows(6, batch=2, views=2)
    seen = set()
    for epoch in range(20):
        pairs = [list(zip(rows.tolist(), views.tolist(), strict=True)) for rows, views in batches(epoch)]
        assert sorted(image for batch in pairs for image, _ in batch) == list(range(6))
        assert all(batch == sorted(batch) for batch in pairs)
        seen.update(pair for batch in pairs for pair in batch)
    assert seen == {(image, view) for image in range(6) for view in (0, 1)}


def test_a_training_that_diverges_is_an_error() -> None:
    tokens, masks = halves(2)
    with pytest.raises(SaccadeError, match="training has diverged, logits are not finite; give a smaller --rate"):
        fit_segmentation_head(all_at_once(1e18 * tokens, masks), (6, 6), 8, 2, rate=1e5)


def test_errors_say_what_is_wrong() -> None:
    tokens, masks = halves(2)
    with pytest.raises(SaccadeError, match="train images: 2 are too few for a batch of 128, which needs 128"):
        shuffled_rows(2)
    with pytest.raises(SaccadeError, match=r"masks: shape \(1, 30, 30\); expected \(2, any, any\)"):
        fit_segmentation_head(all_at_once(tokens, masks[:1]), (6, 6), 8, 2)
    with pytest.raises(SaccadeError, match=r"train masks: .* out of range \(1\); give 0\.\.0 or 255 \(ignored\)"):
        fit_segmentation_head(all_at_once(tokens, masks), (6, 6), 8, 1)
    with pytest.raises(SaccadeError, match="every label of a batch is ignored"):
        fit_segmentation_head(all_at_once(tokens, np.full_like(masks, 255)), (6, 6), 8, 2)
    with pytest.raises(SaccadeError, match=r"tokens: shape \(2, 36, 8\); expected \(any, 49, 12\)"):
        predict_pixels(HEAD, tokens, (7, 7), (30, 30))
    broken = GOLDEN["tokens"].copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(SaccadeError, match="tokens: 1 of 98 rows holds NaN or infinity"):
        pixel_logits(HEAD, broken, (7, 7), (20, 20))
