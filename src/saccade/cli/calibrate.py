"""Calibration for the command convert: which images, and the scales that the chain's own inputs give on them."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.cli import options as shared
from saccade.cli.console import Phases, progress_bar
from saccade.cli.convert import FEW_IMAGES, LEAST_IMAGES
from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.export.calibration import Statistics, channel_maxima
from saccade.export.quantization import round_weights
from saccade.export.smoothing import write_smoothed
from saccade.export.variants import VARIANTS_OF, Scales, write_variant
from saccade.validate.backbone_gate import BackboneJudge
from saccade.validate.gate import Judge, Trial

# What calibration takes, in runs of the fp32 chain on one image: for each image (both passes of each graph, histograms,
# covariances), for rounding the weights, and for each case of a trial. Measured on a ViT-B at 518 px, where 16 and 64
# images gave 12 to 18, 195 to 220 and 2.
RUNS_AN_IMAGE, RUNS_TO_ROUND, RUNS_A_TRIAL = 14, 200, 2
HELD_OUT_SHARE, MAX_HELD_OUT = 8, 16  # every eighth image judges what the others have calibrated, sixteen at most
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Images:
    """The images of a folder: those to calibrate on, and those held out to judge by."""

    calibrating: tuple[Path, ...]
    held_out: tuple[Path, ...]


def find_images(judge: Judge | BackboneJudge, folder: Path, most: int, phases: Phases) -> Images:
    """Return the folder's images in two sets, `most` of them in all; what cannot be read is left out aloud."""
    phases("look through the images")
    paths = shared.image_paths(folder, "--calibration")
    readable: list[Path] = []
    left_out = 0
    for path in paths:
        if len(readable) == most:
            phases.note(f"using {most} of {counted(len(paths), 'image')}; --max-images takes more")
            break
        try:
            judge.reference.pixels(path)
            readable.append(path)
        except SaccadeError as error:
            left_out += 1
            phases.note(f"warning: left out {error}")
    if left_out:
        phases.note(f"warning: {left_out} of {counted(len(paths), 'image')} cannot be used")
    if len(readable) < LEAST_IMAGES:
        raise SaccadeError(
            f"--calibration {folder}: {counted(len(readable), 'readable image')} of {len(paths)}; "
            f"give at least {LEAST_IMAGES}, better {FEW_IMAGES}"
        )
    if len(readable) < FEW_IMAGES:
        phases.note(f"warning: {len(readable)} images are few; ranges settle from about {FEW_IMAGES}")
    return split(readable)


def split(paths: Sequence[Path]) -> Images:
    """Hold out every eighth image, spread over the folder: two at least, sixteen at most."""
    count = min(MAX_HELD_OUT, max(2, len(paths) // HELD_OUT_SHARE))
    held_out = {paths[len(paths) * index // count] for index in range(count)}
    return Images(tuple(path for path in paths if path not in held_out), tuple(sorted(held_out)))


@dataclass(frozen=True)
class Calibrated:
    """For each role: the smoothed fp32 graph, the method chosen for it and its scales; and every method's numbers."""

    graphs: dict[str, Path]
    scales: dict[str, Scales]
    methods: dict[str, str]
    trials: tuple[Trial, ...]
    images: int  # calibrated on


@dataclass(frozen=True)
class Calibrator:
    """Smooths each graph, gathers statistics on the chain's own inputs, and chooses its method by the cases."""

    judge: Judge | BackboneJudge
    images: Sequence[Path]
    cases: Sequence[Any]  # the judge's own kind: images that calibration does not see: those held out, and the golden ones
    precision: str
    methods: Sequence[str]
    folder: Path  # for graphs on the way
    phases: Phases

    def run(self) -> Calibrated:
        """Return the sources of every role's variants."""
        graphs: dict[str, Path] = {}
        scales: dict[str, Scales] = {}
        chosen: dict[str, str] = {}
        trials: list[Trial] = []
        for role in self.judge.roles:
            source, graphs[role] = self.judge.graph_path(role), self.folder / f"{role}.smoothed.onnx"
            with self._feeds(role, "channel ranges") as feeds:
                maxima = channel_maxima(source, feeds)
            write_smoothed(source, graphs[role], maxima)
            with self._feeds(role, "statistics") as feeds:
                statistics = Statistics(graphs[role], feeds)
            self.phases(f"{role}: round the weights")
            weights = round_weights(graphs[role], self.precision, statistics.covariances)
            tried = {method: Scales(statistics.ranges(method), weights) for method in self.methods}
            judged = [self._try(role, method, graphs[role], each) for method, each in tried.items()]
            chosen[role] = min(judged, key=lambda trial: trial.score).name
            scales[role] = tried[chosen[role]]
            trials += judged
        return Calibrated(graphs, scales, chosen, tuple(trials), len(self.images))

    def work(self) -> int:
        """Return about how long `run` and what follows take, in runs of the fp32 chain on one image."""
        trials = len(self.cases) * len(self.judge.roles) * len(self.methods)
        return RUNS_AN_IMAGE * len(self.images) + RUNS_TO_ROUND + RUNS_A_TRIAL * trials

    def _try(self, role: str, method: str, source: Path, scales: Scales) -> Trial:
        """Write one candidate and judge it, of LookWhere beside the fp32 graph of the other role."""
        self.phases(f"{role}: try {method}")
        candidate = self.folder / f"{role}.{method}.onnx"
        write_variant(source, candidate, VARIANTS_OF[self.precision][0], scales)
        try:
            return self.judge.try_one(role, method, candidate, self.cases, self.precision)
        finally:
            candidate.unlink()

    @contextlib.contextmanager
    def _feeds(self, role: str, purpose: str) -> Iterator[Iterator[Feed]]:
        """Yield the chain's own inputs of one graph, image by image, under a progress bar."""
        self.phases(f"{role}: {purpose}")
        with progress_bar(len(self.images), f"{role}: {purpose}") as bar:

            def feeds() -> Iterator[Feed]:
                for path in self.images:
                    yield self.judge.feed(role, path)
                    bar.update(1)

            yield feeds()
