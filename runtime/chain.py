"""The chain: images -> selector -> top-k gather -> extractor -> features, on whichever engine was asked for."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade.bundle import Bundle
from saccade.engines import store
from saccade.engines.engine import Engine
from saccade.errors import SaccadeError
from saccade.runtime import kernels
from saccade.runtime.images import Fit, ImageLike, as_list
from saccade.runtime.kept import check_kept, described, kept_on
from saccade.runtime.pipeline import Arrays, Clock, ImagePipeline, checked_target
from saccade.runtime.reference import not_finite

MAX_CACHED_BYTES = 64 << 20  # of position tables by grid; one at 1036 px is 17 MB, one at 2072 px 67 MB


@dataclass(repr=False)
class Look(Arrays):
    """What the selector says: B images on a grid of gh x gw cells."""

    score_map: np.ndarray  # (B, gh, gw) float32, resized to the grid
    prefix: np.ndarray  # (B, P, D) float32, the selector's cls and register rows
    raw_score_map: np.ndarray  # (B, M, M) float32, as the selector gives it
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(repr=False)
class Output(Look):
    """What the chain gives; arrays are float32 and the caller's own, `indices` are int32, best score first."""

    indices: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int32))  # (B, k), row-major cell numbers
    # (B, k, D), or (B, k, C) for segment; empty (0) where the pipeline was loaded with cls_only
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    cls: np.ndarray | None = None  # (B, D), task features
    logits: np.ndarray | None = None  # (B, C), task classify
    dense: np.ndarray | None = None  # (B, D or C, gh, gw), on request and always for segment

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is there by name, as `saccade run -o OUT.npz` writes it."""
        names = ("indices", "score_map", "prefix", "cls", "logits", "tokens", "dense")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {name: value for name, value in found.items() if value.size}


class Pipeline(ImagePipeline):
    """LookWhere's two networks, loaded on one engine. One thread at a time; `saccade.load` again for another thread."""

    def __init__(
        self,
        bundle: Bundle,
        engines: dict[str, Engine],
        receipt: store.Receipt,
        streams: int = 1,
        static_receipt: store.Receipt | None = None,
    ) -> None:
        super().__init__(bundle, engines, receipt, streams)
        self.static_receipt = static_receipt  # of the static pair that `engines` hold beside the others
        self.static_k = int(static_receipt.conditions["static_k"]) if static_receipt else None
        self.cls_only = "cls_only" in receipt.conditions
        self._selector, self._extractor = engines["selector"], engines["extractor"]

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
        self._check_dense(dense)
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
        lane = functools.partial(Pipeline.__call__, k=k, k_ratio=k_ratio, size=size, fit=fit, dense=dense)
        return self._streamed(frames, lane)

    def _twin(self) -> Pipeline:
        twin = super()._twin()
        twin._selector, twin._extractor = twin.engines["selector"], twin.engines["extractor"]
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
        self._check_dense(dense)
        check_kept(indices, len(pixels), grid, dense)
        expected = [len(pixels), self.bundle.model.prefix, self.bundle.model.dim]
        if not isinstance(prefix, np.ndarray) or prefix.dtype.kind != "f" or list(prefix.shape) != expected:
            raise SaccadeError(f"prefix must be an array of floats {expected}, got {described(prefix)}")
        empty = np.zeros((len(pixels), *grid), np.float32)
        look = Look(empty, np.ascontiguousarray(prefix, dtype=np.float32), empty)
        return self._extract(pixels, look, np.ascontiguousarray(indices, dtype=np.int32), dense, Clock())

    def _check_dense(self, dense: bool) -> None:
        if dense and self.cls_only:
            raise SaccadeError("dense output is filled from patch tokens, and there are none; load without cls_only")

    def _forced_grid(self, pixels: list[Any]) -> tuple[int, int]:
        """Return the grid of images that come as `pixels` returns them; refuse any others."""
        if not pixels:
            raise SaccadeError("no images given")
        for index, image in enumerate(pixels):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise SaccadeError(f"image {index}: must be a uint8 array (height, width, 3), got {described(image)}")
            if image.shape != pixels[0].shape:
                first, other = (f"{each.shape[1]} x {each.shape[0]} px" for each in (pixels[0], image))
                raise SaccadeError(f"images must be of one size: image 0 is {first}, image {index} is {other}; fit them")
        checked_target(pixels[0].shape[:2], self.bundle.model.patch)
        return self.grid_of(pixels[0])

    def kept(self, grid: tuple[int, int], k: int | None, k_ratio: float | None, dense: bool = False) -> int:
        """Return how many patches a run with these options keeps on a grid."""
        return kept_on(grid, self.bundle.manifest.defaults, k, k_ratio, dense)

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
