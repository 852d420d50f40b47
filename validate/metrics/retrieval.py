"""Image retrieval on revisited Oxford and Paris: mAP and mean precision at k for easy, medium and hard.

Mirrors PW-Self's eval_image_retrieval.py and compute_map of its utils.py, which score medium and hard; easy is the
benchmark's own third protocol.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.validate.metrics.average_precision import average_precision
from saccade.validate.metrics.checks import check_finite
from saccade.validate.metrics.neighbours import normalize_rows

KAPPAS = (1, 5, 10)  # eval_image_retrieval.py
# protocol -> (kinds that are positive, kinds that are passed over as if they were not in the database)
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class Relevance:
    """The ground truth of one query: row numbers of the database, integers (n,), as `gnd` of gnd_<dataset>.pkl has them."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray

    def rows(self, kinds: Sequence[str]) -> np.ndarray:
        """Return the rows of these kinds together, int64."""
        return np.concatenate([np.asarray(getattr(self, kind), np.int64) for kind in kinds])


@dataclass(frozen=True)
class RetrievalResult:
    """One protocol: per query the average precision (Q,) and the precision at each kappa (Q, K), in 0..1.

    A query without a positive is NaN in both and left out of the means.
    """

    ap: np.ndarray
    precision: np.ndarray

    @property
    def map(self) -> float:
        """Mean average precision over the queries that have a positive."""
        return float(np.mean(self.ap[~np.isnan(self.ap)]))

    @property
    def mean_precision(self) -> np.ndarray:
        """Mean precision at each kappa (K,) over the queries that have a positive."""
        return np.asarray(np.mean(self.precision[~np.isnan(self.ap)], axis=0))


def rank_database(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the database's rows by descending cosine, int64 (N, Q); equal cosines come lower row first.

    database (N, D) and queries (Q, D) are float32, not yet normalised.
    """
    check_finite("database", database)
    check_finite("queries", queries)
    similarities = normalize_rows(database) @ normalize_rows(queries).T
    return np.argsort(-similarities, axis=0, kind="stable")


def evaluate_retrieval(
    ranks: np.ndarray, relevance: Sequence[Relevance], protocol: str, kappas: Sequence[int] = KAPPAS
) -> RetrievalResult:
    """Score full rankings (N, Q), column q being that of query q."""
    if ranks.ndim != 2 or ranks.shape[1] != len(relevance):
        raise SaccadeError(f"retrieval: rankings have shape {ranks.shape}, ground truth has {len(relevance)} queries")
    ap = np.full(len(relevance), np.nan)
    precision = np.full((len(relevance), len(kappas)), np.nan)
    positive_kinds, junk_kinds = PROTOCOLS[protocol]
    for query, truth in enumerate(relevance):
        positives = truth.rows(positive_kinds)
        if len(positives):
            places = _places(ranks[:, query], positives, truth.rows(junk_kinds), query)
            ap[query] = average_precision(places, len(positives))
            precision[query] = _precision(places, kappas)
    if np.isnan(ap).all():
        raise SaccadeError(f"retrieval: no query has a positive image in {protocol}; look at the ground truth file")
    return RetrievalResult(ap, precision)


def _places(ranking: np.ndarray, positives: np.ndarray, junk: np.ndarray, query: int) -> np.ndarray:
    """Return the ascending 0-based places of the positives once the junk is taken out of the ranking."""
    missing = np.setdiff1d(positives, ranking)
    if len(missing):
        raise SaccadeError(f"retrieval: query {query} wants row {missing[0]}, but the database has {len(ranking)} rows")
    is_junk = np.isin(ranking, junk)
    places = np.flatnonzero(np.isin(ranking, positives))
    return places - np.cumsum(is_junk)[places]


def _precision(places: np.ndarray, kappas: Sequence[int]) -> np.ndarray:
    """Return the precision at each kappa, cut at the last positive: after it there is nothing left to find."""
    last = places[-1] + 1
    return np.array([np.count_nonzero(places < min(last, kappa)) / min(last, kappa) for kappa in kappas])
