"""A backbone's position table is resized as PyTorch's own code does it, by each family's rule."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from saccade.bundle import PositionRule
from saccade.runtime.positions import positions_on, resize_table
from saccade.runtime.reference import interpolate_positions

# On tables with the deviation of trained ones, 0.2. Measured: 1.0e-6 by scale factor, 0.9e-6 with antialias.
BOUND = 2e-6
RULES: tuple[PositionRule, ...] = ("scale-factor", "size-antialias")
GRIDS = [(32, 32), (16, 16), (74, 74), (16, 24), (60, 9), (37, 36), (36, 37), (2, 2), (100, 40), (1, 30)]


def random_table(rows: int, columns: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.float32(0.2) * np.random.default_rng(seed).standard_normal((rows, columns, width), dtype=np.float32)


def pytorchs(table: np.ndarray, grid: tuple[int, int], rule: PositionRule) -> np.ndarray:
    """Resize as the official codes write it: DINO and NeCo by scale factor, torch.hub's models with registers by size."""
    image = torch.from_numpy(table).permute(2, 0, 1).unsqueeze(0)
    if rule == "scale-factor":
        factors = tuple((extent + 0.1) / base for extent, base in zip(grid, table.shape[:2], strict=True))
        resized = F.interpolate(image, scale_factor=factors, mode="bicubic")
    else:
        resized = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def largest_difference(table: np.ndarray, grid: tuple[int, int], rule: PositionRule) -> float:
    ours, theirs = resize_table(table, grid, rule), pytorchs(table, grid, rule)
    assert (ours.dtype, ours.shape) == (np.float32, theirs.shape)
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", [37, 28, 14, 7])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_a_table_is_resized_as_pytorch_does(rule: PositionRule, base: int, grid: tuple[int, int]) -> None:
    difference = largest_difference(random_table(base, base), grid, rule)
    assert difference < BOUND, difference


# From two columns up: with one column PyTorch 2.13 gives every row of an antialiased resize the values of the first.
@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(2, 90), st.sampled_from(RULES))
def test_any_size_is_resized_as_pytorch_does(rows: int, columns: int, high: int, wide: int, rule: PositionRule) -> None:
    difference = largest_difference(random_table(rows, columns), (high, wide), rule)
    assert difference < BOUND, difference


@pytest.mark.parametrize("rule", RULES)
def test_the_rows_and_columns_of_a_grid_are_not_swapped(rule: PositionRule) -> None:
    table = random_table(14, 14)
    turned = resize_table(table.transpose(1, 0, 2), (30, 20), rule).transpose(1, 0, 2)
    np.testing.assert_allclose(resize_table(table, (20, 30), rule), turned, atol=BOUND)


@pytest.mark.parametrize("rule", RULES)
def test_the_tables_own_grid_gets_the_table_itself(rule: PositionRule) -> None:
    table = random_table(10, 37).reshape(370, 8)
    assert positions_on(table, (3, 123), (3, 123), rule) is table


@pytest.mark.parametrize("rule", RULES)
def test_the_row_of_the_cls_token_comes_first_and_is_not_resized(rule: PositionRule) -> None:
    table = random_table(1, 1 + 14 * 14)[0]
    found = positions_on(table, (14, 14), (20, 30), rule)
    assert found.shape == (1 + 600, 8)
    np.testing.assert_array_equal(found[0], table[0])
    np.testing.assert_array_equal(found[1:], resize_table(table[1:].reshape(14, 14, 8), (20, 30), rule).reshape(600, 8))


def test_as_many_cells_in_another_shape_are_resized() -> None:
    """DINO compares the number of patches and whether the image is square; 7x28 has the 196 cells of 14x14."""
    table = random_table(1, 1 + 14 * 14)[0]
    found = positions_on(table, (14, 14), (7, 28), "scale-factor")
    assert np.abs(found - table).max() > 0.1


@pytest.mark.parametrize("grid", [(32, 32), (74, 74), (24, 40)])
def test_the_rules_differ_from_each_other_and_from_lookwheres(grid: tuple[int, int]) -> None:
    """By far more than a tolerance: a wrong rule is a wrong model."""
    table = random_table(37, 37)
    found = [*(resize_table(table, grid, rule) for rule in RULES), interpolate_positions(table, grid)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[first] - found[second]).max() > 0.02
