"""Patches take the labels of their neighbours as a plain loop does, and rare classes fill a bounded memory first."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics.dense_nn import Memory, build_memory, class_shares, patch_labels, predict_masks, sample_patches
from saccade.validate.metrics.overcluster import score_clusters


def test_labels_of_a_patch_are_its_pixels_shares_and_255_counts_as_class_0() -> None:
    masks = np.array([[[0, 1, 2, 2], [1, 1, 255, 2]]])
    np.testing.assert_allclose(patch_labels(masks, (1, 2), 3)[0], [[0.25, 0.75, 0], [0.25, 0, 0.75]])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_labels_equal_a_loop_over_patches(rows: int, columns: int, patch: int, seed: int) -> None:
    masks = np.random.default_rng(seed).integers(0, 4, (2, rows * patch, columns * patch)).astype(np.uint8)
    found = patch_labels(masks, (rows, columns), 4).reshape(2, rows, columns, 4)
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                pixels = masks[image, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                shares = [np.mean(pixels == label) for label in range(4)]
                np.testing.assert_allclose(found[image, row, column], shares, rtol=1e-6)


@given(st.integers(1, 10), st.integers(0, 99))
def test_class_shares_equal_pytorch_s_cross_attention_over_all_neighbours(k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.standard_normal((2, 5, 8), dtype=np.float32)
    keys = random.standard_normal((10, 8), dtype=np.float32)
    labels = random.dirichlet(np.ones(3), 10).astype(np.float32)
    memory = Memory(keys / np.linalg.norm(keys, axis=1, keepdims=True), labels)
    cosines = functional.normalize(torch.from_numpy(tokens), dim=-1) @ torch.from_numpy(memory.features).T
    best, rows = cosines.topk(k)
    expected = (functional.softmax(best / 0.02, dim=-1)[..., None] * torch.from_numpy(labels)[rows]).sum(dim=2)
    np.testing.assert_allclose(class_shares(tokens, memory, neighbours=k), expected.numpy(), atol=2e-5)


def test_masks_are_enlarged_shares() -> None:
    shares = np.random.default_rng(0).random((2, 6, 3), dtype=np.float32)
    maps = torch.from_numpy(shares).transpose(1, 2).reshape(2, 3, 2, 3)
    expected = functional.interpolate(maps, size=(11, 16), mode="bilinear").argmax(dim=1)
    assert np.array_equal(predict_masks(shares, (2, 3), (11, 16)), expected.numpy())


def test_rare_classes_fill_a_bounded_memory_first() -> None:
    labels = np.zeros((100, 3), np.float32)
    labels[:, 0] = 1
    labels[7] = [0, 0, 1]  # the only patch of class 2: score below 1, where class 0 has up to 99
    random = np.random.default_rng(0)
    assert all(7 in sample_patches(labels, 10, random) for _ in range(50))
    assert len({tuple(sample_patches(labels, 10, random)) for _ in range(5)}) == 5  # noise chooses among the common


def scene(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens (images, 16, 8) that point along their class, and masks of 16 x 16 pixels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (images, 4, 4))
    tokens = 5 * np.eye(3, 8)[labels] + 0.5 * random.standard_normal((images, 4, 4, 8))
    return tokens.reshape(images, 16, 8).astype(np.float32), labels.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize(("size", "rows"), [(1024, 96), (40, 36)])
def test_a_memory_segments_images_alike(size: int, rows: int) -> None:
    tokens, masks = scene(6, 0)
    memory = build_memory([(tokens[:4], masks[:4]), (tokens[4:], masks[4:])], 6, (4, 4), 3, seed=0, size=size)
    assert memory.features.shape == (rows, 8)
    np.testing.assert_allclose(np.linalg.norm(memory.features, axis=1), 1, rtol=1e-5)
    tokens, masks = scene(3, 1)
    prediction = predict_masks(class_shares(tokens, memory, neighbours=5), (4, 4), (16, 16))
    assert np.array_equal(prediction[:, 1::4, 1::4], masks[:, 1::4, 1::4])  # near the middle of each patch
    assert score_clusters(masks, prediction, 3, 3).total.miou > 0.7


def test_errors_say_what_is_wrong() -> None:
    tokens, masks = scene(1, 0)
    with pytest.raises(SaccadeError, match="masks of 16x16 pixels do not divide into 3x3 patches; resize them"):
        patch_labels(masks, (3, 3), 3)
    with pytest.raises(SaccadeError, match=r"train masks: .* out of range \(2\); give 0\.\.1 or 255"):
        patch_labels(np.full_like(masks, 2), (4, 4), 2)
    with pytest.raises(SaccadeError, match=r"train tokens: shape \(1, 16, 8\); expected \(1, 4, any\)"):
        build_memory([(tokens, masks)], 1, (2, 2), 3, seed=0)
    with pytest.raises(SaccadeError, match="train images: 0 are too few for a memory"):
        build_memory([], 1, (2, 2), 3, seed=0)
    memory = build_memory([(tokens, masks)], 1, (4, 4), 3, seed=0)
    with pytest.raises(SaccadeError, match="memory rows: 16 are too few for 30 neighbours"):
        class_shares(tokens, memory)
