"""The chain: images -> selector -> top-k gather -> extractor -> features, on whichever engine was asked for."""
from __future__ import annotations

import contextlib
import copy
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from saccade.bundle import Bundle
from saccade.engines import store
from saccade.engines.engine import Engine, load_roles
from saccade.errors import SaccadeError
from saccade.runtime import kernels
from saccade.runtime.images import FITS, Fit, ImageLike, as_list, check_size, fit_image, native_size, read_rgb
from saccade.runtime.reference import NEIGHBOURS, not_finite
from saccade.runtime.stream import in_order

MAX_CACHED_BYTES = 64 << 20  # of position tables by grid; one at 1036 px is 17 MB, one at 2072 px 67 MB
MAX_CELLS = 148 * 148  # 2072 px: what the score map of 44 x 44 can still tell apart ends long before


@dataclass
class Look:
    """What the selector says: B images on a grid of gh x gw cells."""

    score_map: np.ndarray  # (B, gh, gw) float32, resized to the grid
    prefix: np.ndarray  # (B, P, D) float32, the selector's cls and register rows
    raw_score_map: np.ndarray  # (B, M, M) float32, as the selector gives it
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Output(Look):
    """What the chain gives; arrays are float32 and the caller's own, `indices` are int32, best score first."""

    indices: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int32))  # (B, k), row-major cell numbers
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))  # (B, k, D), or (B, k, C) for segment
    cls: np.ndarray | None = None  # (B, D), task features
    logits: np.ndarray | None = None  # (B, C), task classify
    dense: np.ndarray | None = None  # (B, D or C, gh, gw), on request and always for segment

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is there by name, as `saccade run -o OUT.npz` writes it."""
        names = ("indices", "score_map", "prefix", "cls", "logits", "tokens", "dense")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Pipeline:
    """A bundle's networks, loaded on one engine. One thread at a time; `saccade.load` again for another thread."""

    def __init__(self, bundle: Bundle, engines: dict[str, Engine], receipt: store.Receipt, streams: int = 1) -> None:
        self.bundle = bundle
        self.receipt = receipt
        self.engines = engines
        self.streams = streams
        self._selector, self._extractor = engines["selector"], engines["extractor"]
        self._base_positions = bundle.positions()
        self._positions: dict[tuple[int, int], np.ndarray] = {}
        image = bundle.manifest.image
        self._table = kernels.normalization_table(image.mean, image.std)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
    ) -> Output:
        """Run the chain on one image or several.

        `k` patches are kept, or `k_ratio` of the grid's cells; `size` is pixels, or (height, width). Both default to the
        bundle's. Raises SaccadeError for images, sizes and k that the model cannot take.
        """
        clock = Clock()
        pixels = self.pixels(images, size, fit, clock)
        dense = dense or self.bundle.manifest.task == "segment"
        kept = self.kept(self.grid_of(pixels[0]), k, k_ratio, dense)
        look = self._look(pixels, clock)
        indices = self._select(look, kept, clock)
        return self._extract(pixels, look, indices, dense, clock)

    def stream(
        self,
        frames: Iterable[ImageLike],
        *,
        k: int | None = None,
        k_ratio: float | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        dense: bool = False,
    ) -> Iterator[Output]:
        """Yield the output of each frame in order, as many of them under way as the pipeline was loaded with `streams`.

        Frames are taken as they are needed, so `frames` may be endless; sizes may change from one to the next. Options are
        those of a call. For a folder of images of one size, calls with several images at once are as fast.
        """
        check_frames(frames)
        lane = functools.partial(Pipeline.__call__, k=k, k_ratio=k_ratio, size=size, fit=fit, dense=dense)
        return self._streamed(frames, lane)

    def _streamed(self, frames: Iterable[ImageLike], run: Callable[[Pipeline, ImageLike], Output]) -> Iterator[Output]:
        with contextlib.ExitStack() as stack:
            lanes = [self, *(stack.enter_context(self._twin()) for _ in range(1, self.streams))]
            yield from in_order(frames, [functools.partial(run, lane) for lane in lanes])

    def _twin(self) -> Pipeline:
        """Return another pipeline on the same weights, for one more thread."""
        twin = copy.copy(self)
        twin.engines = load_roles(self.engines, lambda role: self.engines[role].twin())
        twin._selector, twin._extractor = twin.engines["selector"], twin.engines["extractor"]
        twin._positions = {}
        return twin

    def look(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
    ) -> Look:
        """Run the selector alone and return its map, resized to the grid, and its prefix rows."""
        clock = Clock()
        pixels = self.pixels(images, size, fit, clock)
        look = self._look(pixels, clock)
        with clock.stage("select"):
            for raw, resized in zip(look.raw_score_map, look.score_map, strict=True):
                kernels.resize_scores(raw, self.grid_of(pixels[0]), out=resized)
                if not (np.isfinite(raw).all() and np.isfinite(resized).all()):
                    raise not_finite(raw)
        return look

    def extract(
        self, images: Sequence[np.ndarray], indices: np.ndarray, prefix: np.ndarray, *, dense: bool = False
    ) -> Output:
        """Run the extractor alone on given cells and prefix rows (teacher forcing).

        `images` are uint8 (H, W, 3) of one size that the patch divides; `indices` (B, k) whole numbers, each cell at most
        once in an image, as in a selection; `prefix` (B, P, D). Raises SaccadeError for anything else.
        """
        pixels: list[Any] = list(as_list(images))
        grid = self._forced_grid(pixels)
        _check_kept(indices, len(pixels), grid, dense)
        expected = [len(pixels), self.bundle.model.prefix, self.bundle.model.dim]
        if not isinstance(prefix, np.ndarray) or prefix.dtype.kind != "f" or list(prefix.shape) != expected:
            raise SaccadeError(f"prefix must be an array of floats {expected}, got {_described(prefix)}")
        empty = np.zeros((len(pixels), *grid), np.float32)
        look = Look(empty, np.ascontiguousarray(prefix, dtype=np.float32), empty)
        return self._extract(pixels, look, np.ascontiguousarray(indices, dtype=np.int32), dense, Clock())

    def _forced_grid(self, pixels: list[Any]) -> tuple[int, int]:
        """Return the grid of images that come as `pixels` returns them; refuse any others."""
        if not pixels:
            raise SaccadeError("no images given")
        for index, image in enumerate(pixels):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise SaccadeError(f"image {index}: must be a uint8 array (height, width, 3), got {_described(image)}")
            if image.shape != pixels[0].shape:
                first, other = (f"{each.shape[1]} x {each.shape[0]} px" for each in (pixels[0], image))
                raise SaccadeError(f"images must be of one size: image 0 is {first}, image {index} is {other}; fit them")
        checked_target(pixels[0].shape[:2], self.bundle.model.patch)
        return self.grid_of(pixels[0])

    def pixels(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        clock: Clock | None = None,
    ) -> list[np.ndarray]:
        """Return the images as the networks see them: uint8 (height, width, 3) RGB, all of one size.

        `clock` counts the stages decode and fit.
        """
        return list(self.each_fitted(images, size, fit, clock))

    def each_fitted(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        clock: Clock | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield what `pixels` returns, image by image: each is decoded when it is asked for, and only one is held."""
        clock, given, patch = clock or Clock(), as_list(images), self.bundle.model.patch
        if not given:
            raise SaccadeError("no images given")
        target = self._target(size, fit)
        for index, image in enumerate(given):
            with clock.stage("decode"):
                array = read_rgb(image, f"image {index}")
            if target is None or fit == "native":
                target = checked_target(native_size(array, patch, index, first=target), patch)
            with clock.stage("fit"):
                array = fit_image(array, target, fit, patch)
            yield array

    def _target(self, size: int | tuple[int, int] | None, fit: Fit) -> tuple[int, int] | None:
        """Return the (height, width) to fit images to, or None where the first image decides."""
        if fit not in FITS:
            raise SaccadeError(f"fit {fit!r} is unknown; choose from: {', '.join(FITS)}")
        if fit != "native":
            asked = self.bundle.manifest.defaults.size if size is None else size
            return checked_target(_pair(asked), self.bundle.model.patch)
        if size is not None:
            raise SaccadeError("size and fit native exclude each other: native keeps the image's own size")
        return None

    def grid_of(self, image: np.ndarray) -> tuple[int, int]:
        """Return the (rows, columns) of patches in an image."""
        patch = self.bundle.model.patch
        return image.shape[0] // patch, image.shape[1] // patch

    def kept(self, grid: tuple[int, int], k: int | None, k_ratio: float | None, dense: bool = False) -> int:
        """Return how many patches a run with these options keeps on a grid."""
        cells = grid[0] * grid[1]
        if k is not None and k_ratio is not None:
            raise SaccadeError("give k or k_ratio, not both")
        if k is None and k_ratio is None:
            k, k_ratio = self.bundle.manifest.defaults.k, self.bundle.manifest.defaults.k_ratio
        if k_ratio is not None:
            is_number = isinstance(k_ratio, (int, float, np.integer, np.floating)) and not isinstance(k_ratio, bool)
            if not is_number or not 0 < k_ratio <= 1:
                raise SaccadeError(f"k_ratio {k_ratio!r} is not a share of the patches; give more than 0 and at most 1")
            k = int(k_ratio * cells)
            if k == 0:
                raise SaccadeError(f"k_ratio {k_ratio} keeps none of this grid's {cells} patches; give a larger one, or k")
        return checked_k(k, cells, dense=dense)

    def close(self) -> None:
        """Free both engines."""
        with contextlib.ExitStack() as stack:  # the second also where the first cannot be closed
            for engine in self.engines.values():
                stack.callback(engine.close)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self, pixels: list[np.ndarray], clock: Clock) -> Look:
        with clock.stage("resize"):
            lowres = self.lowres(pixels)
        with clock.stage("selector"):
            found = self._selector.run({"lowres": lowres})
        score_map = np.empty((len(pixels), *self.grid_of(pixels[0])), np.float32)
        return Look(score_map, found["prefix"].copy(), found["score_map"].copy(), clock.timings_ms)

    def _select(self, look: Look, k: int, clock: Clock) -> np.ndarray:
        """Fill `look.score_map` and return the kept cells, (B, k) int32."""
        indices = np.empty((len(look.score_map), k), np.int32)
        grid = (look.score_map.shape[1], look.score_map.shape[2])
        with clock.stage("select"):
            for raw, resized, out in zip(look.raw_score_map, look.score_map, indices, strict=True):
                kernels.select(raw, grid, k, out=(out, resized))
        return indices

    def lowres(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Return the images as the selector sees them, (B, 3, S, S) float32, resized and normalised."""
        size = self.bundle.model.selector_size
        lowres = np.empty((len(pixels), 3, size, size), np.float32)
        for image, out in zip(pixels, lowres, strict=True):
            kernels.lowres_from_image(image, self._table, size, out=out)
        return lowres

    def gather(self, pixels: list[np.ndarray], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return patches (B, k, 3*patch*patch) and positions (B, k, D) of the cells `indices` (B, k) int32."""
        grid, model = self.grid_of(pixels[0]), self.bundle.model
        batch, k = indices.shape
        table = self._positions_on(grid)
        patches = np.empty((batch, k, 3 * model.patch**2), np.float32)
        positions = np.empty((batch, k, model.dim), np.float32)
        for i, image in enumerate(pixels):
            kernels.gather_patches(image, self._table, indices[i], model.patch, grid, out=patches[i])
            kernels.gather_positions(table, indices[i], out=positions[i])
        return patches, positions

    def _extract(
        self, pixels: list[np.ndarray], look: Look, indices: np.ndarray, dense: bool, clock: Clock
    ) -> Output:
        with clock.stage("gather"):
            patches, positions = self.gather(pixels, indices)
        with clock.stage("extractor"):
            feed = {"patches": patches, "positions": positions, "prefix": look.prefix}
            found = {name: array.copy() for name, array in self._extractor.run(feed).items()}
        out = Output(look.score_map, look.prefix, look.raw_score_map, clock.timings_ms, indices, **found)
        if dense:
            grid = self.grid_of(pixels[0])
            with clock.stage("fill"):
                out.dense = np.stack([kernels.fill(out.tokens[i], indices[i], grid) for i in range(len(indices))])
        return out

    def _positions_on(self, grid: tuple[int, int]) -> np.ndarray:
        """Return the position table on a grid as (cells, D), interpolated once per grid while the cache has room."""
        if grid not in self._positions:
            room = MAX_CACHED_BYTES - grid[0] * grid[1] * self._base_positions[0, 0].nbytes
            while self._positions and sum(table.nbytes for table in self._positions.values()) > room:
                self._positions.pop(next(iter(self._positions)))  # the oldest
            table = kernels.interpolate_positions(self._base_positions, grid)
            self._positions[grid] = table.reshape(grid[0] * grid[1], -1)
        return self._positions[grid]


class Clock:
    """Adds up milliseconds by stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as one stage."""
        start = time.perf_counter_ns()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter_ns() - start) / 1e6


def check_frames(frames: object) -> None:
    """Refuse a single image where frames are wanted: iterating over it would give its rows, or a path's letters."""
    if isinstance(frames, (str, bytes, os.PathLike, np.ndarray, Image.Image)):
        raise SaccadeError("stream takes several frames, one after the other; call the pipeline itself for one image")


def checked_k(k: int | None, cells: int, *, dense: bool) -> int:
    """Return k if that many of `cells` patches can be kept, before any network runs for nothing."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise SaccadeError(f"k {k!r} is not a whole number; this grid has {cells} patches, so give 1 to {cells}")
    if not 1 <= k <= cells:
        raise SaccadeError(f"k {k} is not to be had: this grid has {cells} patches, so give 1 to {cells}")
    if dense and k < NEIGHBOURS:
        raise SaccadeError(
            f"k {k} is too small for dense output, which blends the {NEIGHBOURS} nearest patches; "
            f"give at least {NEIGHBOURS}"
        )
    return int(k)


def checked_target(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return `size` (height, width) if the patch divides it into no more cells than are supported."""
    height, width = check_size(size, patch)
    cells = height * width // patch**2
    if cells > MAX_CELLS:
        raise SaccadeError(f"size {height}x{width} makes {cells} patches; at most {MAX_CELLS} are supported")
    return height, width


def _check_kept(indices: np.ndarray, batch: int, grid: tuple[int, int], dense: bool) -> None:
    """Refuse a list of kept cells that no selection on this grid can have given."""
    if not isinstance(indices, np.ndarray) or indices.dtype.kind not in "iu" or indices.ndim != 2 or len(indices) != batch:
        raise SaccadeError(f"indices must be an array of whole numbers [{batch}, k], got {_described(indices)}")
    cells = grid[0] * grid[1]
    checked_k(indices.shape[1], cells, dense=dense)
    if indices.min() < 0 or indices.max() >= cells:
        raise SaccadeError(f"indices must name cells of the {grid[0]}x{grid[1]} grid; give 0 to {cells - 1}")
    for index, kept in enumerate(indices):
        if len(np.unique(kept)) < len(kept):
            raise SaccadeError(f"indices of image {index} name a cell twice; give each cell once")


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size as callers give it, NumPy's integers included."""
    try:
        height, width = size if isinstance(size, Sequence) else (size, size)
        return operator.index(height), operator.index(width)
    except (TypeError, ValueError) as error:
        raise SaccadeError(f"size {size!r} is neither whole pixels nor (height, width)") from error
