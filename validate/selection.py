"""Compare two selections: how far the scores are apart, and whether that explains every patch that differs."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SelectionResult:
    """The selection of one image against the reference's."""

    score_error: float  # largest |difference| over the map, as a share of the map's standard deviation
    swaps: tuple[tuple[int, float], ...]  # (cell, distance of its score to the k-th, in score errors), one side only
    unexplained: int  # swaps further from the k-th score than twice the score error
    regret: float  # share of the reachable score that the candidate's choice gives away
    overlap: float  # share of kept cells in common


# Both maps are float32: a cell may sit on the edge of the band by the rounding of the two numbers that make the edge.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


def compare_selection(
    reference_scores: np.ndarray, reference_indices: np.ndarray, scores: np.ndarray, indices: np.ndarray
) -> SelectionResult:
    """Compare maps (gh, gw) and kept cells (k,) of one image.

    If candidate scores differ from the reference's by at most e, an exact top-k can only trade cells whose reference
    scores lie within 2e of the k-th best. A trade outside that band is a bug in ranking or indexing, at any precision.
    """
    flat = reference_scores.astype(np.float64).ravel()
    error = float(np.abs(scores.astype(np.float64).ravel() - flat).max())
    ours, theirs = set(indices.tolist()), set(reference_indices.tolist())
    threshold = flat[reference_indices[-1]]
    band = 2 * error + ROUNDING * abs(threshold)
    distances = [(cell, abs(flat[cell] - threshold)) for cell in sorted(ours ^ theirs)]
    return SelectionResult(
        score_error=error / max(float(flat.std()), np.finfo(np.float64).tiny),
        swaps=tuple((cell, float(distance / error) if error else float("inf")) for cell, distance in distances),
        unexplained=sum(distance > band for _, distance in distances) + (len(ours) != len(theirs)),
        regret=selection_regret(flat, reference_indices, indices),
        overlap=len(ours & theirs) / len(theirs),
    )


def selection_regret(reference_scores: np.ndarray, reference_indices: np.ndarray, indices: np.ndarray) -> float:
    """Return (best sum - our sum) / (best sum - k mean): 0 for the same choice, about 1 for a choice at random."""
    best, ours = reference_scores[reference_indices].sum(), reference_scores[indices].sum()
    span = best - len(reference_indices) * reference_scores.mean()
    return float((best - ours) / span) if span > 0 else 0.0
