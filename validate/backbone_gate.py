"""Is a converted graph of a plain backbone good enough to be kept? The judge of `gate` for a bundle of one graph.

The reference is PyTorch on the bundle's golden images, and its own fp32 graph on photographs that calibration has not seen.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from saccade.backbone_golden import BackboneCase, backbone_cases_of
from saccade.bundle import BackboneModel, Bundle, Model
from saccade.runtime.backbone import BackbonePipeline
from saccade.validate.backbone_parity import BackboneResult, measure_backbone
from saccade.validate.gate import Judge, Trial, open_graph, receipt_of, trial

ROLE = "backbone"


class BackboneJudge:
    """Runs graph files of a plain backbone as they are written, in OpenVINO."""

    roles = (ROLE,)

    def __init__(self, bundle: Bundle, model: BackboneModel) -> None:
        self._bundle, self._model = bundle, model
        self._path = bundle.checked_graph(ROLE, "fp32")  # hashed once
        self.reference = self._pipeline(self._path, "fp32")

    def try_one(self, role: str, name: str, path: Path, cases: Sequence[BackboneCase], precision: str) -> Trial:
        """Judge one graph file."""
        return trial(role, name, [result.measures for result in self.judge({role: path}, cases, precision).cases])

    def judge(self, files: Mapping[str, Path], cases: Iterable[BackboneCase], precision: str) -> BackboneResult:
        """Judge a graph file as `precision`."""
        with self._pipeline(files[ROLE], precision) as pipeline:
            return measure_backbone(pipeline, cases)

    def golden_cases(self) -> list[BackboneCase]:
        """Return the bundle's own cases, whose reference is PyTorch."""
        return backbone_cases_of(self._bundle)

    def case(self, image: Path) -> BackboneCase:
        """Return what the fp32 graph gives on one image at the bundle's own size, as a case to compare with."""
        pixels = self.reference.pixels(image)
        out = self.reference(pixels[0], size=(pixels[0].shape[0], pixels[0].shape[1]))
        return BackboneCase(np.stack(pixels), out.arrays())

    def feed(self, role: str, image: Path) -> dict[str, np.ndarray]:
        """Return what the graph is fed on one image at the bundle's own size."""
        return self.reference.feed(self.reference.pixels(image))

    def graph_path(self, role: str) -> Path:
        """Return the checked fp32 graph file."""
        return self._path

    def __enter__(self) -> BackboneJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reference.close()

    def _pipeline(self, path: Path, precision: str) -> BackbonePipeline:
        engines = {ROLE: open_graph(self._bundle, ROLE, path)}
        return BackbonePipeline(self._bundle, self._model, engines, receipt_of(precision))


def open_judge(bundle: Bundle) -> Judge | BackboneJudge:
    """Return the judge of a bundle's kind of model."""
    model = bundle.manifest.model
    return Judge(bundle) if isinstance(model, Model) else BackboneJudge(bundle, model)
