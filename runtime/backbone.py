"""A plain backbone: images -> one network that sees every patch -> features."""
from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import numpy as np

from saccade.bundle import BackboneModel, Bundle
from saccade.engines import store
from saccade.engines.engine import Engine
from saccade.errors import SaccadeError
from saccade.runtime import kernels
from saccade.runtime.feature_pictures import pca_colours
from saccade.runtime.images import Fit, ImageLike
from saccade.runtime.pipeline import Arrays, Clock, ImagePipeline
from saccade.runtime.positions import positions_on

LOOKWHERE_ONLY = ("k", "k_ratio", "dense")  # options of a call; a backbone's features are dense as they are
MAX_CACHED_TABLES = 8  # of positions by grid; one of a ViT-B at 518 px is 4 MB


@dataclass(repr=False)
class Features(Arrays):
    """What a backbone gives of B images on a grid of gh x gw cells; arrays are float32 and the caller's own."""

    cls: np.ndarray  # (B, D)
    tokens: np.ndarray  # (B, gh*gw, D), patches alone, row-major
    attention: np.ndarray  # (B, heads, gh*gw), cls's softmax row in the last block, at the patches
    grid: tuple[int, int]
    cls_last4: np.ndarray | None = None  # (B, 4, D), cls of the last four blocks after the final norm, earliest first
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def dense(self) -> np.ndarray:
        """The tokens as (B, D, gh, gw): a view."""
        dense: np.ndarray = self.tokens.transpose(0, 2, 1).reshape(len(self.tokens), -1, *self.grid)
        return dense

    def pca_rgb(self) -> np.ndarray:
        """Return the tokens as uint8 colours (B, gh, gw, 3): their first three principal components over all images."""
        return pca_colours(self.dense)(self.dense)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is there by name, as `saccade run -o OUT.npz` writes it."""
        names = ("cls", "tokens", "attention", "cls_last4")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class BackbonePipeline(ImagePipeline):
    """A plain backbone, loaded on one engine. One thread at a time; `saccade.load` again for another thread."""

    def __init__(
        self, bundle: Bundle, model: BackboneModel, engines: dict[str, Engine], receipt: store.Receipt, streams: int = 1
    ) -> None:
        super().__init__(bundle, engines, receipt, streams)
        self.model = model

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        **lookwhere_only: Literal[False] | None,
    ) -> Features:
        """Run on one image or several; `size` is pixels, or (height, width), by default the bundle's.

        Raises SaccadeError for images and sizes that the model cannot take, and for k, k_ratio and dense.
        """
        _refuse(lookwhere_only)
        clock = Clock()
        pixels = self.pixels(images, size, fit, clock)
        with clock.stage("normalize"):
            feed = self.feed(pixels)
        with clock.stage("backbone"):
            arrays = {name: array.copy() for name, array in self.engines["backbone"].run(feed).items()}
        return Features(grid=self.grid_of(pixels[0]), timings_ms=clock.timings_ms, **arrays)

    def feed(self, pixels: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the graph's inputs for images as `pixels` gives them."""
        return {"image": self._normalized(pixels), "positions": self._positions_on(self.grid_of(pixels[0]))}

    def stream(
        self,
        frames: Iterable[ImageLike],
        *,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "squash",
        **lookwhere_only: Literal[False] | None,
    ) -> Iterator[Features]:
        """Yield the features of each frame in order, as many of them under way as the pipeline was loaded with `streams`.

        Frames are taken as they are needed, so `frames` may be endless; sizes may change from one to the next.
        """
        _refuse(lookwhere_only)
        return self._streamed(frames, functools.partial(BackbonePipeline.__call__, size=size, fit=fit))

    def look(self, *_: object, **__: object) -> NoReturn:
        """Raise SaccadeError: only LookWhere chooses where to look."""
        raise SaccadeError("look gives LookWhere's score map, and a plain backbone has none; call the pipeline itself")

    def _normalized(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Return the images as the network sees them, (B, 3, H, W) float32."""
        stacked = np.empty((len(pixels), 3, *pixels[0].shape[:2]), np.float32)
        for image, planes in zip(pixels, stacked, strict=True):
            kernels.normalize(image, self._table, out=planes)
        return stacked

    def _positions_on(self, grid: tuple[int, int]) -> np.ndarray:
        """Return the position table on a grid, (1 + cells, D), resized once per grid while the cache has room."""
        if grid not in self._positions:
            if len(self._positions) == MAX_CACHED_TABLES:
                self._positions.pop(next(iter(self._positions)))  # the oldest
            self._positions[grid] = positions_on(
                self._base_positions, self.model.base_grid, grid, self.model.position_rule
            )
        return self._positions[grid]


def _refuse(options: Mapping[str, object]) -> None:
    """Refuse what only LookWhere takes, and what nothing takes."""
    for name, value in options.items():
        if name not in LOOKWHERE_ONLY:
            raise TypeError(f"a plain backbone takes size and fit, not {name!r}")
        if value not in (None, False):
            raise SaccadeError(f"{name} means nothing to a plain backbone, which sees every patch; leave it out")
