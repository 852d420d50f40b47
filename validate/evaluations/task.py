"""What every evaluation is: a data set that is read first, features that are extracted, a score with its samples."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from PIL import Image

from saccade.validate.extraction import Extractor
from saccade.validate.metrics.compare import Statistic

Pictures = Callable[[], Iterator[tuple[str, Image.Image]]]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a task: every field is annotated with `msgspec.Meta(description=...)` and bounds, and has a default."""


@dataclass(frozen=True)
class Score:
    """One number of an outcome."""

    name: str
    value: float
    unit: str = "%"


def mean_percent(sample_mean: np.ndarray) -> float:
    """Return the headline of samples that are hits (0 or 1) or shares: their mean in percent."""
    return float(100 * sample_mean[0])


def no_pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yield nothing."""
    return iter(())


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Of `scores` the one at `headline` is what `--compare` judges; more is better. `samples` (N,) or (N, ...) are what it is
    made of: `statistic` of their mean over N, flattened. `--compare` resamples them. Where chance begins several `runs`,
    samples are (N, runs, ...), the headline is the mean of each run's, and runs are drawn too. Where samples depend on each
    other (queries of one landmark), `groups` (N,) numbers those that belong together, and whole groups are drawn. `notes`
    count and name what is missing or left out of the data set. `details` is what JSON holds beside. `pictures` yields file
    names, relative, with the pictures to write there.
    """

    scores: tuple[Score, ...]
    samples: np.ndarray
    statistic: Statistic = mean_percent
    runs: int = 1
    groups: np.ndarray | None = None
    headline: int = 0
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    pictures: Pictures = no_pictures


@dataclass(frozen=True)
class Task:
    """One evaluation of the command line."""

    name: str
    summary: str  # one line of --help
    layout: str  # what the data folder holds, line by line
    settings: type[Settings]
    # Reads the data folder: lists files and labels, checks them, decodes no image. Raises SaccadeError.
    read: Callable[[Path, Any], Any]
    # Scores what `read` returned with features of one source.
    evaluate: Callable[[Any, Extractor, Any], Outcome]
    on_lookwhere: bool  # whether a LookWhere bundle's outputs suffice
    requires: tuple[str, ...] = ()  # modules of the extra `evaluate` that it cannot do without
    has_pictures: bool = False  # whether its outcome draws some
