"""The six numbers that say whether a plain backbone's engine equals PyTorch, for one case and over all.

Every patch is computed on both sides, so outputs are compared as they are: nothing is selected that could differ.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.backbone_golden import BackboneCase
from saccade.errors import SaccadeError
from saccade.golden import relative_difference
from saccade.runtime.backbone import BackbonePipeline, Features
from saccade.validate.parity import Measure, Verdict, cosine_distances, nan_is_worst, nearest_bound
from saccade.validate.tolerances import BACKBONE_TOLERANCES, FLOOR_FACTOR, BackboneTolerance


@dataclass(frozen=True)
class BackboneCaseResult:
    """Everything measured on one case, kept for the pictures and the Polygraphy files."""

    case: BackboneCase
    output: Features
    measures: dict[str, float]
    difference_bound: float  # of the relative difference, with the noise floor taken into account


@dataclass(frozen=True)
class BackboneResult(Verdict[BackboneCaseResult]):
    """The verdict on a plain backbone."""


def measure_backbone(
    pipeline: BackbonePipeline,
    cases: Iterable[BackboneCase],
    on_case: Callable[[BackboneCaseResult], None] = lambda result: None,
) -> BackboneResult:
    """Run the engine on every case and judge it by its precision's tolerances."""
    precision = pipeline.receipt.precision
    tolerance = BACKBONE_TOLERANCES[precision]
    results = []
    for case in cases:
        results.append(_measure_case(pipeline, case, tolerance))
        on_case(results[-1])
    if not results:
        raise SaccadeError("parity needs at least one image")
    return BackboneResult(precision, tuple(results), _judge(results, tolerance))


def _measure_case(pipeline: BackbonePipeline, case: BackboneCase, tolerance: BackboneTolerance) -> BackboneCaseResult:
    output = pipeline(list(case.images), size=(case.images.shape[1], case.images.shape[2]))
    found = output.arrays()
    patches = cosine_distances(output.tokens, case.outputs["tokens"])
    measures = {
        "cls": float(cosine_distances(output.cls, case.outputs["cls"]).max()),
        "patches": float(patches.mean(axis=-1).max()),
        "patches_p1": float(np.percentile(patches, 99, axis=-1).max()),
        "attention": float(0.5 * np.abs(output.attention - case.outputs["attention"]).sum(axis=-1, dtype=np.float64).max()),
    }
    if output.cls_last4 is not None:
        measures["cls_last4"] = float(cosine_distances(output.cls_last4, case.outputs["cls_last4"]).max())
    distances = {name: relative_difference(found[name], truth) for name, truth in case.outputs.items()}
    bounds = {name: max(tolerance.difference, FLOOR_FACTOR * case.floor.get(name, 0.0)) for name in distances}
    measures["difference"], bound = nearest_bound(distances, bounds)
    return BackboneCaseResult(case, output, measures, bound)


_MEANINGS = {
    "cls": "1 - cosine of cls",
    "patches": "1 - cosine of the patch tokens, mean",
    "patches_p1": "1 - cosine of the patch tokens, 1st percentile",
    "cls_last4": "1 - cosine of cls in the last four blocks",
    "attention": "share of a head's attention that lies on other patches",
    "difference": "relative difference of an output in 2-norms",
}


def _judge(results: Sequence[BackboneCaseResult], tolerance: BackboneTolerance) -> tuple[Measure, ...]:
    """Return each number of the case that is nearest to, or furthest over, its bound; all are of the worst image."""
    judged = []
    for name, meaning in _MEANINGS.items():
        having = [
            (result.measures[name], result.difference_bound if name == "difference" else getattr(tolerance, name))
            for result in results
            if name in result.measures
        ]
        if having:
            value, bound = max(having, key=lambda pair: nan_is_worst(pair[0] / pair[1]))
            judged.append(Measure(name, value, bound, meaning))
    return tuple(judged)
