"""The five numbers that say whether an engine equals PyTorch, for one case and over all."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from msgspec import Struct

from saccade.errors import SaccadeError
from saccade.golden import Case, StoredCase, relative_difference
from saccade.runtime.chain import Output, Pipeline
from saccade.runtime.reference import NEIGHBOURS, fill
from saccade.validate.selection import SelectionResult, compare_selection, score_error
from saccade.validate.tolerances import FLOOR_FACTOR, TOLERANCES, Tolerance


class Measure(Struct, frozen=True):
    """One number with its bound."""

    name: str
    value: float
    bound: float
    meaning: str

    @property
    def passed(self) -> bool:
        """True where the value is within the bound, and both are numbers."""
        return bool(np.isfinite(self.value) and np.isfinite(self.bound) and self.value <= self.bound)


class Measured(Protocol):
    """Whatever was measured on one case."""

    @property
    def case(self) -> StoredCase:
        """The images with the reference's outputs."""


AnyCaseResult = TypeVar("AnyCaseResult", bound=Measured)


@dataclass(frozen=True)
class Verdict(Generic[AnyCaseResult]):
    """The verdict over all cases, of LookWhere or of a plain backbone."""

    precision: str
    cases: tuple[AnyCaseResult, ...]
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
            "measures": {
                measure.name: {
                    "value": _number(measure.value), "bound": _number(measure.bound), "passed": measure.passed
                }
                for measure in self.measures
            },
        }


@dataclass(frozen=True)
class CaseResult:
    """Everything measured on one case, kept for the picture and the Polygraphy files."""

    case: Case
    output: Output  # the engine running freely
    forced: Output  # the engine under the reference's selection and prefix
    selections: tuple[SelectionResult, ...]  # one per image
    measures: dict[str, float]
    free_bound: float  # bound of the free-running difference, with the noise floor taken into account
    swap_effect: float  # how far the explained swaps moved the features; told, not judged


@dataclass(frozen=True)
class ParityResult(Verdict[CaseResult]):
    """The verdict on LookWhere's chain."""

    def summary(self) -> dict[str, object]:
        """Return the verdict as JSON-able data."""
        return super().summary() | {
            "swaps": sum(len(selection.swaps) for result in self.cases for selection in result.selections),
            "swap_effect": _number(worst(result.swap_effect for result in self.cases)),
        }


def _number(value: float) -> float | None:
    """Return what JSON can hold: it has no NaN and no infinity."""
    return value if np.isfinite(value) else None


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
    images, k = list(case.images), reference.indices.shape[1]
    dense = k >= NEIGHBOURS and not pipeline.cls_only
    free = pipeline(images, k=k, size=(case.images.shape[1], case.images.shape[2]), dense=dense)
    forced = pipeline.extract(images, reference.indices, reference.prefix)
    pinned = free
    if not np.array_equal(free.indices, reference.indices):
        pinned = pipeline.extract(images, reference.indices, free.prefix, dense=dense)
    selections = tuple(
        compare_selection(reference.score_map[i], reference.indices[i], free.score_map[i], free.indices[i])
        for i in range(len(images))
    )
    raw_errors = map(score_error, reference.raw_score_map, free.raw_score_map)  # a small grid samples only part of it
    measures = {
        "score_error": worst([*raw_errors, *(selection.score_error for selection in selections)]),
        "unexplained_swaps": float(sum(selection.unexplained + selection.misranked for selection in selections)),
        "regret": worst(selection.regret for selection in selections),
        **_forced_measures(case, free, forced),
    }
    measures["free_running"], bound = _free_running(case, _free_distances(case, free, pinned), tolerance)
    effect = worst([0.0, *_swap_effects(free, pinned).values()])
    return CaseResult(case, replace(free, dense=None), forced, selections, measures, bound, effect)


def _forced_measures(case: Case, free: Output, forced: Output) -> dict[str, float]:
    """Return the cosine distances per class of token; prefix rows are the selector's, which nothing has to force."""
    measures = {"prefix": float(cosine_distances(free.prefix, case.output.prefix).max())}
    if forced.tokens.size:  # else the engine gives cls alone
        patches = cosine_distances(forced.tokens, case.output.tokens)
        measures["patches"] = float(patches.mean(axis=-1).max())
        measures["patches_p1"] = float(np.percentile(patches, 99, axis=-1).max())
    if case.output.pooled.size:
        measures["cls"] = float(cosine_distances(_pooled(forced), case.output.pooled).max())
    return measures


def _pooled(output: Output) -> np.ndarray:
    pooled = output.cls if output.cls is not None else output.logits
    return np.empty((len(output.tokens), 0), np.float32) if pooled is None else pooled


def _free_distances(case: Case, free: Output, pinned: Output) -> dict[str, float]:
    """Return the relative differences of all features; unlike cosines they see a wrong scale.

    An image whose list of patches differs from the reference's is judged by `pinned`, its own prefix under the
    reference's list. What near ties move is the model's own sensitivity, judged by the swaps and the regret; tokens of
    other patches cannot be compared, and even two near ties in the other order decide ties of the fill.
    """
    truth = case.output
    same = (free.indices == truth.indices).all(axis=1)

    def settled(own: np.ndarray, under_reference: np.ndarray) -> np.ndarray:
        return np.where(same.reshape(-1, *[1] * (own.ndim - 1)), own, under_reference)

    distances = {"prefix": relative_difference(free.prefix, truth.prefix)}
    if free.tokens.size:
        distances["tokens"] = relative_difference(settled(free.tokens, pinned.tokens), truth.tokens)
    if truth.pooled.size:
        distances["pooled"] = relative_difference(settled(_pooled(free), _pooled(pinned)), truth.pooled)
    if free.dense is not None and pinned.dense is not None:
        grid = (truth.score_map.shape[1], truth.score_map.shape[2])
        filled = np.stack([fill(tokens, kept, grid) for tokens, kept in zip(truth.tokens, truth.indices, strict=True)])
        distances["dense"] = relative_difference(settled(free.dense, pinned.dense), filled)
    return distances


def _free_running(case: Case, distances: dict[str, float], tolerance: Tolerance) -> tuple[float, float]:
    """Return the distance nearest to, or furthest over, its bound, and that bound: each feature has its own floor."""
    floors = {"pooled": case.floor.get("pooled", 0.0), "tokens": case.floor.get("tokens", 0.0)}
    floors |= {"dense": floors["tokens"], "prefix": worst(floors.values())}
    bounds = {name: max(tolerance.free_running, FLOOR_FACTOR * floors[name]) for name in distances}
    return nearest_bound(distances, bounds)


def nearest_bound(distances: Mapping[str, float], bounds: Mapping[str, float]) -> tuple[float, float]:
    """Return the distance nearest to, or furthest over, its bound, and that bound."""
    name = max(distances, key=lambda name: nan_is_worst(distances[name] / bounds[name]))
    return distances[name], bounds[name]


def _swap_effects(free: Output, pinned: Output) -> dict[str, float]:
    """Return how far the engine's own features move when its list of patches is replaced by the reference's."""
    effects = {"pooled": relative_difference(_pooled(free), _pooled(pinned))} if _pooled(free).size else {}
    if free.dense is not None and pinned.dense is not None:
        effects["dense"] = relative_difference(free.dense, pinned.dense)
    return effects


def worst(values: Iterable[float]) -> float:
    """Return the largest value, or NaN where there is one: Python's max would lose it."""
    return float(np.max(list(values)))


_MEANINGS = {
    "score_error": "largest score difference, share of the map's deviation",
    "unexplained_swaps": "kept patches that score error and own ranking do not explain",
    "regret": "share of the reachable score given away",
    "cls": "1 - cosine of cls (or logits), reference's selection",
    "prefix": "1 - cosine of the prefix rows",
    "patches": "1 - cosine of the patch tokens, mean, reference's selection",
    "patches_p1": "1 - cosine of the patch tokens, 1st percentile, reference's selection",
    "free_running": "relative difference of the features, own selection, swaps undone",
}


def _judge(results: Sequence[CaseResult], tolerance: Tolerance) -> tuple[Measure, ...]:
    """Return the worst value of each number; the free-running one is the case nearest to, or furthest over, its bound."""
    judged = []
    for name, meaning in _MEANINGS.items():
        having = [result for result in results if name in result.measures]
        if not having:
            continue
        if name == "free_running":
            result = max(having, key=lambda result: nan_is_worst(result.measures[name] / result.free_bound))
            bound = result.free_bound
        else:
            result = max(having, key=lambda result: nan_is_worst(result.measures[name]))
            bound = 0.0 if name == "unexplained_swaps" else getattr(tolerance, name)
        judged.append(Measure(name, result.measures[name], bound, meaning))
    return tuple(judged)


def nan_is_worst(value: float) -> float:
    """Return a value to compare by, where NaN is the largest."""
    return float("inf") if np.isnan(value) else value


def cosine_distances(values: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return 1 - cosine along the last axis, in float64 and from the difference, so that tiny distances stay exact.

    A vector of zeros has no direction: it equals another one, and lies at 1, a right angle, from anything else.
    """
    (a, a_norms), (b, b_norms) = _directions(values), _directions(truths)
    with np.errstate(invalid="ignore"):
        distances = 0.5 * np.sum((a - b) ** 2, axis=-1)
    doubled = np.where((a_norms == 0) != (b_norms == 0), 2, 1)  # half of |direction - 0|^2 is 0.5
    return np.asarray(doubled * distances)


def _directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors scaled to length 1, those of zeros as they are, and their lengths."""
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=-1)
    with np.errstate(invalid="ignore"):
        return exact / np.where(norms == 0, 1.0, norms)[..., None], norms
