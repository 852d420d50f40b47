"""Features of image files for an evaluation: from one source, prepared as the protocol says, kept on disk."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from saccade.errors import EngineError, SaccadeError
from saccade.validate import features
from saccade.validate.features import Features
from saccade.validate.preparation import Preparation
from saccade.validate.sources import Source, streamed

Reduce = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Bar = Callable[..., AbstractContextManager[Any]]  # a progress bar of a total, a label and perhaps a unit: tqdm's


@dataclass
class Extractor:
    """Extracts features of files from one source and keeps them below `root`: what is there is not done again.

    `timed_call` runs the source on one image as the last extraction did; None before the first. `failed` are the images that
    no extraction could read, and why.
    """

    source: Source
    root: Path
    bar: Bar
    batch: int = 8
    workers: int = 2
    timed_call: Callable[[], object] | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def __call__(
        self,
        images: Sequence[Path],
        prepare: Preparation,
        outputs: Sequence[str],
        *,
        label: str = "features",
        reduce: Reduce | None = None,
    ) -> Features:
        """Return `outputs` of the images, row i belonging to `names[i]` of the result; unreadable images have no row.

        `reduce`, a function of a module, makes of a batch's outputs what is kept: its name becomes part of the recipe.
        Raises SaccadeError where the model has no such output and where no image can be read.
        """
        source = self.source
        missing = [name for name in outputs if name not in source.outputs]
        if missing:
            raise SaccadeError(f"{source.label} gives no {missing[0]}; it gives {', '.join(source.outputs)}")
        decoding = {"preparation": repr(prepare), "pillow": PIL.__version__}
        recipe = {**source.recipe, **decoding, "reduce": reduce.__qualname__ if reduce else ""}

        def stream(batches: Iterable[list[np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
            for found in streamed(source, batches, outputs):
                yield reduce(found) if reduce else found

        self._remember(images, prepare, outputs)
        with self._named(), self.bar(len(images), f"{source.label}: {label}") as bar:
            found = features.extract(
                images, self.root, recipe, decode=prepare, stream=stream, outputs=None if reduce else outputs,
                batch=self.batch, workers=self.workers, progress=lambda done: bar.update(done - bar.n),
                sized=lambda size: bar.set_postfix_str(f"{size / 1e9:.2f} GB on disk"),
            )  # fmt: skip
        self.failed |= found.failed
        return found

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say of an engine's own failure which of the sides it is."""
        try:
            yield
        except EngineError as error:
            raise EngineError(f"{self.source.label}: {error}") from error

    def _remember(self, images: Sequence[Path], prepare: Preparation, outputs: Sequence[str]) -> None:
        """Keep how to run one image, the first that can be read."""
        for path in images:
            with contextlib.suppress(SaccadeError):
                pixels = prepare(path)
                self.timed_call = functools.partial(self.source.run, [pixels], outputs)
                return
