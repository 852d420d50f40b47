"""The C++ kernels give the bits and the errors of the NumPy reference."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.runtime import _kernels, kernels, reference
from saccade.runtime.positions import resize_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE = reference.normalization_table(MEAN, STD)
BOTH = pytest.mark.parametrize("module", [reference, kernels], ids=["reference", "kernels"])

MANY = settings(deadline=None, max_examples=150)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
extents = st.integers(1, 40)
grids = st.tuples(st.integers(1, 24), st.integers(1, 24))


def assert_same_bits(ours: np.ndarray, expected: np.ndarray) -> None:
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert ours.tobytes() == expected.tobytes()


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def random_cells(rng: np.random.Generator, grid: tuple[int, int], k: int) -> np.ndarray:
    return rng.permutation(grid[0] * grid[1])[:k].astype(np.int32)


LAYOUTS = {
    "packed": lambda image: image,
    "crop": lambda image: np.pad(image, ((2, 1), (3, 5), (0, 0)))[2:-1, 3:-5],
    "every other row": lambda image: image.repeat(2, axis=0)[::2],
    "upside down": lambda image: image[::-1],
    "mirrored": lambda image: image[:, ::-1],
    "BGR": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    "BGR crop upside down": lambda image: np.pad(image[::-1, :, ::-1], ((0, 2), (4, 1), (0, 0)))[-3::-1, 4:-1, ::-1],
    "planar": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
}
layouts = st.sampled_from(list(LAYOUTS.values()))


@st.composite
def score_maps(draw: st.DrawFn) -> np.ndarray:
    """Maps with many ties and both zeros, smooth ones, and ones of any finite bits."""
    rng, size = draw(seeds), draw(st.integers(1, 48))
    kind = draw(st.sampled_from(["ties", "normal", "bits"]))
    if kind == "ties":
        return rng.choice(np.float32([-1, -0.0, 0.0, 0.5]), (size, size))
    if kind == "normal":
        return random_floats(rng, size, size)
    values = rng.integers(0, 2**32, (size, size), dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


@MANY
@given(st.lists(st.floats(0.125, 1, width=32), min_size=6, max_size=6))
def test_normalization_table_has_the_bits_of_the_reference(values: list[float]) -> None:
    expected = reference.normalization_table(values[:3], values[3:])
    assert_same_bits(kernels.normalization_table(values[:3], values[3:]), expected)


@MANY
@given(seeds, extents, extents, st.integers(1, 40), layouts)
def test_lowres_has_the_bits_of_the_reference_for_any_size_and_layout(rng, height, width, size, layout) -> None:
    image = layout(random_image(rng, height, width))
    assert_same_bits(
        kernels.lowres_from_image(image, TABLE, size), reference.lowres_from_image(image, TABLE, size)
    )


@pytest.mark.parametrize("shape", [(518, 518), (1036, 1036), (1, 2000), (1531, 1), (721, 1283)])
def test_lowres_of_a_large_image_has_the_bits_of_the_reference(shape: tuple[int, int]) -> None:
    image = random_image(np.random.default_rng(1), *shape)
    assert_same_bits(kernels.lowres_from_image(image, TABLE, 154), reference.lowres_from_image(image, TABLE, 154))


@MANY
@given(score_maps(), grids)
def test_resized_scores_have_the_bits_of_the_reference(score_map, grid) -> None:
    with np.errstate(all="ignore"):
        expected = reference.resize_scores(score_map, grid)
    nan = np.isnan(expected)  # overflow: which NaN comes out is nobody's promise
    ours = kernels.resize_scores(score_map, grid)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    assert_same_bits(np.where(nan, np.float32(0), ours), np.where(nan, np.float32(0), expected))


@MANY
@given(score_maps(), grids, st.data())
def test_select_has_the_bits_or_the_error_of_the_reference(score_map, grid, data) -> None:
    k = data.draw(st.integers(1, grid[0] * grid[1]))
    try:
        expected = reference.select(score_map, grid, k)
    except SaccadeError as error:
        with pytest.raises(SaccadeError) as ours:
            kernels.select(score_map, grid, k)
        assert str(ours.value) == str(error)
        return
    for result, wanted in zip(kernels.select(score_map, grid, k), expected, strict=True):
        assert_same_bits(result, wanted)


@pytest.mark.parametrize("k", [1, 547, 5475, 5476])
def test_select_on_a_large_grid_with_ties_equals_the_reference(k: int) -> None:
    score_map = np.random.default_rng(2).integers(-2, 3, (44, 44)).astype(np.float32)
    for result, wanted in zip(
        kernels.select(score_map, (74, 74), k), reference.select(score_map, (74, 74), k), strict=True
    ):
        assert_same_bits(result, wanted)


@BOTH
def test_select_breaks_ties_to_the_lower_cell_and_takes_both_zeros_as_equal(module) -> None:
    score_map = np.float32([[-0.0, 1.0, 0.0], [0.0, -0.0, 1.0], [-1.0, -0.0, 0.0]])
    indices, scores = module.select(score_map, (3, 3), 9)
    assert indices.tolist() == [1, 5, 0, 2, 3, 4, 7, 8, 6]
    np.testing.assert_array_equal(scores, score_map)


@MANY
@given(seeds, grids, st.integers(1, 6), layouts, st.data())
def test_gathered_patches_have_the_bits_of_the_reference(rng, grid, patch, layout, data) -> None:
    remainder = data.draw(st.tuples(st.integers(0, patch - 1), st.integers(0, patch - 1)))
    image = layout(random_image(rng, grid[0] * patch + remainder[0], grid[1] * patch + remainder[1]))
    indices = random_cells(rng, grid, data.draw(st.integers(0, grid[0] * grid[1])))
    ours = kernels.gather_patches(image, TABLE, indices, patch, grid)
    assert_same_bits(ours, reference.gather_patches(image, TABLE, indices, patch, grid))


def test_gathered_patches_of_a_large_crop_have_the_bits_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    image = random_image(rng, 1100, 1300)[31 : 31 + 1036, 77 : 77 + 1036]
    indices = random_cells(rng, (74, 74), 547)
    ours = kernels.gather_patches(image, TABLE, indices, 14, (74, 74))
    assert_same_bits(ours, reference.gather_patches(image, TABLE, indices, 14, (74, 74)))


@MANY
@given(seeds, extents, extents, layouts)
def test_a_normalized_image_has_the_values_of_the_table(rng, height, width, layout) -> None:
    image = layout(random_image(rng, height, width))
    assert_same_bits(kernels.normalize(image, TABLE), TABLE[np.arange(3)[:, None, None], image.transpose(2, 0, 1)])


@MANY
@given(seeds, grids, st.integers(1, 9), st.data())
def test_gathered_positions_have_the_bits_of_the_reference(rng, grid, dim, data) -> None:
    positions = random_floats(rng, grid[0] * grid[1], dim)
    indices = random_cells(rng, grid, data.draw(st.integers(0, grid[0] * grid[1])))
    assert_same_bits(
        kernels.gather_positions(positions, indices), reference.gather_positions(positions, indices)
    )


@MANY
@given(seeds, grids, grids, st.integers(1, 20))
def test_interpolated_positions_have_the_bits_of_the_reference(rng, table_grid, grid, dim) -> None:
    table = random_floats(rng, *table_grid, dim)
    assert_same_bits(kernels.interpolate_positions(table, grid), reference.interpolate_positions(table, grid))


@MANY
@given(seeds, grids, grids, st.integers(1, 20), st.sampled_from(["scale-factor", "size-antialias"]))
def test_positions_of_a_backbone_have_the_bits_of_the_reference(rng, table_grid, grid, dim, rule) -> None:
    table = random_floats(rng, *table_grid, dim)
    assert_same_bits(kernels.interpolate_positions(table, grid, rule), resize_table(table, grid, rule))


@pytest.mark.parametrize("rule", ["scale-factor", "size-antialias"])
@pytest.mark.parametrize("grid", [(74, 74), (148, 148), (1, 900), (2, 3), (36, 38)])
def test_positions_of_a_real_backbones_size_have_the_bits_of_the_reference(grid, rule) -> None:
    table = random_floats(np.random.default_rng(9), 37, 37, 24)
    assert_same_bits(kernels.interpolate_positions(table, grid, rule), resize_table(table, grid, rule))


def test_a_rule_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="rule must be size, scale-factor or size-antialias, got bilinear"):
        kernels.interpolate_positions(np.zeros((3, 3, 8), np.float32), (2, 2), "bilinear")


@MANY
@given(seeds, grids.filter(lambda grid: grid[0] * grid[1] >= 5), st.integers(1, 70), st.data())
def test_fill_has_the_bits_of_the_reference(rng, grid, channels, data) -> None:
    cells = grid[0] * grid[1]
    indices = random_cells(rng, grid, data.draw(st.integers(5, cells) | st.just(cells)))
    tokens = random_floats(rng, len(indices), channels)
    assert_same_bits(kernels.fill(tokens, indices, grid), reference.fill(tokens, indices, grid))


@MANY
@given(seeds, grids, st.integers(5, 40))
def test_fill_with_repeated_cells_has_the_bits_of_the_reference(rng, grid, k) -> None:
    indices = rng.integers(0, grid[0] * grid[1], k, dtype=np.int32)
    tokens = random_floats(rng, k, 3)
    assert_same_bits(kernels.fill(tokens, indices, grid), reference.fill(tokens, indices, grid))


@pytest.mark.parametrize(("grid", "k", "channels"), [((37, 37), 136, 768), ((74, 74), 547, 33), ((3, 600), 5, 65)])
def test_fill_of_a_large_grid_has_the_bits_of_the_reference(grid, k, channels) -> None:
    rng = np.random.default_rng(4)
    tokens, indices = random_floats(rng, k, channels), random_cells(rng, grid, k)
    assert_same_bits(kernels.fill(tokens, indices, grid), reference.fill(tokens, indices, grid))


def test_fill_of_patches_crowded_in_a_corner_has_the_bits_of_the_reference() -> None:
    rng, grid = np.random.default_rng(5), (50, 60)
    indices = (np.arange(8)[:, None] * 60 + np.arange(8)).ravel().astype(np.int32)
    tokens = random_floats(rng, len(indices), 4)
    assert_same_bits(kernels.fill(tokens, indices, grid), reference.fill(tokens, indices, grid))


@pytest.mark.parametrize("layout", ["packed", "crop", "every other row", "upside down", "BGR", "BGR crop upside down"])
def test_an_image_whose_pixels_are_packed_is_read_where_it_lies(layout: str) -> None:
    image = LAYOUTS[layout](random_image(np.random.default_rng(8), 6, 9))
    out = np.empty((3, 7, 7), np.float32)
    _kernels.lowres_from_image(image, TABLE, out)  # would refuse what `kernels` has to copy
    assert_same_bits(out, reference.lowres_from_image(image, TABLE, 7))


# Results written into given arrays


def calls_with_out() -> dict[str, tuple]:
    """One call of each kernel with `out`: the function, its arguments, the arrays for its result."""
    rng = np.random.default_rng(6)
    image, cells = random_image(rng, 28, 42), random_cells(rng, (2, 3), 5)
    score_map, tokens = random_floats(rng, 4, 4), random_floats(rng, 5, 7)
    table, positions = random_floats(rng, 3, 3, 8), random_floats(rng, 6, 8)
    shapes = [(3, 9, 9), (2, 3), (5, 588), (5, 8), (2, 3, 8), (7, 2, 3), (3, 28, 42)]
    floats = [np.empty(shape, np.float32) for shape in shapes]
    return {
        "lowres_from_image": (kernels.lowres_from_image, (image, TABLE, 9), floats[0]),
        "resize_scores": (kernels.resize_scores, (score_map, (2, 3)), floats[1]),
        "gather_patches": (kernels.gather_patches, (image, TABLE, cells, 14, (2, 3)), floats[2]),
        "gather_positions": (kernels.gather_positions, (positions, cells), floats[3]),
        "interpolate_positions": (kernels.interpolate_positions, (table, (2, 3)), floats[4]),
        "fill": (kernels.fill, (tokens, cells, (2, 3)), floats[5]),
        "normalize": (kernels.normalize, (image, TABLE), floats[6]),
    }


CALLS = calls_with_out()
EACH = pytest.mark.parametrize("name", CALLS)


@EACH
def test_kernel_writes_into_out_and_returns_it(name: str) -> None:
    function, arguments, out = CALLS[name]
    out = np.full_like(out, np.nan)
    assert function(*arguments, out=out) is out
    assert_same_bits(out, function(*arguments))


def test_select_writes_into_both_arrays_of_out() -> None:
    score_map = random_floats(np.random.default_rng(7), 4, 4)
    out = np.empty(2, np.int32), np.empty((2, 3), np.float32)
    indices, scores = kernels.select(score_map, (2, 3), 2, out=out)
    assert indices is out[0]
    assert scores is out[1]
    assert_same_bits(indices, reference.select(score_map, (2, 3), 2)[0])


@EACH
def test_kernel_refuses_an_out_of_another_shape(name: str) -> None:
    function, arguments, out = CALLS[name]
    with pytest.raises(ValueError, match=r"out must be \(.*\), got \("):
        function(*arguments, out=np.empty((*out.shape, 1), np.float32))


@EACH
def test_kernel_refuses_an_out_of_another_dtype(name: str) -> None:
    function, arguments, out = CALLS[name]
    with pytest.raises(ValueError, match=r"out must be contiguous float32 \(.*\), got float64"):
        function(*arguments, out=np.empty(out.shape, np.float64))


@EACH
def test_kernel_refuses_a_read_only_out(name: str) -> None:
    function, arguments, out = CALLS[name]
    out = out.copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        function(*arguments, out=out)


@EACH
def test_kernel_refuses_an_out_that_is_not_contiguous(name: str) -> None:
    function, arguments, out = CALLS[name]
    with pytest.raises(ValueError, match="out must be contiguous float32"):
        function(*arguments, out=np.empty((*out.shape, 2), np.float32)[..., 0])


# What both refuse, in the same words


@BOTH
@pytest.mark.parametrize("k", [-1, 0, 7])
def test_select_refuses_a_k_that_does_not_fit_the_grid(module, k: int) -> None:
    message = rf"k is {k}, but the 2x3 grid has 6 cells; choose k from 1 to 6"
    with pytest.raises(SaccadeError, match=message):
        module.select(np.zeros((4, 4), np.float32), (2, 3), k)


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_select_refuses_scores_that_are_not_finite_even_where_the_resize_skips_them(module, value: float) -> None:
    score_map = np.zeros((44, 44), np.float32)
    score_map[0, 1] = value  # a 2x2 grid samples rows and columns 10, 11, 32, 33
    with pytest.raises(SaccadeError, match="score map holds NaN or infinity in 1 of 1936 values"):
        module.select(score_map, (2, 2), 1)


@BOTH
def test_fill_refuses_fewer_than_five_kept_patches(module) -> None:
    message = "a dense output blends the 5 nearest kept patches, but k is 4; choose k >= 5"
    with pytest.raises(SaccadeError, match=message):
        module.fill(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (3, 3))


@BOTH
@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_outside_the_grid_is_refused(module, index: int) -> None:
    indices = np.int32([0, 1, 2, 3, index])
    with pytest.raises(ValueError, match=r"indices must be in 0\.\.5"):
        module.gather_patches(np.zeros((4, 6, 3), np.uint8), TABLE, indices, 2, (2, 3))
    with pytest.raises(ValueError, match=r"indices must be in 0\.\.5"):
        module.gather_positions(np.zeros((6, 4), np.float32), indices)
    with pytest.raises(ValueError, match=r"indices must be in 0\.\.5"):
        module.fill(np.zeros((5, 4), np.float32), indices, (2, 3))


@BOTH
@pytest.mark.parametrize("grid", [(1, 3), (2, 4), (3, 2)])
def test_gather_refuses_a_grid_that_is_not_the_whole_patches_of_the_image(module, grid) -> None:
    with pytest.raises(ValueError, match=rf"a 5x7 image has no {grid[0]}x{grid[1]} grid of patches of 2"):
        module.gather_patches(np.zeros((5, 7, 3), np.uint8), TABLE, np.int32([0]), 2, grid)


# What only the door into C++ has to refuse


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 6, 3), np.float32), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6), np.uint8)],
    ids=["float", "RGBA", "grey"],
)
def test_door_refuses_what_is_no_rgb_image(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \(height, width, 3\) with packed pixels, got"):
        kernels.lowres_from_image(image, TABLE, 4)


@pytest.mark.parametrize("layout", ["mirrored", "planar"])
def test_door_refuses_pixels_that_are_not_packed(layout: str) -> None:
    with pytest.raises(ValueError, match="with packed pixels, got"):
        _kernels.lowres_from_image(LAYOUTS[layout](np.zeros((4, 6, 3), np.uint8)), TABLE, np.empty((3, 4, 4), np.float32))


def test_door_refuses_an_image_without_pixels() -> None:
    with pytest.raises(ValueError, match="image: extents must be 1 to 65536, got 0"):
        kernels.lowres_from_image(np.zeros((0, 4, 3), np.uint8), TABLE, 4)


def test_door_refuses_scores_that_are_not_float32() -> None:
    with pytest.raises(ValueError, match=r"score_map must be contiguous float32 \(4, 4\), got float64 \(4, 4\)"):
        kernels.resize_scores(np.zeros((4, 4)), (2, 2))


def test_door_refuses_a_score_map_that_is_not_square() -> None:
    with pytest.raises(ValueError, match=r"score_map must be contiguous float32 \(4, 4\), got float32 \(4, 5\)"):
        kernels.resize_scores(np.zeros((4, 5), np.float32), (2, 2))


def test_door_refuses_indices_that_are_not_int32() -> None:
    with pytest.raises(ValueError, match=r"indices must be contiguous int32 \(5\), got int64 \(5\)"):
        kernels.gather_positions(np.zeros((6, 4), np.float32), np.arange(5))


def test_door_refuses_tokens_of_another_k_than_the_indices() -> None:
    with pytest.raises(ValueError, match=r"tokens must be contiguous float32 \(5, 4\), got float32 \(6, 4\)"):
        kernels.fill(np.zeros((6, 4), np.float32), np.arange(5, dtype=np.int32), (3, 3))


def test_door_refuses_an_empty_list_of_kept_cells_where_some_are_needed() -> None:
    empty = np.empty(0, np.int32)
    with pytest.raises(ValueError, match="indices must hold at least 5 cells"):
        _kernels.fill(np.empty((0, 4), np.float32), empty, np.empty((4, 3, 3), np.float32))
    with pytest.raises(ValueError, match="indices must hold 1 to 9 cells"):
        _kernels.select(np.zeros((4, 4), np.float32), empty, np.empty((3, 3), np.float32))


def test_door_refuses_a_grid_larger_than_the_image() -> None:
    image, out = np.zeros((4, 6, 3), np.uint8), np.empty((1, 12), np.float32)
    with pytest.raises(ValueError, match="the grid of patches is larger than the image"):
        _kernels.gather_patches(image, TABLE, np.int32([0]), 2, (3, 3), out)


# What only C++ can see

SOURCES = Path(kernels.__file__).parent / "native" / "src"


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_kernels_allocate_nothing_twice_and_their_vector_code_stays_inside_its_memory(tmp_path: Path) -> None:
    program = Path(__file__).with_name("kernels_program.cpp")
    others = [SOURCES / f"{name}.cpp" for name in ("fill", "gather", "positions", "resize", "select")]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["c++", *flags, f"-I{SOURCES}", program, *others, "-o", tmp_path / "program"], check=True)
    found = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
