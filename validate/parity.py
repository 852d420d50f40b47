"""The five numbers that say whether an engine equals PyTorch, for one case and over all."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from saccade.errors import SaccadeError
from saccade.golden import Case, relative_difference
from saccade.runtime import kernels
from saccade.runtime.chain import FILL_NEIGHBOURS, Output, Pipeline
from saccade.validate.selection import SelectionResult, compare_selection
from saccade.validate.tolerances import FLOOR_FACTOR, TOLERANCES, Tolerance


class Measure(Struct, frozen=True):
    """One number with its bound."""

    name: str
    value: float
    bound: float
    meaning: str

    @property
    def passed(self) -> bool:
        """True where the value is finite and within the bound."""
        return bool(np.isfinite(self.value) and self.value <= self.bound)


@dataclass(frozen=True)
class CaseResult:
    """Everything measured on one case, kept for the picture and the Polygraphy files."""

    case: Case
    output: Output  # the engine running freely
    forced: Output  # the engine under the reference's selection and prefix
    selections: tuple[SelectionResult, ...]  # one per image
    measures: dict[str, float]
    free_bound: float  # bound of the free-running difference, with the noise floor and the swaps taken into account


@dataclass(frozen=True)
class ParityResult:
    """The verdict over all cases."""

    precision: str
    cases: tuple[CaseResult, ...]
    measures: tuple[Measure, ...]

    @property
    def passed(self) -> bool:
        """True where every number is within its bound."""
        return all(measure.passed for measure in self.measures)

    def summary(self) -> dict[str, object]:
        """Return the verdict as JSON-able data."""
        return {
            "passed": self.passed,
            "precision": self.precision,
            "images": sum(len(result.case.images) for result in self.cases),
            "swaps": sum(len(selection.swaps) for result in self.cases for selection in result.selections),
            "measures": {
                measure.name: {"value": measure.value, "bound": measure.bound, "passed": measure.passed}
                for measure in self.measures
            },
        }


def measure_parity(
    pipeline: Pipeline, cases: Iterable[Case], on_case: Callable[[CaseResult], None] = lambda result: None
) -> ParityResult:
    """Run the engine on every case and judge it by its precision's tolerances."""
    precision = pipeline.receipt.precision
    tolerance = TOLERANCES[precision]
    results = []
    for case in cases:
        results.append(measure_case(pipeline, case, tolerance))
        on_case(results[-1])
    if not results:
        raise SaccadeError("parity needs at least one image")
    return ParityResult(precision, tuple(results), _judge(results, tolerance))


def measure_case(pipeline: Pipeline, case: Case, tolerance: Tolerance) -> CaseResult:
    """Run the engine freely and under the reference's selection, and compare both with the reference."""
    reference = case.output
    size = (case.images.shape[1], case.images.shape[2])
    k = reference.indices.shape[1]
    images = list(case.images)
    free = pipeline(images, k=k, size=size)
    forced = pipeline.extract(images, reference.indices, reference.prefix)
    selections = tuple(
        compare_selection(reference.score_map[i], reference.indices[i], free.score_map[i], free.indices[i])
        for i in range(len(images))
    )
    distances = _free_distances(case, free)
    allowance = _swap_effect(pipeline, case, free, selections)
    bound = max(tolerance.free_running, FLOOR_FACTOR * max(case.floor.values(), default=0.0)) + allowance
    measures = {
        "score_error": max(selection.score_error for selection in selections),
        "unexplained_swaps": float(sum(selection.unexplained for selection in selections)),
        "regret": max(selection.regret for selection in selections),
        **_forced_measures(case, free, forced),
        "free_running": max(distances.values()),
    }
    return CaseResult(case, free, forced, selections, measures, bound)


def _forced_measures(case: Case, free: Output, forced: Output) -> dict[str, float]:
    """Return the cosine distances per class of token; prefix rows are the selector's, which nothing has to force."""
    patches = cosine_distances(forced.tokens, case.output.tokens)
    measures = {
        "prefix": float(cosine_distances(free.prefix, case.output.prefix).max()),
        "patches": float(patches.mean(axis=-1).max()),
        "patches_p1": float(np.percentile(patches, 99, axis=-1).max()),
    }
    if case.output.pooled.size:
        measures["cls"] = float(cosine_distances(_pooled(forced), case.output.pooled).max())
    return measures


def _pooled(output: Output) -> np.ndarray:
    pooled = output.cls if output.cls is not None else output.logits
    return np.empty((len(output.tokens), 0), np.float32) if pooled is None else pooled


def _free_distances(case: Case, free: Output) -> dict[str, float]:
    """Return the relative differences of pooled and dense features."""
    distances = {}
    if case.output.pooled.size:
        distances["pooled"] = relative_difference(_pooled(free), case.output.pooled)
    if case.output.indices.shape[1] >= FILL_NEIGHBOURS:
        grid = (case.output.score_map.shape[1], case.output.score_map.shape[2])
        distances["dense"] = relative_difference(
            _filled(free.tokens, free.indices, grid), _filled(case.output.tokens, case.output.indices, grid)
        )
    return distances


def _filled(tokens: np.ndarray, indices: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    return np.stack([kernels.fill(tokens[i], indices[i], grid) for i in range(len(tokens))])


def _swap_effect(
    pipeline: Pipeline, case: Case, free: Output, selections: Sequence[SelectionResult]
) -> float:
    """Return how far the engine's own features move when its selection is replaced by the reference's.

    An explained swap is not an error of the engine; what it moves is the model's own sensitivity. By the triangle
    inequality the free-running difference may be larger by just this.
    """
    if not any(selection.swaps for selection in selections):
        return 0.0
    pinned = pipeline.extract(list(case.images), case.output.indices, free.prefix)
    grid = (case.output.score_map.shape[1], case.output.score_map.shape[2])
    effects = [0.0]
    if case.output.pooled.size:
        effects.append(relative_difference(_pooled(free), _pooled(pinned)))
    if case.output.indices.shape[1] >= FILL_NEIGHBOURS:
        ours, theirs = _filled(free.tokens, free.indices, grid), _filled(pinned.tokens, pinned.indices, grid)
        effects.append(relative_difference(ours, theirs))
    return max(effects)


_MEANINGS = {
    "score_error": "largest score difference, share of the map's deviation",
    "unexplained_swaps": "kept patches that the score error does not explain",
    "regret": "share of the reachable score given away",
    "cls": "1 - cosine of cls (or logits), reference's selection",
    "prefix": "1 - cosine of the prefix rows",
    "patches": "1 - cosine of the patch tokens, mean, reference's selection",
    "patches_p1": "1 - cosine of the patch tokens, 1st percentile, reference's selection",
    "free_running": "relative difference of the features, own selection",
}


def _judge(results: Sequence[CaseResult], tolerance: Tolerance) -> tuple[Measure, ...]:
    """Return the worst value of each number; the free-running one is the case nearest to, or furthest over, its bound."""
    judged = []
    for name, meaning in _MEANINGS.items():
        having = [result for result in results if name in result.measures]
        if not having:
            continue
        if name == "free_running":
            worst = max(having, key=lambda result: result.measures[name] / result.free_bound)
            bound = worst.free_bound
        else:
            worst = max(having, key=lambda result: _nan_is_worst(result.measures[name]))
            bound = 0.0 if name == "unexplained_swaps" else getattr(tolerance, name)
        judged.append(Measure(name, worst.measures[name], bound, meaning))
    return tuple(judged)


def _nan_is_worst(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def cosine_distances(values: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return 1 - cosine along the last axis, in float64 and from the difference, so that tiny distances stay exact."""
    a, b = values.astype(np.float64), truths.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1, keepdims=True), np.linalg.norm(b, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(0.5 * np.sum((a / norms[0] - b / norms[1]) ** 2, axis=-1))
