"""Attention masks hold the mass that was asked for, as PyTorch code of the official shape finds it."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.errors import SaccadeError
from saccade.validate.metrics.attention import mask_jaccard, mass_mask, noisy_foreground


def attention_of(seed: int, *shape: int) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(np.exp(2 * logits) / np.exp(2 * logits).sum(axis=-1, keepdims=True), np.float32)


@given(st.integers(1, 60), st.floats(0.05, 1), st.integers(0, 99))
def test_the_fewest_strongest_patches_that_hold_the_mass_are_kept(patches: int, mass: float, seed: int) -> None:
    (attention,) = attention_of(seed, 1, patches)
    kept = mass_mask(attention, mass)
    shares = attention.astype(np.float64) / attention.sum(dtype=np.float64)
    assert kept.any()
    assert shares[kept].sum() >= mass - 1e-9
    assert shares[kept].sum() - shares[kept].min() <= mass + 1e-9  # one fewer would not hold it
    assert kept.all() or shares[kept].min() >= shares[~kept].max()


def test_each_head_has_its_own_mask() -> None:
    attention = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    assert mass_mask(attention, 0.6).tolist() == [[False, False, True], [True, False, True]]


def test_jaccard_of_masks_with_a_truth() -> None:
    masks = np.array([[[True, False]], [[True, True]], [[False, False]]])
    truth = np.array([[True, True, False, False]])
    assert mask_jaccard(masks, truth).tolist() == [1, 0.5, 0]
    assert mask_jaccard(masks[2:], np.zeros((1, 4), bool)).tolist() == [1]


def blurred(attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return what a 7 x 7 Gaussian of sigma 0.6 with reflected borders makes of the mean over heads."""
    places = torch.linspace(-3, 3, 7, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (places / 0.6) ** 2)
    kernel = kernel / kernel.sum()
    maps = torch.from_numpy(attention).double().mean(dim=1).reshape(-1, 1, *grid)
    padded = functional.pad(maps, (3, 3, 3, 3), mode="reflect")
    return functional.conv2d(padded, (kernel[:, None] * kernel)[None, None]).numpy()[:, 0]


def flood(mask: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    found, waiting = set(), [start]
    while waiting:
        row, column = waiting.pop()
        if (row, column) in found or not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]) or not mask[row, column]:
            continue
        found.add((row, column))
        waiting += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return found


@given(st.integers(4, 9), st.integers(4, 9), st.integers(0, 30))
def test_the_noisy_foreground_is_blurred_cut_and_freed_of_specks(height: int, width: int, seed: int) -> None:
    attention = attention_of(seed, 2, 3, height * width)
    found = noisy_foreground(attention, (height, width))
    for maps, mask in zip(blurred(attention, (height, width)), found, strict=True):
        kept = mass_mask(maps.ravel(), 0.65).reshape(height, width)
        expected = np.zeros_like(kept)
        for row, column in np.argwhere(kept):
            expected[row, column] = len(flood(kept, (int(row), int(column)))) >= 3
        assert np.array_equal(mask, expected)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(SaccadeError, match=r"attention: a mass of 60 is out of range; give a share above 0 and up to 1"):
        mass_mask(np.ones(3), 60)
    with pytest.raises(SaccadeError, match="attention: a row is negative or sums to nothing"):
        mass_mask(np.array([[1.0, 1.0], [0.0, 0.0]]))
