"""The CUDA kernels as a host calls them: the structs and launches of `cuda/launch.hpp`, in Python."""
from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saccade.errors import SaccadeError

FATBIN_VARIABLE = "SACCADE_FATBIN"  # names a compiled file to use in place of ours
# Where a wheel that was built after `make cuda` has it, and where `make cuda` puts it.
FATBINS = (Path(__file__).with_name("saccade.fatbin"), Path(__file__).resolve().parents[1] / "build/cuda/saccade.fatbin")
FATBIN_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
FATBIN_MAGIC = 0xBA55ED50
MIN_DRIVER = 13000  # as cuDriverGetVersion says it: CUDA 13.0, driver r580, which a fatbin of nvcc 13.0 needs

RESIZE_SCORES, RANK, FILL = "saccade_resize_scores", "saccade_rank", "saccade_fill"
# By the type of the graph's inputs; the gather copies values and knows nothing of them but their width.
PREPROCESS = {
    "float32": "saccade_preprocess_fp32", "float16": "saccade_preprocess_fp16", "bfloat16": "saccade_preprocess_bf16",
}  # fmt: skip
GATHER = {"float32": "saccade_gather_32bit", "float16": "saccade_gather_16bit", "bfloat16": "saccade_gather_16bit"}
KERNELS = (*PREPROCESS.values(), RESIZE_SCORES, RANK, *sorted(set(GATHER.values())), FILL)

THREADS = 256  # of a block, but for the ranking
RANK_CELLS, RANK_THREADS = 32, 1024
FILL_CELLS = 32


class Launch(NamedTuple):
    """A grid of (x, y, 1) blocks of `threads` threads."""

    x: int
    y: int
    threads: int


def _blocks(items: int, size: int) -> int:
    return -(-items // size)


class ImageView(ctypes.Structure):
    """One image on the device: three packed bytes a pixel, rows `row_stride` bytes apart."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("bgr", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class Params(ctypes.Structure):
    """What a kernel takes, by value: device addresses, then 32-bit numbers."""

    @property
    def launch(self) -> Launch:
        """The launch that covers these extents."""
        raise NotImplementedError


def _fields(pointers: str, numbers: str) -> list[tuple[str, Any]]:
    kinds: list[tuple[str, Any]] = [(name, ctypes.c_void_p) for name in pointers.split()]
    return kinds + [(name, ctypes.c_int32) for name in numbers.split()]


class PreprocessParams(Params):
    """Whole images (batch,) resized to `lowres` (batch, 3, size, size)."""

    _fields_ = _fields("images table lowres", "batch size")

    @property
    def launch(self) -> Launch:
        """A thread for each pixel of the output."""
        return Launch(_blocks(self.size * self.size, THREADS), self.batch, THREADS)


class SelectParams(Params):
    """Scores of `maps` (batch, map_size, map_size) on the grid, and the k best cells."""

    _fields_ = _fields("maps scores indices status", "batch map_size rows columns k unused")

    @property
    def launch(self) -> Launch:
        """A thread for each cell: the launch of the resize."""
        return Launch(_blocks(self.rows * self.columns, THREADS), self.batch, THREADS)

    @property
    def rank_launch(self) -> Launch:
        """32 warps for each 32 cells: the launch of the ranking, which has the same parameters."""
        return Launch(_blocks(self.rows * self.columns, RANK_CELLS), self.batch, RANK_THREADS)


class GatherParams(Params):
    """Patches and positions of the kept cells `indices` (batch, k)."""

    _fields_ = _fields("images table positions indices patches kept_positions", "batch k patch columns dim unused")

    @property
    def launch(self) -> Launch:
        """A block for each kept patch."""
        return Launch(self.k, self.batch, THREADS)


class FillParams(Params):
    """`tokens` (batch, k, channels) spread over all cells, `out` (batch, channels, rows, columns)."""

    _fields_ = _fields("tokens indices out", "batch k channels rows columns unused")

    @property
    def launch(self) -> Launch:
        """A block for each 32 cells."""
        return Launch(_blocks(self.rows * self.columns, FILL_CELLS), self.batch, THREADS)


def read_fatbin(places: Sequence[Path] = FATBINS) -> bytes:
    """Return the compiled kernels, or say how to compile them."""
    named = os.environ.get(FATBIN_VARIABLE)
    path = Path(named) if named else next((each for each in places if each.is_file()), places[-1])
    try:
        fatbin = path.read_bytes()
    except OSError as error:
        remedy = f"'make cuda' in the clone does it; {FATBIN_VARIABLE} may name the file"
        raise SaccadeError(f"{path}: the CUDA kernels are not compiled ({error.strerror}); {remedy}") from error
    if not _is_whole(fatbin):
        raise SaccadeError(f"{path}: no fatbin, or one that was cut; compile the kernels with 'make cuda'")
    return fatbin


def _is_whole(fatbin: bytes) -> bool:
    """Whether all is there that the header announces: the driver reads so far, and does not know how long the file is."""
    if len(fatbin) < FATBIN_HEADER.size:
        return False
    magic, _, header, content = FATBIN_HEADER.unpack_from(fatbin)
    return bool(magic == FATBIN_MAGIC and header + content <= len(fatbin))
