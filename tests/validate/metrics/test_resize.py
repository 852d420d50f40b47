"""Maps are resized as PyTorch's interpolate resizes them."""
from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from saccade.validate.metrics.resize import bilinear_weights, resize_bilinear, resize_nearest

SIDES = st.integers(1, 120)


@given(SIDES, SIDES, SIDES, SIDES)
def test_nearest_takes_the_cells_that_pytorch_takes(height: int, width: int, rows: int, columns: int) -> None:
    cells = np.arange(height * width).reshape(1, height, width)
    expected = functional.interpolate(torch.from_numpy(cells)[None].float(), size=(rows, columns), mode="nearest")[0]
    assert np.array_equal(resize_nearest(cells, (rows, columns)), expected.numpy())


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_bilinear_equals_pytorch_s(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((2, 3, height, width), dtype=np.float32)
    expected = functional.interpolate(torch.from_numpy(maps), size=(rows, columns), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize_bilinear(maps, (rows, columns)), expected.numpy(), atol=1e-6)


@given(SIDES, SIDES)
def test_bilinear_weights_are_pytorch_s_to_the_bit(inputs: int, outputs: int) -> None:
    cells = torch.eye(inputs)[:, None, None, :]
    expected = functional.interpolate(cells, size=(1, outputs), mode="bilinear", align_corners=False)[:, 0, 0].T
    assert np.array_equal(bilinear_weights(inputs, outputs), expected.numpy())


@given(SIDES, SIDES)
def test_every_enlarged_place_is_a_mean_of_cells(inputs: int, outputs: int) -> None:
    weights = bilinear_weights(inputs, outputs)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights >= 0).all()
    assert (np.count_nonzero(weights, axis=1) <= 2).all()


@given(SIDES, SIDES, st.sampled_from([1 / 2, 1 / 2**0.5, 0.3, 1.7]), st.integers(0, 9))
def test_bilinear_by_a_factor_equals_pytorch_s(height: int, width: int, factor: float, seed: int) -> None:
    size = (int(height * factor), int(width * factor))
    if min(size) == 0:
        return
    maps = np.random.default_rng(seed).standard_normal((2, height, width), dtype=np.float32)
    expected = functional.interpolate(
        torch.from_numpy(maps)[None], scale_factor=factor, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resize_bilinear(maps, size, factor), expected[0].numpy(), atol=1e-5)
