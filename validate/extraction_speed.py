"""How fast features of a folder are extracted, against what the network and the decoding of images take by themselves.

All three are timed in turns in one process. The bound is a machine that never waits: the network's time of an image, and the
core-time of its decoding shared among the cores.
"""
from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.validate import features
from saccade.validate.preparation import Preparation
from saccade.validate.sources import Source, streamed

FEWEST_BATCHES = 4  # the first is the warm-up of each turn
MOST_BATCHES = 40  # more say no more, and decoded they would fill the memory


@dataclass(frozen=True)
class Speed:
    """One batch size: medians over the rounds, milliseconds of an image."""

    batch: int
    compute_ms: float
    decode_core_ms: float
    extract_ms: float
    share: float  # of the bound that extraction reaches, in each round by itself

    @property
    def images_per_second(self) -> float:
        """What extraction reaches."""
        return 1000 / self.extract_ms


def check_enough(images: int, batch: int) -> None:
    """Raise SaccadeError for too few images to tell anything at a batch size."""
    if images < FEWEST_BATCHES * batch:
        few = f"{counted(images, 'image')} {agreeing(images, 'is', 'are')} fewer than {FEWEST_BATCHES} batches of {batch}"
        raise SaccadeError(f"{few}; give more images or a smaller --batch")


def measure(
    source: Source,
    images: Sequence[Path],
    pixels: Sequence[np.ndarray],
    prepare: Preparation,
    outputs: Sequence[str],
    batch: int,
    workers: int,
    rounds: int,
) -> Speed:
    """Time one batch size on the first MOST_BATCHES of the images; `pixels` are what `prepare` makes of them."""
    check_enough(len(images), batch)
    images = images[: MOST_BATCHES * batch]
    batches = [list(pixels[start : start + batch]) for start in range(0, len(images), batch)]
    turns = []
    for _ in range(rounds):
        compute = _compute_seconds(source, batches, outputs)
        decode = _decode_core_seconds(images, prepare)
        extract = _extract_seconds(source, images, prepare, outputs, batch, workers)
        turns.append((compute, decode, extract, (compute + decode / cores()) / extract))
    compute, decode, extract, share = (statistics.median(each) for each in zip(*turns, strict=True))
    return Speed(batch, 1e3 * compute, 1e3 * decode, 1e3 * extract, share)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class _Watch:
    """Seconds of an image between the first batch and the last: opening and warming up are left out."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, float]] = []

    def mark(self, done: int) -> None:
        """Note how many images are done by now."""
        if done:
            self._marks.append((done, time.perf_counter()))

    @property
    def seconds_per_image(self) -> float:
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first)


def _compute_seconds(source: Source, batches: Sequence[list[np.ndarray]], outputs: Sequence[str]) -> float:
    watch, done = _Watch(), 0
    for found in streamed(source, batches, outputs):
        done += len(found[outputs[0]])
        watch.mark(done)
    return watch.seconds_per_image


def _decode_core_seconds(images: Sequence[Path], prepare: Preparation) -> float:
    start = time.thread_time()
    for path in images:
        prepare(path)
    return (time.thread_time() - start) / len(images)


def _extract_seconds(
    source: Source, images: Sequence[Path], prepare: Preparation, outputs: Sequence[str], batch: int, workers: int
) -> float:
    watch = _Watch()
    with tempfile.TemporaryDirectory(prefix="saccade-speed-") as folder:
        features.extract(
            images, Path(folder), {}, decode=prepare, stream=lambda batches: streamed(source, batches, outputs),
            outputs=outputs, batch=batch, workers=workers, progress=watch.mark,
        )  # fmt: skip
    return watch.seconds_per_image
