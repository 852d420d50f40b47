"""What every pipeline of a bundle has: its engines, its images brought to size, its streams and its end."""
from __future__ import annotations

import contextlib
import copy
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
from PIL import Image

from saccade.bundle import Bundle, family_of
from saccade.engines import store
from saccade.engines.engine import Engine, load_roles
from saccade.errors import SaccadeError
from saccade.runtime import kernels
from saccade.runtime.images import FITS, Fit, ImageLike, as_list, check_size, fit_image, native_size, read_rgb
from saccade.runtime.kept import MAX_CELLS, described
from saccade.runtime.stream import in_order

Own = TypeVar("Own", bound="ImagePipeline")
Result = TypeVar("Result")


class ImagePipeline:
    """A bundle's networks, loaded on one engine. One thread at a time; `saccade.load` again for another thread."""

    def __init__(self, bundle: Bundle, engines: dict[str, Engine], receipt: store.Receipt, streams: int = 1) -> None:
        self.bundle = bundle
        self.receipt = receipt
        self.engines = engines
        self.streams = streams
        self._base_positions = bundle.positions()
        self._positions: dict[tuple[int, int], np.ndarray] = {}  # by grid
        image = bundle.manifest.image
        self._table = kernels.normalization_table(image.mean, image.std)

    def __repr__(self) -> str:
        manifest, receipt = self.bundle.manifest, self.receipt
        size = " x ".join(map(str, manifest.defaults.size))
        model = f"{self.bundle.path.name}: {family_of(manifest.model)}"
        return f"<{type(self).__name__} {model}, {receipt.engine} {receipt.precision}, {size} px by default>"

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
        unreadable: Callable[[int, SaccadeError], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield what `pixels` returns, image by image: each is decoded when it is asked for, and only one is held.

        An image that cannot be read is an error, or, where `unreadable` is given, left out and told to it by its number.
        """
        clock, given, patch = clock or Clock(), as_list(images), self.bundle.manifest.model.patch
        if not given:
            raise SaccadeError("no images given")
        target = self._target(size, fit)
        for index, image in enumerate(given):
            try:
                with clock.stage("decode"):
                    array = read_rgb(image, f"image {index}")
            except SaccadeError as error:
                if unreadable is None:
                    raise
                unreadable(index, error)
                continue
            with _named(image):
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
            return checked_target(_pair(asked), self.bundle.manifest.model.patch)
        if size is not None:
            raise SaccadeError("size and fit native exclude each other: native keeps the image's own size")
        return None

    def grid_of(self, image: np.ndarray) -> tuple[int, int]:
        """Return the (rows, columns) of patches in an image."""
        patch = self.bundle.manifest.model.patch
        return image.shape[0] // patch, image.shape[1] // patch

    def _streamed(self: Own, frames: Iterable[ImageLike], run: Callable[[Own, ImageLike], Result]) -> Iterator[Result]:
        """Yield what `run` gives for each frame, in order, as many under way as there are streams."""
        check_frames(frames)
        return self._in_lanes(frames, run)

    def _in_lanes(self: Own, frames: Iterable[ImageLike], run: Callable[[Own, ImageLike], Result]) -> Iterator[Result]:
        with contextlib.ExitStack() as stack:
            lanes = [self, *(self._twin() for _ in range(1, self.streams))]
            for twin in lanes[1:]:
                stack.callback(twin.close)
            yield from in_order(frames, [functools.partial(run, lane) for lane in lanes])

    def _twin(self: Own) -> Own:
        """Return another pipeline on the same weights, for one more thread."""
        twin = copy.copy(self)
        twin.engines = load_roles(self.engines, lambda role: self.engines[role].twin())
        twin._positions = {}  # of its own: no two threads may change one
        return twin

    def close(self) -> None:
        """Free the engines."""
        with contextlib.ExitStack() as stack:  # the second also where the first cannot be closed
            for engine in self.engines.values():
                stack.callback(engine.close)

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Arrays:
    """What a pipeline gives: shown by the types and shapes of its arrays and not by their numbers."""

    def __repr__(self) -> str:
        fields = [f"{name}={described(value)}" for name, value in vars(self).items() if isinstance(value, np.ndarray)]
        return f"{type(self).__name__}({', '.join(fields)})"


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


def checked_target(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return `size` (height, width) if the patch divides it into no more cells than are supported."""
    height, width = check_size(size, patch)
    cells = height * width // patch**2
    if cells > MAX_CELLS:
        raise SaccadeError(f"size {height}x{width} makes {cells} patches; at most {MAX_CELLS} are supported")
    return height, width


@contextlib.contextmanager
def _named(image: ImageLike) -> Iterator[None]:
    """Say which file it is that does not fit: its number says little among a folder's."""
    try:
        yield
    except SaccadeError as error:
        if not isinstance(image, (str, os.PathLike)):
            raise
        raise SaccadeError(f"{os.fspath(image)}: {error}") from error


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size as callers give it, NumPy's integers included."""
    try:
        height, width = size if isinstance(size, Sequence) else (size, size)
        return operator.index(height), operator.index(width)
    except (TypeError, ValueError) as error:
        raise SaccadeError(f"size {size!r} is neither whole pixels nor (height, width)") from error
