"""Is a converted graph good enough to be kept? Its file is run as it is written and judged by the five numbers.

The reference is PyTorch on the bundle's golden images, and the bundle's own fp32 graphs on photographs that calibration has
not seen: those graphs are PyTorch to 1e-6, and no torch is needed.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from saccade._version import VERSION
from saccade.bundle import Bundle
from saccade.contract import LOOKWHERE_ROLES
from saccade.engines import openvino
from saccade.engines.engine import Engine
from saccade.engines.store import Receipt
from saccade.golden import Case, ReferenceOutput, cases_of
from saccade.runtime.chain import Pipeline
from saccade.validate.parity import ParityResult, measure_case, measure_parity, worst
from saccade.validate.tolerances import TOLERANCES

# What a graph's candidates are compared by: the number that its output decides.
DECIDING = {"selector": "score_error", "extractor": "patches_p1", "backbone": "patches_p1"}
TOLD = {
    "selector": ("score_error", "regret", "prefix"),
    "extractor": ("cls", "patches", "patches_p1"),
    "backbone": ("cls", "patches", "patches_p1", "attention"),
}


@dataclass(frozen=True)
class Trial:
    """One candidate for one graph, by name, with the worst of each number over the cases."""

    role: str
    name: str
    measures: dict[str, float]

    @property
    def score(self) -> float:
        """The deciding number, smaller is better; NaN is worst."""
        value = self.measures[DECIDING[self.role]]
        return float("inf") if np.isnan(value) else value


class Judge:
    """Runs graph files of a bundle's two roles as they are written, in OpenVINO: it executes every type that we write."""

    roles = LOOKWHERE_ROLES

    def __init__(self, bundle: Bundle) -> None:
        bundle.model  # noqa: B018 - raises for a plain backbone, whose graph this does not judge
        self._bundle = bundle
        self._paths = {role: bundle.checked_graph(role, "fp32") for role in LOOKWHERE_ROLES}  # hashed once
        self._fp32 = {role: open_graph(bundle, role, path) for role, path in self._paths.items()}
        self.reference = self._pipeline(self._fp32, "fp32")

    def try_one(self, role: str, name: str, path: Path, cases: Sequence[Case], precision: str) -> Trial:
        """Judge one graph file beside the fp32 graph of the other role."""
        engine = open_graph(self._bundle, role, path)
        try:
            pipeline = self._pipeline(self._fp32 | {role: engine}, precision)
            found = [measure_case(pipeline, case, TOLERANCES[precision]).measures for case in cases]
        finally:
            engine.close()
        return trial(role, name, found)

    def judge(self, files: Mapping[str, Path], cases: Iterable[Case], precision: str) -> ParityResult:
        """Judge a file for each role together, as `precision`."""
        engines = {role: open_graph(self._bundle, role, files[role]) for role in self.roles}
        with self._pipeline(engines, precision) as pipeline:
            return measure_parity(pipeline, cases)

    def golden_cases(self) -> list[Case]:
        """Return the bundle's own cases, whose reference is PyTorch."""
        return cases_of(self._bundle)

    def case(self, image: Path) -> Case:
        """Return what the fp32 graphs give on one image at the bundle's own size and k, as a case to compare with."""
        pixels = self.reference.pixels(image)
        out = self.reference(pixels[0], size=(pixels[0].shape[0], pixels[0].shape[1]))
        pooled = out.cls if out.cls is not None else out.logits
        if pooled is None:
            pooled = np.empty((1, 0), np.float32)
        truth = ReferenceOutput(out.raw_score_map, out.score_map, out.prefix, out.indices, out.tokens, pooled)
        return Case(np.stack(pixels), truth)

    def feed(self, role: str, image: Path) -> dict[str, np.ndarray]:
        """Return what the fp32 chain feeds the graph of a role on one image, at the bundle's own size and k."""
        pixels = self.reference.pixels(image)
        if role == "selector":
            return {"lowres": self.reference.lowres(pixels)}
        found = self.reference(pixels[0], size=(pixels[0].shape[0], pixels[0].shape[1]))
        patches, positions = self.reference.gather(pixels, found.indices)
        return {"patches": patches, "positions": positions, "prefix": found.prefix}

    def graph_path(self, role: str) -> Path:
        """Return the checked fp32 graph file of a role."""
        return self._paths[role]

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reference.close()

    def _pipeline(self, engines: dict[str, Engine], precision: str) -> Pipeline:
        return Pipeline(self._bundle, engines, receipt_of(precision))


def open_graph(bundle: Bundle, role: str, path: Path) -> Engine:
    """Open a graph file of any variant so that it computes what is written."""
    return openvino.open_as_written(role, bundle.graph(role, "fp32"), path)


def receipt_of(precision: str) -> Receipt:
    """Return the receipt of graphs that are judged as `precision`, and of which nothing is built."""
    return Receipt(
        key="", engine="openvino", precision=precision, conditions={}, files={}, sha256={},
        realised="graphs as they are written", audit=None, seconds=0.0, saccade=VERSION,
    )  # fmt: skip


def trial(role: str, name: str, found: Sequence[Mapping[str, float]]) -> Trial:
    """Return the worst of each number that is told of a role's candidates, over what was found case by case."""
    told = [each for each in TOLD[role] if each in found[0]]
    return Trial(role, name, {each: worst(measures[each] for measures in found) for each in told})
