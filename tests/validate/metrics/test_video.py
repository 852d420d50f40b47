"""Labels spread from frame to frame as PyTorch code of the official shape spreads them."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics import video
from saccade.validate.metrics.contours import score_video
from saccade.validate.metrics.neighbours import normalize_rows
from saccade.validate.metrics.video import first_labels, frame_mask, neighbourhood, propagate_labels, propagate_once


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4))
def test_neighbourhood_equals_a_loop_over_patches(rows: int, columns: int, radius: int) -> None:
    near = neighbourhood((rows, columns), radius).reshape(rows, columns, rows, columns)
    for a, b, c, d in np.ndindex(rows, columns, rows, columns):
        assert near[a, b, c, d] == (radius == 0 or (abs(a - c) <= radius and abs(b - d) <= radius))


def spread_by_pytorch(
    target: torch.Tensor, sources: torch.Tensor, labels: torch.Tensor, near: torch.Tensor, top_k: int
) -> torch.Tensor:
    """Return labels (C, N) from sources (T, N, D) and their labels (T, C, N), one dense matrix at a time."""
    likeness = torch.exp(functional.normalize(target, dim=1) @ functional.normalize(sources, dim=2).transpose(1, 2) / 0.1)
    weights = (likeness * near).permute(0, 2, 1).reshape(-1, len(target))  # (sources, targets)
    weights = torch.where(weights < weights.topk(top_k, dim=0).values[-1], 0, weights)
    return labels.permute(1, 0, 2).reshape(labels.shape[1], -1) @ (weights / weights.sum(dim=0))


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
def test_one_step_equals_pytorch_s(context: int, radius: int, top_k: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    near = neighbourhood((4, 5), radius)
    features = random.standard_normal((context + 1, 20, 6)).astype(np.float32)
    labels = random.random((context, 3, 20)).astype(np.float32)
    frames = [(normalize_rows(each), label) for each, label in zip(features[1:], labels, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "BLOCK_VALUES", block)
        found = propagate_once(normalize_rows(features[0]), frames, near, top_k)
    tensors = [torch.from_numpy(each) for each in (features[0], features[1:], labels, near)]
    np.testing.assert_allclose(found, spread_by_pytorch(*tensors, top_k).numpy(), atol=1e-5)


def test_the_context_is_the_first_frame_and_the_last_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).standard_normal((12, 6, 3)).astype(np.float32)
    places = {normalize_rows(frame).tobytes(): place for place, frame in enumerate(frames)}
    contexts = []
    step = video.propagate_once

    def recording(target: np.ndarray, context: list[video.Frame], *rest: object) -> np.ndarray:
        contexts.append([places[seen.tobytes()] for seen, _ in context])
        return step(target, context, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "propagate_once", recording)
    assert len(list(propagate_labels(frames, np.full((2, 2, 3), 0.5, np.float32)))) == 11
    assert contexts[0] == [0]
    assert contexts[3] == [0, 1, 2, 3]
    assert contexts[10] == [0, 4, 5, 6, 7, 8, 9, 10]


def test_a_moving_square_is_followed() -> None:
    grid, patch, side = (12, 16), 4, 4
    random = np.random.default_rng(0)
    texture, ground = random.standard_normal((side, side, 24)), random.standard_normal((*grid, 24))
    features, truth = [], np.zeros((8, grid[0] * patch, grid[1] * patch), np.uint8)
    for number in range(8):
        frame = ground + 0.1 * random.standard_normal(ground.shape)
        frame[4 : 4 + side, 1 + number : 1 + number + side] = 2 * texture
        truth[number, 4 * patch : (4 + side) * patch, (1 + number) * patch : (1 + number + side) * patch] = 1
        features.append(frame.reshape(-1, 24).astype(np.float32))
    labels = propagate_labels(features, first_labels(truth[0], grid))
    masks = np.stack([truth[0], *(frame_mask(soft, patch, truth.shape[1:]) for soft in labels)])
    score = score_video(truth, masks)
    assert score.object_means.min() > 0.85
    still = score_video(truth, np.repeat(truth[:1], 8, axis=0))  # a mask that does not move loses it
    assert still.object_means[0, 0] < 0.4


def test_first_labels_are_one_hot_on_the_grid() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[:4, :8] = 2
    labels = first_labels(mask, (2, 3))
    assert labels.shape == (3, 2, 3)
    assert np.array_equal(labels.sum(axis=0), np.ones((2, 3)))
    assert labels[2].tolist() == [[1, 1, 0], [0, 0, 0]]


def test_each_label_is_stretched_before_the_largest_is_taken() -> None:
    soft = np.array([[[0.9, 0.7]], [[0.0, 0.3]], [[0.0, 0.0]]], np.float32)
    assert frame_mask(soft, 2, (1, 2)).tolist() == [[0, 1]]  # 0.3 is the whole of label 1, 0.7 the least of label 0
    assert frame_mask(soft, 2, (1, 2)).dtype == np.uint8


def test_errors_say_what_is_wrong() -> None:
    first = np.ones((2, 2, 2), np.float32)
    with pytest.raises(SaccadeError, match="video: no frame at all"):
        next(propagate_labels([], first))
    with pytest.raises(SaccadeError, match="patches in context: 4 are too few for the 5 most alike, which needs 5"):
        list(propagate_labels([np.ones((4, 3))] * 2, first))
    frames = [np.ones((4, 3)), np.ones((5, 3))]
    with pytest.raises(SaccadeError, match=r"features of frame 1: shape \(5, 3\); expected \(4, any\)"):
        list(propagate_labels(frames, first))
    with pytest.raises(SaccadeError, match=r"first mask: 4 labels are out of range \(300\); give 0\.\.255"):
        first_labels(np.full((2, 2), 300), (1, 1))
