"""Image retrieval on revisited Oxford and Paris by cls, with PW-Self's and DINO's preparation (eval_image_retrieval.py)."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from saccade.counted import agreeing, counted
from saccade.validate.datasets.image_folder import failed_note
from saccade.validate.datasets.revisited import Revisited, read_revisited
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.compare import groups_of
from saccade.validate.metrics.retrieval import (
    KAPPAS,
    PROTOCOLS,
    Relevance,
    RetrievalResult,
    evaluate_retrieval,
    rank_database,
)
from saccade.validate.preparation import Thumbnail
from saccade.validate.scaled_source import ScaledSource
from saccade.validate.sources import CLS

# PW-Self's README: --imsize and --multiscale of each.
SIDES = {"roxford5k": 224, "rparis6k": 512}
MULTISCALE = {"roxford5k": False, "rparis6k": True}
SCALES = (1, 1 / 2**0.5, 1 / 2)
HEADLINE = "medium"
ORDER = (HEADLINE, "hard", "easy")


class RetrievalSettings(Settings, frozen=True):
    """Options of the task."""

    dataset: Annotated[Literal["roxford5k", "rparis6k"], Meta(description="which folder of DATA")] = "roxford5k"
    side: Annotated[int, Meta(ge=0, description="images shrink to fit so many pixels (0: roxford5k 224, rparis6k 512)")] = 0
    multiscale: Annotated[
        Literal["published", "yes", "no"],
        Meta(description="mean cls of the scales 1, 1/sqrt 2 and 1/2 (published: for rparis6k alone)"),
    ] = "published"


def read(root: Path, settings: RetrievalSettings) -> Revisited:
    """Read the ground truth."""
    return read_revisited(root, settings.dataset)


def evaluate(data: Revisited, extract: Extractor, settings: RetrievalSettings) -> Outcome:
    """Rank the database for every query, by images of their own shape; what cannot be read is as if it did not exist."""
    several = settings.multiscale == "yes" or (settings.multiscale == "published" and MULTISCALE[settings.dataset])
    source = ScaledSource(extract.source, SCALES if several else SCALES[:1])
    shrink = Thumbnail(settings.side or SIDES[settings.dataset], source.shortest)
    scaled = dataclasses.replace(extract, source=source)
    database = scaled(data.database, shrink, [CLS], label="database")
    queries = scaled(data.queries, shrink, [CLS], label="queries")
    extract.timed_call = scaled.timed_call
    ranks = rank_database(np.asarray(database.arrays[CLS]), np.asarray(queries.arrays[CLS]))
    relevance = readable_relevance(data, database, queries)
    return _outcome(
        {name: evaluate_retrieval(ranks, relevance, name) for name in ORDER if _has_positives(relevance, name)},
        [Path(name).stem for name in queries.names],
        groups_of([truth.rows(PROTOCOLS[HEADLINE][0]) for truth in relevance]),
        (*data.notes, *failed_note(database, "the database"), *failed_note(queries, "the queries")),
    )


def readable_relevance(data: Revisited, database: Features, queries: Features) -> list[Relevance]:
    """Return what the readable queries look for, in rows of the readable database."""
    row_of = database.rows_of(data.database)

    def kept(rows: np.ndarray) -> np.ndarray:
        found = row_of[rows]
        return np.asarray(found[found >= 0])

    return [
        Relevance(kept(truth.easy), kept(truth.hard), kept(truth.junk))
        for path, truth in zip(data.queries, data.relevance, strict=True)
        if str(path) not in queries.failed
    ]


def _has_positives(relevance: Sequence[Relevance], protocol: str) -> bool:
    """Tell whether a protocol can be scored; the headline says itself why it cannot."""
    kinds = {"easy": ("easy",), "hard": ("hard",)}.get(protocol)
    return kinds is None or any(len(truth.rows(kinds)) for truth in relevance)


def _outcome(
    results: dict[str, RetrievalResult], queries: list[str], landmarks: np.ndarray, notes: tuple[str, ...]
) -> Outcome:
    scores = [Score(f"mAP {name}", 100 * result.map) for name, result in results.items()]
    for name, result in results.items():
        precisions = zip(KAPPAS, result.mean_precision, strict=True)
        scores += [Score(f"mP@{kappa} {name}", float(100 * precision)) for kappa, precision in precisions]
    for name in ORDER:
        unscored = int(np.isnan(results[name].ap).sum()) if name in results else len(queries)
        if unscored:
            lack = agreeing(unscored, "has no {} positive and is", "have no {} positive and are").format(name)
            notes += (f"{unscored} of {counted(len(queries), 'query', 'queries')} {lack} left out of its means",)
    details = {"ap_by_query": _by_query(results, queries)}
    return Outcome(tuple(scores), results[HEADLINE].ap, groups=landmarks, notes=notes, details=details)


def _by_query(results: dict[str, RetrievalResult], queries: list[str]) -> dict[str, Any]:
    """Return the average precision in percent of each query and protocol; None where there is none."""
    return {
        query: {name: None if np.isnan(ap) else float(100 * ap) for name, ap in zip(results, aps, strict=True)}
        for query, aps in zip(queries, zip(*(result.ap for result in results.values()), strict=True), strict=True)
    }


TASK = Task(
    "retrieval", "image retrieval by cls on revisited Oxford and Paris",
    "DATASET/gnd_DATASET.pkl\n  DATASET/jpg/NAME.jpg      (DATASET: roxford5k or rparis6k)",
    RetrievalSettings, read, evaluate, on_lookwhere=True,
)  # fmt: skip
