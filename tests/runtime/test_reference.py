"""The NumPy reference against what it does not share a line with: PyTorch, float64 arithmetic and the golden files."""
from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from saccade.runtime import reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE = reference.normalization_table(MEAN, STD)
GOLDEN = Path(__file__).parents[1] / "golden"

# PyTorch contracts a*b+c on some CPUs, so its source coordinates differ in the last bit: 1.2e-4 on 333x777 noise, the
# worst seen, and 2e-6 where the scale is short in binary.
RESIZE_TOLERANCE = 3e-4
CUBIC_TOLERANCE = 5e-5  # measured 1.0e-5, for the same reason
FILL_TOLERANCE = 2e-6  # measured 6e-7: float32 against float64

# Suggested by golden/README.md; measured 7.5e-7, 4.6e-6 and 9.5e-7.
GOLDEN_LOWRES_TOLERANCE = 2e-4
GOLDEN_SCORE_TOLERANCE = 1e-4
GOLDEN_DENSE_TOLERANCE = 2e-5


def random_floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def torch_resized(values: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize the last two axes of (C, H, W) in PyTorch."""
    return interpolate(torch.from_numpy(values)[None], size, mode=mode, align_corners=False)[0].numpy()


def assert_close(ours: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert ours.shape == expected.shape
    difference = np.abs(ours.astype(np.float64) - expected)
    assert difference.max() <= tolerance, f"largest {difference.max():.3g}, mean {difference.mean():.3g}"


# Against PyTorch


def test_normalization_table_holds_the_golden_formula() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    for channel in range(3):
        expected = (pixels.astype(np.float32) / 255 - np.float32(MEAN[channel])) / np.float32(STD[channel])
        np.testing.assert_array_equal(TABLE[channel], expected)


@pytest.mark.parametrize("shape", [(518, 518), (1036, 1036), (154, 154), (333, 777), (97, 1500), (20, 31), (1, 1)])
def test_lowres_equals_pytorch_bilinear_on_the_normalised_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    normalized = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    expected = torch_resized(normalized.transpose(2, 0, 1), (154, 154), "bilinear")
    assert_close(reference.lowres_from_image(image, TABLE, 154), expected, RESIZE_TOLERANCE)


@pytest.mark.parametrize("grid", [(37, 37), (16, 16), (74, 74), (44, 44), (53, 20), (1, 90)])
def test_resized_scores_equal_pytorch_bilinear(grid: tuple[int, int]) -> None:
    score_map = random_floats(1, 44, 44)
    expected = torch_resized(score_map[None], grid, "bilinear")[0]
    assert_close(reference.resize_scores(score_map, grid), expected, RESIZE_TOLERANCE)


@pytest.mark.parametrize(("grid", "k"), [((44, 44), 1), ((44, 44), 1936), ((37, 37), 136), ((74, 74), 547)])
def test_select_equals_pytorch_topk_on_scores_without_ties(grid: tuple[int, int], k: int) -> None:
    indices, scores = reference.select(random_floats(2, 44, 44), grid, k)
    assert len(np.unique(scores)) == scores.size
    assert indices.tolist() == torch.topk(torch.from_numpy(scores).flatten(), k).indices.tolist()


@pytest.mark.parametrize("shape", [(42, 56), (50, 69)])
def test_gathered_patches_times_a_weight_equal_a_strided_convolution(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    weight, indices = random_floats(4, 6, 3, 14, 14), np.int32([11, 0, 5])
    patches = reference.gather_patches(image, TABLE, indices, 14, (3, 4))
    normalized = TABLE[np.arange(3)[:, None, None], image.transpose(2, 0, 1)]
    convolved = torch.conv2d(torch.from_numpy(normalized)[None].double(), torch.from_numpy(weight).double(), stride=14)
    expected = convolved[0].flatten(1).T.numpy()[indices]
    assert_close(patches.astype(np.float64) @ weight.reshape(6, -1).T.astype(np.float64), expected, 1e-9)


@pytest.mark.parametrize("grid", [(16, 16), (74, 74), (36, 38), (20, 53), (1, 1), (100, 3)])
def test_interpolated_positions_equal_pytorch_bicubic(grid: tuple[int, int]) -> None:
    table = random_floats(5, 37, 37, 8)
    expected = torch_resized(np.ascontiguousarray(table.transpose(2, 0, 1)), grid, "bicubic").transpose(1, 2, 0)
    assert_close(reference.interpolate_positions(table, grid), expected, CUBIC_TOLERANCE)


@pytest.mark.parametrize("grid", [(37, 37), (16, 16), (5, 9)])
def test_positions_interpolated_to_their_own_grid_stay_the_same(grid: tuple[int, int]) -> None:
    table = random_floats(6, *grid, 8)
    np.testing.assert_array_equal(reference.interpolate_positions(table, grid), table)


# Against arithmetic in float64


def brute_force_fill(tokens: np.ndarray, indices: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Fill cell by cell with Python's sort, in float64."""
    dense = np.empty((tokens.shape[1], *grid))
    kept = [divmod(int(index), grid[1]) for index in indices]
    for row, column in np.ndindex(grid):
        distances = [((row - r) ** 2 + (column - c) ** 2, order) for order, (r, c) in enumerate(kept)]
        nearest = sorted(distances)[:5]
        weights = np.array([1 / (squared**0.5 + 1e-8) for squared, _ in nearest])
        dense[:, row, column] = (weights / weights.sum()) @ tokens[[order for _, order in nearest]].astype(np.float64)
    return dense


@pytest.mark.parametrize(("grid", "k"), [((12, 17), 20), ((9, 9), 81), ((1, 30), 5), ((20, 20), 7)])
def test_fill_equals_a_brute_force_search_in_float64(grid: tuple[int, int], k: int) -> None:
    indices = np.random.default_rng(7).permutation(grid[0] * grid[1])[:k].astype(np.int32)
    tokens = random_floats(8, k, 6)
    assert_close(reference.fill(tokens, indices, grid), brute_force_fill(tokens, indices, grid), FILL_TOLERANCE)


def test_fill_breaks_ties_to_the_patch_earlier_in_the_list() -> None:
    grid = (3, 3)
    indices = np.int32([8, 6, 2, 1, 3, 0, 5, 7])  # all but the centre; 1, 3, 5, 7 are nearest, then 8 of the corners
    tokens = np.eye(8, dtype=np.float32)
    weights = reference.fill(tokens, indices, grid)[:, 1, 1]
    assert np.flatnonzero(weights).tolist() == [0, 3, 4, 6, 7]


def test_fill_gives_kept_cells_their_own_token() -> None:
    indices = np.random.default_rng(9).permutation(100)[:30].astype(np.int32)
    tokens = random_floats(10, 30, 4)
    dense = reference.fill(tokens, indices, (10, 10)).reshape(4, 100)
    assert_close(dense[:, indices].T, tokens, 1e-6)  # the four others have a weight of at most 1e-8


# Against the golden files of the official code


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"lookwhere_{name}.npz") as file:
        return dict(file)


NAMES = pytest.mark.parametrize("name", ["dinov2_224", "dinov2_518", "dinov2_1036", "franca_224"])


@pytest.mark.parametrize("name", ["dinov2_224", "dinov2_518", "dinov2_1036"])
def test_lowres_equals_the_golden_selector_input(name: str) -> None:
    file = golden(name)
    repeat = int(file.get("image_repeat", 1))
    image = file["image"].repeat(repeat, axis=0).repeat(repeat, axis=1)
    assert_close(reference.lowres_from_image(image, TABLE, 154), file["lowres"], GOLDEN_LOWRES_TOLERANCE)


@NAMES
@pytest.mark.parametrize("map_name", ["score_map_44", "score_map"])
def test_selected_cells_are_the_golden_kept_ones(name: str, map_name: str) -> None:
    file = golden(name)
    indices, scores = reference.select(file[map_name], file["score_map"].shape, int(file["k"]))
    assert_close(scores, file["score_map"], GOLDEN_SCORE_TOLERANCE)
    assert set(indices.tolist()) == set(file["kept"].tolist())


def golden_projection() -> np.ndarray:
    """Return `tensor("golden.projection", (4, 768), 0)` of golden/seeded_weights.py."""
    random = np.random.RandomState(zlib.crc32(b"golden.projection"))
    return (random.standard_normal((4, 768)) / np.sqrt(768)).astype(np.float32)


@NAMES
def test_fill_of_the_golden_tokens_gives_the_golden_dense_output(name: str) -> None:
    file = golden(name)
    dense = reference.fill(file["kept_tokens"], file["kept"].astype(np.int32), file["score_map"].shape)
    rows = dense.reshape(len(dense), -1).T
    assert_close(rows[file["dense_cells"]], file["dense_values"], GOLDEN_DENSE_TOLERANCE)
    projected = rows.astype(np.float64) @ golden_projection().T.astype(np.float64)
    free = file["dense_tie_free"].ravel()
    assert_close(projected[free], file["dense_projection"].reshape(-1, 4)[free], GOLDEN_DENSE_TOLERANCE)
