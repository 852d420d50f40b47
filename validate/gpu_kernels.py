"""The CUDA kernels on the GPU against the NumPy reference, with random inputs: `python -m saccade.validate.gpu_kernels`.

Needs neither torch nor an engine, so that compute-sanitizer can watch it.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saccade.engines.device_engine import rounded
from saccade.errors import SaccadeError
from saccade.runtime import kernels, launch, reference
from saccade.runtime.cuda_device import CudaDevice
from saccade.runtime.device import Device, Memory
from saccade.runtime.gpu_frames import uploaded
from saccade.runtime.launch import FillParams, GatherParams, ImageView, Params, PreprocessParams, SelectParams
from saccade.validate.libcuda import LibCuda

TABLE = reference.normalization_table((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Grids of 518, 1036 and 2072 px, and shapes that divide nothing.
GRIDS = (((37, 37), 136), ((74, 74), 547), ((148, 148), 2190), ((19, 53), 1007), ((1, 300), 5))
SMALL_GRIDS = (((37, 37), 136), ((19, 53), 1007))  # where a sanitizer makes everything a hundred times slower


def open_device(index: int = 0) -> CudaDevice:
    """Return a GPU through cuda-python, or through ctypes where that is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        driver = LibCuda()
    return CudaDevice(index, launch.read_fatbin(), driver)


class Bench:
    """Runs one kernel on arrays of the host."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.create_stream()

    def close(self) -> None:
        """Destroy the stream."""
        self.device.destroy_stream(self.stream)

    def up(self, array: np.ndarray) -> Memory:
        """Copy an array to the device."""
        return uploaded(self.device, np.ascontiguousarray(array), self.stream)

    def views(self, images: Sequence[Memory], shape: tuple[int, ...]) -> Memory:
        """Describe packed images of one shape to the kernels."""
        each = [bytes(ImageView(image.address, 3 * shape[1], shape[0], shape[1])) for image in images]
        return self.up(np.frombuffer(b"".join(each), np.uint8))

    def down(self, memory: Memory, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Copy a result to the host."""
        result = np.empty(shape, dtype)
        self.device.copy_out(result.ctypes.data, memory.address, result.nbytes, self.stream)
        self.device.synchronize(self.stream)
        return result

    def launch(self, kernel: str, params: Params, shape: launch.Launch) -> None:
        """Launch a kernel."""
        self.device.launch(kernel, params, shape, self.stream)


def check_preprocess(bench: Bench, random: np.random.Generator, grid: tuple[int, int], k: int) -> bool:
    """Compare the preprocessing kernels."""
    shape, size = (14 * grid[0] + 3, 14 * grid[1] + 1, 3), 154
    images = random.integers(0, 256, (2, *shape), np.uint8)
    expected = np.stack([reference.lowres_from_image(image, TABLE, size) for image in images])
    there = [bench.up(image) for image in images]
    views, table, equal = bench.views(there, shape), bench.up(TABLE), True
    for name, kernel in launch.PREPROCESS.items():
        truth = rounded(expected, name)
        out = bench.up(np.zeros_like(truth))
        params = PreprocessParams(views.address, table.address, out.address, 2, size)
        bench.launch(kernel, params, params.launch)
        equal &= np.array_equal(bench.down(out, truth.shape, truth.dtype), truth)
    return equal


def check_select(bench: Bench, random: np.random.Generator, grid: tuple[int, int], k: int) -> bool:
    """Compare resize and ranking: smooth scores, ties, and an image that is not finite between two that are."""
    maps = random.standard_normal((4, 44, 44), np.float32)
    maps[1] = random.integers(-2, 3, (44, 44))
    maps[2, random.integers(44), random.integers(44)] = random.choice([np.nan, np.inf, -np.inf])
    arrays = [bench.up(each) for each in _select_arrays(maps, grid, k)]
    params = SelectParams(*(each.address for each in arrays), 4, 44, *grid, k)
    bench.launch(launch.RESIZE_SCORES, params, params.launch)
    bench.launch(launch.RANK, params, params.rank_launch)
    scores = bench.down(arrays[1], (4, *grid), np.float32)
    indices, status = bench.down(arrays[2], (4, k), np.int32), bench.down(arrays[3], (4,), np.int32)
    equal = status.tolist() == [0, 0, 1, 0] and indices[2].tolist() == list(range(k))
    for i in (0, 1, 3):
        found, resized = kernels.select(maps[i], grid, k)
        equal &= np.array_equal(indices[i], found) and np.array_equal(scores[i], resized)
    return bool(equal)


def _select_arrays(maps: np.ndarray, grid: tuple[int, int], k: int) -> tuple[np.ndarray, ...]:
    batch = len(maps)
    blank = np.full((batch, *grid), np.nan, np.float32)
    return maps, blank, np.full((batch, k), -1, np.int32), np.full(batch, -1, np.int32)


def _cells(random: np.random.Generator, grid: tuple[int, int], k: int) -> np.ndarray:
    return random.permutation(grid[0] * grid[1])[:k].astype(np.int32)


def check_gather(bench: Bench, random: np.random.Generator, grid: tuple[int, int], k: int) -> bool:
    """Compare both gathers."""
    patch, dim, equal = 14, 96, True
    shape = (patch * grid[0], patch * grid[1], 3)
    image, cells = random.integers(0, 256, shape, np.uint8), _cells(random, grid, k)
    there, indices = bench.up(image), bench.up(cells)
    views = bench.views([there], shape)
    for name, dtype in (("float32", np.float32), ("float16", np.float16)):
        positions = random.standard_normal((grid[0] * grid[1], dim)).astype(dtype)
        table, rows = bench.up(TABLE.astype(dtype)), bench.up(positions)
        patches, kept = (bench.up(np.zeros((k, extent), dtype)) for extent in (3 * patch * patch, dim))
        pointers = [each.address for each in (views, table, rows, indices, patches, kept)]
        params = GatherParams(*pointers, 1, k, patch, grid[1], dim)
        bench.launch(launch.GATHER[name], params, params.launch)
        expected = reference.gather_patches(image, TABLE, cells, patch, grid).astype(dtype)
        equal &= np.array_equal(bench.down(patches, expected.shape, dtype), expected)
        equal &= np.array_equal(bench.down(kept, (k, dim), dtype), positions[cells])
    return equal


def check_fill(bench: Bench, random: np.random.Generator, grid: tuple[int, int], k: int) -> bool:
    """Compare the fill, against the CPU's kernel: NumPy takes minutes on the largest grid."""
    channels = int(random.integers(1, 200))
    tokens, cells = random.standard_normal((k, channels), np.float32), _cells(random, grid, k)
    there, indices = bench.up(tokens), bench.up(cells)
    out = bench.up(np.zeros((channels, *grid), np.float32))
    params = FillParams(there.address, indices.address, out.address, 1, k, channels, *grid)
    bench.launch(launch.FILL, params, params.launch)
    return np.array_equal(bench.down(out, (channels, *grid), np.float32), kernels.fill(tokens, cells, grid))


Check = Callable[[Bench, np.random.Generator, tuple[int, int], int], bool]
CHECKS: dict[str, Check] = {
    "preprocess": check_preprocess, "select": check_select, "gather": check_gather, "fill": check_fill,
}  # fmt: skip


def check_kernels(
    device: Device, seed: int, rounds: int, grids: Sequence[tuple[tuple[int, int], int]] = GRIDS
) -> dict[str, dict[str, Any]]:
    """Return, by kernel, how many cases were run and which of them had other bits than the reference."""
    random = np.random.default_rng(seed)
    with device.current():
        bench = Bench(device)
        found = {}
        for name, check in CHECKS.items():
            cases = [(number, grid, k) for number in range(rounds) for grid, k in grids]
            wrong = [f"{grid[0]}x{grid[1]} k {k}" for _, grid, k in cases if not check(bench, random, grid, k)]
            found[name] = {"cases": len(cases), "wrong": wrong}
        bench.close()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all kernels on small grids and say so; 1 where one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m saccade.validate.gpu_kernels", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        found = check_kernels(open_device(), options.seed, options.rounds, SMALL_GRIDS)
    except SaccadeError as error:
        print(f"saccade: {error}", file=sys.stderr)
        return 1
    for name, each in found.items():
        print(f"{name}: {each['cases']} cases, {len(each['wrong'])} wrong {' '.join(each['wrong'])}".rstrip())
    return int(any(each["wrong"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
