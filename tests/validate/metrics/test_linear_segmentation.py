"""The segmentation head: scores as NeCo's on the golden maps, training as PyTorch's on enlarged tokens."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics import linear_segmentation
from saccade.validate.metrics.linear_head import LinearHead, MomentumSgd
from saccade.validate.metrics.linear_segmentation import (
    evaluate_segmentation,
    fit_segmentation_head,
    pixel_logits,
    shuffled_batches,
    shuffled_rows,
    train_step,
)
from saccade.validate.metrics.segmentation import class_counts, confusion

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_linear_segmentation.npz")
CLASSES = int(GOLDEN["num_classes"])
HEAD = LinearHead(GOLDEN["head_weight"], GOLDEN["head_bias"])
# name of the golden result -> (truth, prediction, ignored label)
CASES = {
    "ignore255": ("ground_truth", "prediction", 255),
    "without3": ("ground_truth", "prediction_without3", 255),
    "ignore0": ("ground_truth_zero", "prediction", 0),
}


def check_against_golden(matrix: np.ndarray, case: str) -> None:
    counts = class_counts(matrix)
    assert np.array_equal(counts.true_positives, GOLDEN[f"{case}_tp"])
    assert np.array_equal(counts.false_positives, GOLDEN[f"{case}_fp"])
    assert np.array_equal(counts.false_negatives, GOLDEN[f"{case}_fn"])
    assert counts.miou == pytest.approx(float(GOLDEN[f"{case}_miou"]), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_counts_and_miou_equal_the_official_ones(case: str) -> None:
    truth, prediction, ignore = CASES[case]
    check_against_golden(confusion(GOLDEN[truth], GOLDEN[prediction], CLASSES, ignore=ignore), case)


def test_the_head_on_the_grid_equals_the_official_head_on_enlarged_tokens() -> None:
    logits = pixel_logits(HEAD, GOLDEN["tokens"], (7, 7), (20, 20))
    np.testing.assert_allclose(logits, GOLDEN["tokens_logits"], atol=1e-6)
    assert np.array_equal(logits.argmax(axis=1), GOLDEN["tokens_prediction"])


def test_evaluation_of_tokens_equals_the_official_one() -> None:
    tokens, truth = GOLDEN["tokens"], GOLDEN["ground_truth"]
    matrices = evaluate_segmentation(HEAD, [(tokens[:1], truth[:1]), (tokens[1:], truth[1:])], (7, 7))
    assert matrices.shape == (2, CLASSES, CLASSES)
    check_against_golden(matrices, "tokens")


def test_another_ignored_label_is_left_out_of_the_evaluation() -> None:
    tokens, truth = GOLDEN["tokens"], GOLDEN["ground_truth_zero"]
    matrices = evaluate_segmentation(HEAD, [(tokens, truth)], (7, 7), ignore=0)
    assert np.array_equal(matrices.sum(axis=0), confusion(truth, GOLDEN["tokens_prediction"], CLASSES, ignore=0))
    assert not matrices[:, 0].any()


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


def test_a_trained_head_segments_what_it_was_shown() -> None:
    tokens, masks = halves(6)
    losses: list[float] = []
    batches = shuffled_batches(tokens, masks, batch=2)
    head = fit_segmentation_head(batches, (6, 6), 8, 2, epochs=10, report=lambda _, loss: losses.append(loss))
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    assert class_counts(evaluate_segmentation(head, [(tokens, masks)], (6, 6))).miou > 0.9


def test_the_learning_rate_falls_to_a_tenth_after_twenty_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = MomentumSgd.step
    monkeypatch.setattr(MomentumSgd, "step", lambda *arguments: (rates.append(arguments[-1]), step(*arguments))[1])
    tokens, masks = halves(1)
    fit_segmentation_head(shuffled_batches(tokens, masks, batch=1), (6, 6), 8, 2)
    np.testing.assert_allclose(rates, [0.01] * 20 + [0.001] * 5)


def test_batches_are_full_shuffled_anew_and_the_same_for_one_seed() -> None:
    tokens = np.arange(7, dtype=np.float32)[:, None, None]
    batches = shuffled_batches(tokens, np.arange(7)[:, None, None], batch=3)
    epochs = [[part[:, 0, 0].tolist() for part, _ in batches(epoch)] for epoch in (0, 1, 0)]
    assert [len(part) for part in epochs[0]] == [3, 3]
    assert epochs[0] == epochs[2] != epochs[1]
    assert all(part[:, 0, 0].tolist() == mask[:, 0, 0].tolist() for part, mask in batches(0))


def test_every_epoch_takes_each_image_once_in_a_view_by_chance() -> None:
    batches = shuffled_rows(6, batch=2, views=2)
    seen = set()
    for epoch in range(20):
        pairs = [list(zip(rows.tolist(), views.tolist(), strict=True)) for rows, views in batches(epoch)]
        assert sorted(image for batch in pairs for image, _ in batch) == list(range(6))
        assert all(batch == sorted(batch) for batch in pairs)
        seen.update(pair for batch in pairs for pair in batch)
    assert seen == {(image, view) for image in range(6) for view in (0, 1)}


def test_errors_say_what_is_wrong() -> None:
    tokens, masks = halves(2)
    with pytest.raises(SaccadeError, match="train images: 2 are too few for a batch of 128, which needs 128"):
        shuffled_batches(tokens, masks)
    with pytest.raises(SaccadeError, match=r"masks: shape \(1, 30, 30\); expected \(2, any, any\)"):
        shuffled_batches(tokens, masks[:1], batch=1)
    with pytest.raises(SaccadeError, match=r"train masks: .* out of range \(1\); give 0\.\.0 or 255 \(ignored\)"):
        fit_segmentation_head(shuffled_batches(tokens, masks, batch=1), (6, 6), 8, 1)
    with pytest.raises(SaccadeError, match="every label of a batch is ignored"):
        fit_segmentation_head(shuffled_batches(tokens, np.full_like(masks, 255), batch=1), (6, 6), 8, 2)
    with pytest.raises(SaccadeError, match="batches of epoch 0: 0 are too few for training"):
        fit_segmentation_head(lambda _: [], (6, 6), 8, 2)
    with pytest.raises(SaccadeError, match=r"tokens: shape \(2, 36, 8\); expected \(any, 49, 12\)"):
        evaluate_segmentation(HEAD, [(tokens, masks)], (7, 7))
    with pytest.raises(SaccadeError, match="validation batches: 0 are too few"):
        evaluate_segmentation(HEAD, [], (7, 7))
    broken = GOLDEN["tokens"].copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(SaccadeError, match="tokens: 1 of 98 rows holds NaN or infinity"):
        pixel_logits(HEAD, broken, (7, 7), (20, 20))
