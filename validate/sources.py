"""Where the features of an evaluation come from: a bundle on an engine, or the checkpoint in PyTorch.

A source gives arrays of a batch of images of one size: cls (B, D), tokens (B, N, D) of every cell of the grid, attention
(B, heads, N) and cls_last4 (B, 4, D), all float32, as far as its model has them. LookWhere's tokens are filled from the kept
patches.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from saccade.bundle import Bundle, Model
from saccade.contract import EXTRAS, extras_of
from saccade.engines import store
from saccade.engines.engine import default_device
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Output, Pipeline

# Batches side by side on a CPU. One alone leaves cores waiting between the steps of a network, all the more where threads
# that decode take one of them: on two cores a folder took 69 ms an image on one lane and 45 on two (ViT-S/16, 224 px, fp32).
LANES = 2
CLS, TOKENS = "cls", "tokens"
Loaded = Pipeline | BackbonePipeline
ATTENTION, CLS_LAST4 = EXTRAS


@dataclass(frozen=True)
class Kept:
    """How many patches LookWhere keeps: a number of every grid, or a share, which follows the grid."""

    number: int | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        return f"k={self.number}" if self.ratio is None else f"k-ratio={self.ratio:g}"


class Source(Protocol):
    """What an evaluation asks for features."""

    @property
    def label(self) -> str:
        """How tables and plots name it, as "openvino int8", "openvino fp32 k=136" or "openvino fp32 k-ratio=0.1"."""

    @property
    def k(self) -> Kept | None:
        """How many patches LookWhere keeps; None for a network that sees all."""

    @property
    def patch(self) -> int:
        """Pixels of a patch's side; the sides of every image are multiples of it."""

    @property
    def outputs(self) -> Collection[str]:
        """The names of what it can give."""

    @property
    def recipe(self) -> Mapping[str, str]:
        """Everything its features depend on beside the images."""

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return these outputs of uint8 (H, W, 3) images of one size, batch axis first."""


@runtime_checkable
class StreamingSource(Source, Protocol):
    """A source that has a way to run several batches at once."""

    def stream(self, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what `run` returns for each batch, in order."""

    def rest(self) -> None:
        """Free what `stream` alone needs; another stream would open it again."""


def streamed(
    source: Source, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield these outputs of one batch after the other, several under way at once where the source has a way to."""
    if isinstance(source, StreamingSource):
        return source.stream(batches, outputs)
    return (source.run(batch, outputs) for batch in batches)


def lanes_of(engine: str, device: str | None, threads: int) -> int:
    """Return how many batches an extraction runs side by side on an engine: LANES on several cores, else 1."""
    on_cpu = default_device(engine) == "cpu" and device in (None, "cpu")
    cores = threads or len(os.sched_getaffinity(0))
    return LANES if on_cpu and cores >= LANES and "streams" in store.backend(engine).offers else 1


def outputs_of(bundle: Bundle) -> tuple[str, ...]:
    """Return what features a bundle can give; raises SaccadeError for one whose task is not features."""
    model = bundle.manifest.model
    if not isinstance(model, Model):
        return CLS, TOKENS, *extras_of(model)
    if bundle.manifest.task != "features":
        task = bundle.manifest.task
        raise SaccadeError(f"{bundle.path} is made for {task}, and evaluations read features; export with --task features")
    return CLS, TOKENS


def _recipe_of(pipeline: Loaded) -> dict[str, str]:
    """Return what the outputs of a bundle on an engine depend on: the engine, and what the runtime does around it."""
    manifest, receipt = pipeline.bundle.manifest, pipeline.receipt
    around = {
        "model": repr(manifest.model),  # with the rule by which positions are resized
        "image": repr(manifest.image),  # mean and deviation
        "positions_sha256": manifest.positions.sha256,
    }
    return {"receipt": receipt.key, **receipt.conditions, **around}


class Lanes:
    """A bundle opened a second time, with several streams: by the first extraction of a side, for all that follow."""

    def __init__(self, opened: Callable[[], Loaded]) -> None:
        self._opened = opened
        self._pipeline: Any = None
        self._stack = contextlib.ExitStack()

    def stream(self, frames: Any, **options: Any) -> Iterator[Any]:
        """Yield what a call gives for each of the frames, in order."""
        self._pipeline = self._pipeline or self._stack.enter_context(self._opened())
        running = self._pipeline.stream(frames, **options)
        # A stream that was left before its end must have ended before its engine is closed.
        return self._stack.enter_context(contextlib.closing(running))

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline = None
        self._stack.close()


class _BundleSource:
    """A bundle on an engine; with `lanes`, which sources of one engine share, several batches run at once."""

    def __init__(self, pipeline: Loaded, lanes: Lanes | None, kept: Kept | None) -> None:
        self._pipeline, self._lanes, self.k = pipeline, lanes, kept
        receipt = pipeline.receipt
        self.label = f"{receipt.engine} {receipt.precision}" + (f" {kept}" if kept else "")
        self.patch = pipeline.bundle.manifest.model.patch
        self.outputs = outputs_of(pipeline.bundle)
        self.recipe = {**_recipe_of(pipeline), **({"k": str(kept)} if kept else {})}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run a batch once and return what is asked for."""
        return self._asked(self._pipeline(images, **self._options(outputs)), outputs)

    def stream(self, batches: Iterable[list[np.ndarray]], outputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches side by side."""
        if self._lanes is None:
            yield from (self.run(batch, outputs) for batch in batches)
            return
        for found in self._lanes.stream(batches, **self._options(outputs)):  # a call takes several images as it takes one
            yield self._asked(found, outputs)

    def rest(self) -> None:
        """Close the lanes."""
        if self._lanes is not None:
            self._lanes.close()

    def _options(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the options of a call that gives these outputs."""
        return {"fit": "native"}

    def _asked(self, found: Any, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return these outputs of what a call gave."""
        arrays = found.arrays()
        return {name: arrays[name] for name in outputs}


class BackboneSource(_BundleSource):
    """A plain backbone on an engine."""

    def __init__(self, pipeline: BackbonePipeline, lanes: Lanes | None = None) -> None:
        super().__init__(pipeline, lanes, None)


class LookWhereSource(_BundleSource):
    """LookWhere on an engine, keeping some patches of every image; tokens are the dense fill, row-major."""

    def __init__(self, pipeline: Pipeline, k: Kept, lanes: Lanes | None = None) -> None:
        super().__init__(pipeline, lanes, k)
        self._kept = {"k": k.number, "k_ratio": k.ratio}

    def _options(self, outputs: Sequence[str]) -> dict[str, Any]:
        return {**self._kept, **super()._options(outputs), "dense": TOKENS in outputs}

    def _asked(self, found: Output, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        arrays = {CLS: found.cls}
        if found.dense is not None:
            arrays[TOKENS] = found.dense.reshape(*found.dense.shape[:2], -1).transpose(0, 2, 1)
        return {name: value for name in outputs if (value := arrays[name]) is not None}
