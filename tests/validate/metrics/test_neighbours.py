"""Nearest neighbours are those of a full sort, however queries and memory are cut into tiles."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics import neighbours
from saccade.validate.metrics.neighbours import nearest, normalize_rows


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_neighbours_are_the_first_of_a_full_sort(queries: int, memory: int, block: int, tile: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Small whole numbers, so that products are exact and many are equal.
    ours, theirs = (random.integers(-2, 3, (count, 4)).astype(np.float32) for count in (queries, memory))
    k = int(random.integers(1, memory + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_VALUES", block)
        patch.setattr(neighbours, "TILE_ROWS", tile)
        similarities, rows = nearest(ours, theirs, k)
    products = ours @ theirs.T
    assert np.array_equal(similarities, -np.sort(-products, axis=1)[:, :k])
    assert np.array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :k])


def test_memory_in_use_is_one_block_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", 5 * 40)
    seen = []
    largest = neighbours._largest
    monkeypatch.setattr(neighbours, "_largest", lambda products, k: seen.append(products.shape) or largest(products, k))
    nearest(np.ones((12, 3), np.float32), np.ones((40, 3), np.float32), 2)
    assert seen == [(5, 40), (5, 40), (2, 40)]


@given(st.integers(1, 60), st.integers(0, 99))
def test_neighbours_by_cosine_are_those_of_normalised_rows_and_progress_counts_them(tile: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    queries, memory = (random.standard_normal((count, 6)).astype(np.float32) for count in (9, 50))
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE_ROWS", tile)
        similarities, rows = nearest(queries, memory, 4, cosine=True, progress=done.append)
        expected, their_rows = nearest(normalize_rows(queries), normalize_rows(memory), 4)
    assert np.array_equal(similarities, expected)
    assert np.array_equal(rows, their_rows)
    assert sum(done) == 50


class OnDisk:
    """A memory that gives nothing but rows, and writes down how many."""

    shape = (20, 2)

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        tile = np.ones(self.shape, np.float32)[rows]
        self.read.append(len(tile))
        return tile


def test_a_memory_on_disk_is_read_once_and_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TILE_ROWS", 8)
    memory = OnDisk()
    nearest(np.ones((3, 2), np.float32), memory, 1, cosine=True)  # type: ignore[arg-type]
    assert memory.read == [8, 8, 4]


def test_rows_whose_length_float32_cannot_hold_are_refused() -> None:
    features = np.full((3, 2), 1e30, np.float32)
    features[0] = 1
    with pytest.raises(SaccadeError, match="features: 2 of 3 rows have no length that float32 can hold; look at the engine"):
        normalize_rows(features)


def test_fewer_rows_than_k_are_refused() -> None:
    with pytest.raises(SaccadeError, match=r"memory rows: 3 are too few for 4 neighbours, which needs 4"):
        nearest(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 4)


def test_features_with_nan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "TILE_ROWS", 1)
    features = np.ones((3, 2), np.float32)
    broken = features.copy()
    broken[1, 1] = np.nan
    with pytest.raises(SaccadeError, match=r"queries: 1 of 3 rows holds NaN or infinity"):
        nearest(broken, features, 1)
    with pytest.raises(SaccadeError, match=r"memory from row 1: 1 of 1 row holds NaN or infinity"):
        nearest(features, broken, 1)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(SaccadeError, match=r"queries: shape \(1, 2\); expected \(any, 3\)"):
        nearest(np.ones((1, 2), np.float32), np.ones((3, 3), np.float32), 1)


def test_a_zero_row_stays_zero_when_normalised() -> None:
    rows = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert rows.dtype == np.float32
