"""The CUDA kernels' source, run on the CPU in any order of threads, gives the bits of the NumPy reference."""
from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.runtime import kernels, reference

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "runtime/cuda"
INCLUDES = [f"-I{ROOT / folder}" for folder in ("runtime/cuda", "runtime/native/include", "runtime/native/src")]
TABLE = reference.normalization_table((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MARGIN = 64  # bytes of MARK around each output

MANY = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
grids = st.tuples(st.integers(1, 24), st.integers(1, 24))
orders = st.integers(0, 9)  # of blocks and threads: ascending, descending, shuffled
ORDERS = pytest.mark.parametrize("order", [0, 1, 2, 3])

LAYOUTS = {
    "packed": lambda image: image,
    "crop": lambda image: np.pad(image, ((2, 1), (3, 5), (0, 0)))[2:-1, 3:-5],
    "every other row": lambda image: image.repeat(2, axis=0)[::2],
    "upside down": lambda image: image[::-1],
    "one row for all": lambda image: np.broadcast_to(image[:1], image.shape),
}
layouts = st.sampled_from(list(LAYOUTS.values()))


# The structs of runtime/cuda/launch.hpp


class ImageView(ctypes.Structure):
    _fields_ = [("pixels", ctypes.c_void_p), ("row_stride", ctypes.c_int64), ("height", ctypes.c_int32),
                ("width", ctypes.c_int32), ("bgr", ctypes.c_int32), ("unused", ctypes.c_int32)]  # fmt: skip


def params(pointers: list[str], numbers: list[str]) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_void_p) for name in pointers] + [(name, ctypes.c_int32) for name in numbers]
    return type("Params", (ctypes.Structure,), {"_fields_": fields})


Preprocess = params(["images", "table", "lowres"], ["batch", "size"])
Select = params(
    ["maps", "scores", "indices", "status"], ["batch", "map_size", "rows", "columns", "k", "unused"]
)
Gather = params(
    ["images", "table", "positions", "indices", "patches", "kept_positions"],
    ["batch", "k", "patch", "columns", "dim", "unused"],
)
Fill = params(["tokens", "indices", "out"], ["batch", "k", "channels", "rows", "columns", "unused"])


# The kernels as functions of arrays


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compile the kernels for the CPU, with undefined behaviour made to stop the program."""
    library = tmp_path_factory.mktemp("cuda_host") / "cuda_host.so"
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
    trap = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    source = Path(__file__).with_name("cuda_host.cpp")
    subprocess.run(["g++", *flags, *trap, *INCLUDES, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


class Outputs:
    """Arrays that a kernel writes, each with a margin around it that the kernel must leave alone."""

    MARK = 0x5A

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(size + 2 * MARGIN, self.MARK, np.uint8)
        self._buffers.append(buffer)
        return buffer[MARGIN : MARGIN + size].view(dtype).reshape(shape)

    def check(self) -> None:
        for buffer in self._buffers:
            assert (buffer[:MARGIN] == self.MARK).all()
            assert (buffer[-MARGIN:] == self.MARK).all()


def launch(host: ctypes.CDLL, kernel: str, arguments: ctypes.Structure, order: int) -> None:
    assert host.launch(kernel.encode(), ctypes.byref(arguments), order) == 1


def views(images: list[np.ndarray], bgr: bool) -> ctypes.Array:
    assert all(image.strides[2] == 1 and (image.strides[1] == 3 or image.shape[1] == 1) for image in images)
    fields = [(image.ctypes.data, image.strides[0], *image.shape[:2], int(bgr), 0) for image in images]
    return (ImageView * len(images))(*fields)


def preprocess(host, images: list[np.ndarray], size: int, *, bgr=False, to="fp32", order=0) -> np.ndarray:
    outputs, batch = Outputs(), len(images)
    lowres = outputs.array((batch, 3, size, size), np.float32 if to == "fp32" else np.uint16)
    described = views(images, bgr)
    arguments = Preprocess(ctypes.addressof(described), TABLE.ctypes.data, lowres.ctypes.data, batch, size)
    launch(host, f"saccade_preprocess_{to}", arguments, order)
    outputs.check()
    return lowres


def select(host, maps: np.ndarray, grid: tuple[int, int], k: int, *, order=0) -> tuple[np.ndarray, ...]:
    """Return indices (batch, k), scores (batch, *grid) and status (batch,)."""
    outputs, batch = Outputs(), len(maps)
    scores = outputs.array((batch, *grid), np.float32)
    indices = outputs.array((batch, k), np.int32)
    status = outputs.array((batch,), np.int32)
    pointers = [array.ctypes.data for array in (maps, scores, indices, status)]
    arguments = Select(*pointers, batch, maps.shape[1], *grid, k, 0)
    launch(host, "saccade_resize_scores", arguments, order)
    launch(host, "saccade_rank", arguments, order)
    outputs.check()
    return indices, scores, status


def gather(host, images, table, positions, indices, patch, grid, *, bgr=False, order=0) -> tuple[np.ndarray, ...]:
    """Return patches and positions in the type of `table` and `positions`."""
    outputs, (batch, k), dim = Outputs(), indices.shape, positions.shape[1]
    patches = outputs.array((batch, k, 3 * patch * patch), table.dtype)
    kept = outputs.array((batch, k, dim), table.dtype)
    described = views(images, bgr)
    pointers = [array.ctypes.data for array in (table, positions, indices, patches, kept)]
    arguments = Gather(ctypes.addressof(described), *pointers, batch, k, patch, grid[1], dim, 0)
    launch(host, f"saccade_gather_{8 * table.itemsize}bit", arguments, order)
    outputs.check()
    return patches, kept


def fill(host, tokens: np.ndarray, indices: np.ndarray, grid: tuple[int, int], *, order=0) -> np.ndarray:
    outputs, (batch, k, channels) = Outputs(), tokens.shape
    out = outputs.array((batch, channels, *grid), np.float32)
    pointers = [array.ctypes.data for array in (tokens, indices, out)]
    launch(host, "saccade_fill", Fill(*pointers, batch, k, channels, *grid, 0), order)
    outputs.check()
    return out


def assert_same_bits(ours: np.ndarray, expected: np.ndarray) -> None:
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert ours.tobytes() == expected.tobytes()


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def random_cells(rng: np.random.Generator, grid: tuple[int, int], k: int) -> np.ndarray:
    return rng.permutation(grid[0] * grid[1])[:k].astype(np.int32)


def test_structs_have_the_sizes_of_the_header(host) -> None:
    sizes = (ctypes.c_uint64 * 5)()
    host.struct_sizes(sizes)
    assert [ctypes.sizeof(struct) for struct in (ImageView, Preprocess, Select, Gather, Fill)] == list(sizes)


def test_a_race_between_threads_shows_in_another_order(host) -> None:
    results = []
    for order in (0, 1, 2):
        values = np.arange(1, 65, dtype=np.int32)
        host.racy_block(ctypes.c_void_p(values.ctypes.data), 64, order)
        results.append(values.tolist())
    assert results[0] != results[1] != results[2]


# Preprocess


@MANY
@given(seeds, st.data(), st.integers(1, 40), layouts, st.booleans(), orders)
def test_lowres_has_the_bits_of_the_reference_for_any_size_and_layout(host, rng, data, size, layout, bgr, order) -> None:
    extents = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3))
    images = [layout(random_image(rng, *extent)) for extent in extents]
    ours = preprocess(host, images, size, bgr=bgr, order=order)
    for lowres, image in zip(ours, images, strict=True):
        rgb = image[..., ::-1] if bgr else image
        assert_same_bits(lowres, reference.lowres_from_image(rgb, TABLE, size))
        assert_same_bits(lowres, kernels.lowres_from_image(rgb, TABLE, size))


@pytest.mark.parametrize("shape", [(518, 518), (1036, 1036), (1, 2000), (1531, 1), (721, 1283)])
def test_lowres_of_a_large_image_has_the_bits_of_the_reference(host, shape: tuple[int, int]) -> None:
    image = random_image(np.random.default_rng(1), *shape)
    assert_same_bits(preprocess(host, [image], 154)[0], reference.lowres_from_image(image, TABLE, 154))


def test_lowres_in_16_bits_is_the_float32_one_rounded_once(host) -> None:
    image = random_image(np.random.default_rng(2), 91, 130)
    expected = reference.lowres_from_image(image, TABLE, 77)
    assert_same_bits(preprocess(host, [image], 77, to="fp16")[0].view(np.float16), expected.astype(np.float16))
    assert_same_bits(preprocess(host, [image], 77, to="bf16")[0], rounded_to_bfloat16(expected))


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearer of both neighbouring bfloat16 numbers, or of the even one; finite values only."""
    below = values.view(np.uint32) >> 16
    low, high = ((bits << 16).astype(np.uint32).view(np.float32).astype(np.float64) for bits in (below, below + 1))
    # The neighbour of the largest finite number is infinity, which rounds as 2^128 would.
    high = np.where(np.isinf(high), np.copysign(2.0**128, high), high)
    to_low, to_high = np.abs(values - low), np.abs(high - values)
    up = (to_high < to_low) | ((to_high == to_low) & (below % 2 == 1))
    return (below + up).astype(np.uint16)


def boundaries_of_halves() -> np.ndarray:
    """Return all fp16 numbers, the midpoints between them and the float32 numbers beside both; NaN left out."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    exact = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, np.float32([65520, -65520, 1e-45, 3e38, np.inf])])
    return np.concatenate([exact, np.nextafter(exact, np.float32(9e9)), np.nextafter(exact, np.float32(-9e9))])


def rounded_by(function, values: np.ndarray) -> np.ndarray:
    out = np.empty(values.shape, np.uint16)
    function(ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.size), ctypes.c_void_p(out.ctypes.data))
    return out


def test_rounding_to_fp16_is_numpys_at_every_boundary(host) -> None:
    values = boundaries_of_halves()
    with np.errstate(over="ignore"):
        assert_same_bits(rounded_by(host.round_to_half, values), values.astype(np.float16).view(np.uint16))


@MANY
@given(seeds)
def test_rounding_to_16_bits_is_right_for_any_bits(host, rng) -> None:
    values = rng.integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    with np.errstate(over="ignore"):
        assert_same_bits(rounded_by(host.round_to_half, values), values.astype(np.float16).view(np.uint16))
    assert_same_bits(rounded_by(host.round_to_bfloat16, values), rounded_to_bfloat16(values))


def test_rounding_keeps_nan_and_infinity(host) -> None:
    values = np.float32([np.nan, -np.nan, np.inf, -np.inf])
    values[:2] = np.uint32([0x7F800001, 0xFFFFFFFF]).view(np.float32)
    assert [hex(bits) for bits in rounded_by(host.round_to_half, values)] == ["0x7e00", "0xfe00", "0x7c00", "0xfc00"]
    assert [hex(bits) for bits in rounded_by(host.round_to_bfloat16, values)] == ["0x7fc0", "0xffc0", "0x7f80", "0xff80"]


# Select


@st.composite
def score_maps(draw: st.DrawFn) -> np.ndarray:
    """A batch of maps with many ties and both zeros, of smooth ones, or of any finite bits."""
    rng, batch, size = draw(seeds), draw(st.integers(1, 3)), draw(st.integers(1, 48))
    kind = draw(st.sampled_from(["ties", "normal", "bits"]))
    if kind == "ties":
        return rng.choice(np.float32([-1, -0.0, 0.0, 0.5]), (batch, size, size))
    if kind == "normal":
        return random_floats(rng, batch, size, size)
    values = rng.integers(0, 2**32, (batch, size, size), dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def assert_selected(ours: tuple[np.ndarray, ...], maps: np.ndarray, grid: tuple[int, int], k: int) -> None:
    """Compare with the reference and the C++ kernels, image by image; where they refuse, the status must say so."""
    for indices, scores, status, score_map in zip(*ours, maps, strict=True):
        try:
            expected = reference.select(score_map, grid, k)
        except SaccadeError:
            assert status == 1
            assert indices.tolist() == list(range(k))
            continue
        assert status == 0
        for module in (reference, kernels):
            expected = module.select(score_map, grid, k)
            assert_same_bits(indices, expected[0])
            assert_same_bits(scores, expected[1])


@MANY
@given(score_maps(), grids, st.data(), orders)
def test_select_has_the_bits_or_the_refusal_of_the_reference(host, maps, grid, data, order) -> None:
    k = data.draw(st.integers(1, grid[0] * grid[1]) | st.sampled_from([1, grid[0] * grid[1]]))
    assert_selected(select(host, maps, grid, k, order=order), maps, grid, k)


@pytest.mark.parametrize(
    ("grid", "k"),
    [((37, 37), 136), ((74, 74), 547), ((74, 74), 5476), ((148, 148), 1), ((148, 148), 2190), ((148, 148), 21904),
     ((1, 4097), 4097), ((5000, 1), 17)],
)  # fmt: skip
def test_select_on_a_large_grid_with_ties_equals_the_reference(host, grid: tuple[int, int], k: int) -> None:
    maps = np.random.default_rng(2).integers(-2, 3, (1, 44, 44)).astype(np.float32)
    assert_selected(select(host, maps, grid, k), maps, grid, k)


@ORDERS
def test_select_breaks_ties_to_the_lower_cell_and_takes_both_zeros_as_equal(host, order: int) -> None:
    maps = np.float32([[[-0.0, 1.0, 0.0], [0.0, -0.0, 1.0], [-1.0, -0.0, 0.0]]])
    indices, scores, status = select(host, maps, (3, 3), 9, order=order)
    assert indices.tolist() == [[1, 5, 0, 2, 3, 4, 7, 8, 6]]
    assert status.tolist() == [0]
    np.testing.assert_array_equal(scores, maps)


def test_select_of_equal_scores_takes_the_first_cells(host) -> None:
    indices, _, _ = select(host, np.full((1, 5, 5), -3.5, np.float32), (70, 70), 4900)
    assert indices[0].tolist() == list(range(4900))


def test_select_ranks_denormal_and_extreme_scores(host) -> None:
    values = np.float32([1e-45, 0, -1e-45, 3.4028235e38, -3.4028235e38, 1.1754942e-38, -0.0, 3e-45, 1])
    indices, _, _ = select(host, values.reshape(1, 3, 3), (3, 3), 9)
    assert indices[0].tolist() == [3, 8, 5, 7, 0, 1, 6, 2, 4]


@ORDERS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_select_flags_the_one_image_that_is_not_finite_even_where_the_resize_skips_it(host, value, order) -> None:
    maps = random_floats(np.random.default_rng(3), 3, 44, 44)
    maps[1, 0, 1] = value  # a 2x2 grid samples rows and columns 10, 11, 32, 33
    indices, _, status = select(host, maps, (2, 2), 3, order=order)
    assert status.tolist() == [0, 1, 0]
    assert indices[1].tolist() == [0, 1, 2]
    for image in (0, 2):
        assert_same_bits(indices[image], reference.select(maps[image], (2, 2), 3)[0])


@pytest.mark.parametrize("cell", [0, 31, 4095, 4096, 4899])
def test_rank_flags_scores_that_are_not_finite_by_themselves(host, cell: int) -> None:
    maps, scores = np.zeros((1, 5, 5), np.float32), np.zeros((1, 70, 70), np.float32)
    scores.ravel()[cell] = np.inf
    indices, status = np.full((1, 4900), -1, np.int32), np.full(1, -1, np.int32)
    pointers = [array.ctypes.data for array in (maps, scores, indices, status)]
    launch(host, "saccade_rank", Select(*pointers, 1, 5, 70, 70, 4900, 0), order=2)
    assert status.tolist() == [1]
    assert indices[0].tolist() == list(range(4900))


# Gather


@MANY
@given(seeds, grids, st.integers(1, 6), st.integers(1, 9), layouts, st.booleans(), st.data(), orders)
def test_gather_has_the_bits_of_the_reference(host, rng, grid, patch, dim, layout, bgr, data, order) -> None:
    remainder = data.draw(st.tuples(st.integers(0, patch - 1), st.integers(0, patch - 1)))
    batch, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, grid[0] * grid[1]))
    shape = (grid[0] * patch + remainder[0], grid[1] * patch + remainder[1])
    images = [layout(random_image(rng, *shape)) for _ in range(batch)]
    positions = random_floats(rng, grid[0] * grid[1], dim)
    indices = np.stack([random_cells(rng, grid, k) for _ in range(batch)])
    patches, kept = gather(host, images, TABLE, positions, indices, patch, grid, bgr=bgr, order=order)
    for i, image in enumerate(images):
        rgb = image[..., ::-1] if bgr else image
        assert_same_bits(patches[i], reference.gather_patches(rgb, TABLE, indices[i], patch, grid))
        assert_same_bits(patches[i], kernels.gather_patches(rgb, TABLE, indices[i], patch, grid))
        assert_same_bits(kept[i], reference.gather_positions(positions, indices[i]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gather_from_a_large_crop_copies_values_of_either_width(host, dtype: type) -> None:
    rng, grid = np.random.default_rng(4), (74, 74)
    image = random_image(rng, 1100, 1300)[31 : 31 + 1036, 77 : 77 + 1036]
    indices, positions = random_cells(rng, grid, 547)[None], random_floats(rng, 74 * 74, 768).astype(dtype)
    patches, kept = gather(host, [image], TABLE.astype(dtype), positions, indices, 14, grid)
    assert_same_bits(patches[0], reference.gather_patches(image, TABLE, indices[0], 14, grid).astype(dtype))
    assert_same_bits(kept[0], positions[indices[0]])


# Fill


@MANY
@given(seeds, grids.filter(lambda grid: grid[0] * grid[1] >= 5), st.integers(1, 130), st.data(), orders)
def test_fill_has_the_bits_of_the_reference(host, rng, grid, channels, data, order) -> None:
    cells, batch = grid[0] * grid[1], data.draw(st.integers(1, 3))
    k = data.draw(st.integers(5, cells) | st.just(cells))
    indices = np.stack([random_cells(rng, grid, k) for _ in range(batch)])
    tokens = random_floats(rng, batch, k, channels)
    ours = fill(host, tokens, indices, grid, order=order)
    for i in range(batch):
        assert_same_bits(ours[i], reference.fill(tokens[i], indices[i], grid))
        assert_same_bits(ours[i], kernels.fill(tokens[i], indices[i], grid))


@MANY
@given(seeds, grids, st.integers(5, 40), orders)
def test_fill_with_repeated_cells_has_the_bits_of_the_reference(host, rng, grid, k, order) -> None:
    indices = rng.integers(0, grid[0] * grid[1], (1, k), dtype=np.int32)
    tokens = random_floats(rng, 1, k, 3)
    assert_same_bits(fill(host, tokens, indices, grid, order=order)[0], reference.fill(tokens[0], indices[0], grid))


@pytest.mark.parametrize(
    ("grid", "k", "channels"),
    [((37, 37), 136, 768), ((74, 74), 547, 33), ((3, 600), 5, 65), ((60, 60), 3600, 2), ((148, 148), 2190, 2),
     ((1, 65536), 5, 1), ((65536, 1), 1030, 1)],
)  # fmt: skip
def test_fill_of_a_large_grid_has_the_bits_of_the_cpu_kernel(host, grid, k, channels) -> None:
    rng = np.random.default_rng(5)
    tokens, indices = random_floats(rng, k, channels), random_cells(rng, grid, k)
    assert_same_bits(fill(host, tokens[None], indices[None], grid)[0], kernels.fill(tokens, indices, grid))


@ORDERS
def test_fill_of_patches_crowded_in_a_corner_has_the_bits_of_the_reference(host, order: int) -> None:
    rng, grid = np.random.default_rng(6), (50, 60)
    indices = (np.arange(8)[:, None] * 60 + np.arange(8)).ravel().astype(np.int32)
    tokens = random_floats(rng, len(indices), 4)
    ours = fill(host, tokens[None], indices[None], grid, order=order)
    assert_same_bits(ours[0], reference.fill(tokens, indices, grid))


# What the compilers say


def test_launch_header_is_plain_cpp(tmp_path: Path) -> None:
    source = tmp_path / "caller.cpp"
    source.write_text('#include "launch.hpp"\nint main() { return 0; }\n')
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run(["g++", *flags, INCLUDES[0], source], check=True)


def run_make(*settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", "cuda", *settings], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_without_nvcc_says_so_in_one_line() -> None:
    done = run_make("NVCC=no-such-compiler")
    assert done.returncode == 0
    assert done.stdout == "no-such-compiler is not here, so the CUDA kernels are not compiled; they need CUDA toolkit 13.0\n"


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")


@needs_nvcc
@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda path: path.name)
def test_each_source_compiles_alone_and_contracts_nothing(source: Path, tmp_path: Path) -> None:
    ptx = tmp_path / "kernels.ptx"
    flags = ["-std=c++17", "-fmad=false", "-Werror", "all-warnings", "-arch=compute_75", "-ptx"]
    subprocess.run(["nvcc", *flags, *INCLUDES, "-o", ptx, source], check=True, env=os.environ)
    code = ptx.read_text()
    assert re.search(r"\.entry saccade_\w+", code)
    # One rounding for a*b+c, flushed denormals or approximate division and root would give other bits than the CPU.
    assert re.findall(r"fma\.\S+|\S+\.ftz\S*|\S+\.approx\S*", code) == []


@needs_nvcc
def test_fatbin_is_built_without_contraction(tmp_path: Path) -> None:
    recipe = run_make("--dry-run", f"FATBIN={tmp_path / 'saccade.fatbin'}").stdout
    assert "-fmad=false" in recipe
    assert "fast-math" not in recipe


def test_fatbin_is_compiled_again_for_other_architectures_and_by_another_compiler_alone(tmp_path: Path) -> None:
    (tmp_path / "fatbins").mkdir()
    fatbin, runs = tmp_path / "fatbins" / "saccade.fatbin", tmp_path / "runs"
    for name in ("nvcc-12", "nvcc-13"):
        compiler = tmp_path / name
        compiler.write_text(f'#!/bin/sh\necho {name} "$@" >> {runs}\ntouch {fatbin}\n')
        compiler.chmod(0o755)
    for nvcc, more in (("nvcc-13", []), ("nvcc-13", []), ("nvcc-13", ["CUDA_ARCHITECTURES=87"]), ("nvcc-12", [])):
        for _ in range(2):
            done = run_make(f"FATBIN={fatbin}", f"NVCC={tmp_path / nvcc}", *more)
            assert done.returncode == 0, done.stderr
    compiled = [(line.split()[0], "sm_87" in line, "sm_90" in line) for line in runs.read_text().splitlines()]
    assert compiled == [("nvcc-13", True, True), ("nvcc-13", True, False), ("nvcc-12", True, True)]


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """Build the fatbin and return what ptxas says of each kernel, by (kernel, architecture)."""
    fatbin = tmp_path_factory.mktemp("fatbin") / "saccade.fatbin"
    done = run_make(f"FATBIN={fatbin}")
    assert done.returncode == 0, done.stderr
    assert fatbin.stat().st_size > 10_000
    report = (fatbin.parent / "ptxas.txt").read_text()
    found = re.findall(r"entry function '(\w+)' for '(\w+)'\n(.*\n.*\n.*)", report)
    return {(kernel, architecture): text for kernel, architecture, text in found}


@needs_nvcc
def test_fatbin_holds_the_kernels_of_the_header_for_every_architecture(resources) -> None:
    architectures = {f"sm_{number}" for number in (75, 80, 86, 87, 89, 90, 100, 120)}
    names = re.findall(r'= "(saccade_\w+)";', (SOURCES / "launch.hpp").read_text())
    assert len(names) == 8
    assert set(resources) == {(name, architecture) for name in names for architecture in architectures}


@needs_nvcc
def test_no_kernel_spills_or_needs_more_than_any_gpu_has(resources) -> None:
    for key, text in resources.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in text, key
        (registers,) = re.findall(r"Used (\d+) registers", text)
        assert int(registers) * 1024 <= 65536, key
        assert all(int(size) <= 49152 for size in re.findall(r"(\d+) bytes smem", text)), key
