"""Compare two selections: how far the scores are apart, and whether that explains every patch that differs."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SelectionResult:
    """The selection of one image against the reference's."""

    score_error: float  # largest |difference| over the map, as a share of the map's standard deviation
    swaps: tuple[tuple[int, float], ...]  # (cell, distance of its score to the k-th, in score errors), one side only
    unexplained: int  # swaps further from the k-th score than twice the score error, and entries that are no choice at all
    misranked: int  # places of the candidate's list that its own scores do not give
    regret: float  # share of the reachable score that the candidate's choice gives away
    overlap: float  # share of kept cells in common


def compare_selection(
    reference_scores: np.ndarray, reference_indices: np.ndarray, scores: np.ndarray, indices: np.ndarray
) -> SelectionResult:
    """Compare maps (gh, gw) and kept cells (k,) of one image.

    If candidate scores differ from the reference's by at most e, an exact top-k can only trade cells whose reference
    scores lie within 2e of the k-th best. A trade outside that band is a bug in ranking or indexing, at any precision.
    Both maps are float32, so the differences below are rounded once each, in float64: that keeps <= true to the bit.
    A wide band hides much; that the candidate's list is the top-k of its own map needs no band (`misranked`).
    """
    flat = reference_scores.astype(np.float64).ravel()
    error = float(np.abs(scores.astype(np.float64).ravel() - flat).max())
    theirs, listed = set(reference_indices.tolist()), indices.tolist()
    ours = {cell for cell in listed if 0 <= cell < flat.size}
    threshold = flat[reference_indices].min()
    distances = [(cell, float(abs(flat[cell] - threshold))) for cell in sorted(ours ^ theirs)]
    outside = sum(not distance <= 2 * error for _, distance in distances)  # a NaN explains nothing
    return SelectionResult(
        score_error=score_error(reference_scores, scores),
        swaps=tuple((cell, distance / error if error else float("inf")) for cell, distance in distances),
        unexplained=outside + len(listed) - len(ours) + abs(len(listed) - len(theirs)),
        misranked=_misranked(scores, indices),
        regret=selection_regret(flat, reference_indices, np.array(sorted(ours), dtype=np.intp)),
        overlap=len(ours & theirs) / len(theirs),
    )


def score_error(reference_scores: np.ndarray, scores: np.ndarray) -> float:
    """Return the largest difference of two maps as a share of the reference's standard deviation; NaN where there is one.

    On a flat map any difference at all decides the whole choice, so it is infinite: beyond every bound.
    """
    truth = reference_scores.astype(np.float64)
    largest, deviation = float(np.abs(scores - truth).max()), float(truth.std())
    if deviation == 0 and largest > 0:
        return float("inf")
    return largest / deviation if deviation else largest


def _misranked(scores: np.ndarray, indices: np.ndarray) -> int:
    """Count the places where a list is not the ranking of the scores: best first, ties to the lower cell."""
    ranking = np.argsort(-scores.ravel(), kind="stable")[: len(indices)]
    return int(np.count_nonzero(ranking != indices[: len(ranking)]))


def selection_regret(reference_scores: np.ndarray, reference_indices: np.ndarray, indices: np.ndarray) -> float:
    """Return (best sum - our sum) / (best sum - k mean): 0 for the same choice, about 1 for a choice at random.

    Only what one side keeps is summed, so that the same choice in another order gives 0 to the bit. Where there is nothing
    to choose (all cells kept, a flat map) nothing can be given away.
    """
    flat = reference_scores.ravel()
    given_up = flat[np.setdiff1d(reference_indices, indices)].sum() - flat[np.setdiff1d(indices, reference_indices)].sum()
    span = flat[reference_indices].sum() - len(reference_indices) * flat.mean()
    return float(given_up / span) if span > 0 else 0.0
