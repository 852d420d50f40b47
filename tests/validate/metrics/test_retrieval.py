"""Retrieval scores as PW-Self's compute_map gives them on the golden rankings, and as rules one can check by hand."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.average_precision import average_precision
from saccade.validate.metrics.retrieval import Relevance, evaluate_retrieval, rank_database

GOLDEN = np.load(Path(__file__).parents[2] / "golden/pwself_retrieval.npz")


def golden_relevance() -> list[Relevance]:
    lists = {}
    for kind in ("easy", "hard", "junk"):
        lists[kind] = np.split(GOLDEN[f"gnd_{kind}"], GOLDEN[f"gnd_{kind}_offsets"][1:-1])
    return [Relevance(*rows) for rows in zip(lists["easy"], lists["hard"], lists["junk"], strict=True)]


def relevance(easy: tuple[int, ...] = (), hard: tuple[int, ...] = (), junk: tuple[int, ...] = ()) -> Relevance:
    return Relevance(np.array(easy, int), np.array(hard, int), np.array(junk, int))


def ranking(*rows: int) -> np.ndarray:
    return np.array(rows)[:, None]


def test_rankings_equal_the_official_ones() -> None:
    assert np.array_equal(rank_database(GOLDEN["database_features"], GOLDEN["query_features"]), GOLDEN["ranks"])


@pytest.mark.parametrize("protocol", ["medium", "hard"])
def test_scores_equal_the_official_ones(protocol: str) -> None:
    result = evaluate_retrieval(GOLDEN["ranks"], golden_relevance(), protocol, GOLDEN["kappas"].tolist())
    np.testing.assert_allclose(result.ap, GOLDEN[f"{protocol}_ap"], atol=1e-6)
    np.testing.assert_allclose(result.precision, GOLDEN[f"{protocol}_precision"], atol=1e-6)
    np.testing.assert_allclose(result.mean_precision, GOLDEN[f"{protocol}_mean_precision"], atol=1e-6)
    assert result.map == pytest.approx(float(GOLDEN[f"{protocol}_map"]), abs=1e-12)


def test_queries_without_positives_are_nan_and_left_out() -> None:
    assert np.flatnonzero(np.isnan(evaluate_retrieval(GOLDEN["ranks"], golden_relevance(), "medium").ap)).tolist() == [6]
    assert np.flatnonzero(np.isnan(evaluate_retrieval(GOLDEN["ranks"], golden_relevance(), "hard").ap)).tolist() == [2, 6]


def test_the_three_protocols_differ_in_what_is_positive_and_what_is_junk() -> None:
    truth = [relevance(easy=(0,), hard=(1,), junk=(2,))]
    ranks = ranking(2, 1, 3, 0)  # junk, hard, wrong, easy
    easy, medium, hard = (evaluate_retrieval(ranks, truth, name, [1]) for name in ("easy", "medium", "hard"))
    assert easy.ap[0] == average_precision(np.array([1]), 1)  # after the wrong one only
    assert medium.ap[0] == average_precision(np.array([0, 2]), 2)
    assert hard.ap[0] == 1
    assert [each.precision[0, 0] for each in (easy, medium, hard)] == [0, 1, 1]


@given(st.integers(1, 30), st.integers(0, 999))
def test_junk_anywhere_changes_nothing(size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    clean = random.permutation(size)
    positives = random.choice(size, random.integers(1, size + 1), replace=False)
    junk = size + np.arange(random.integers(0, 10))
    places = np.sort(random.integers(0, size + 1, len(junk)))
    soiled = np.insert(clean, places, junk)
    expected = evaluate_retrieval(clean[:, None], [relevance(easy=tuple(positives))], "medium")
    found = evaluate_retrieval(soiled[:, None], [relevance(easy=tuple(positives), junk=tuple(junk))], "medium")
    assert found.ap[0] == expected.ap[0]
    assert np.array_equal(found.precision, expected.precision)


def test_precision_is_cut_at_the_last_positive() -> None:
    result = evaluate_retrieval(ranking(0, 5, 1, 2, 3, 4), [relevance(easy=(0, 1))], "medium", [1, 2, 10])
    assert result.precision[0].tolist() == [1, 0.5, 2 / 3]


def test_no_positive_at_all_is_an_error() -> None:
    with pytest.raises(SaccadeError, match="retrieval: no query has a positive image in hard"):
        evaluate_retrieval(ranking(0, 1), [relevance(easy=(0,))], "hard")


def test_a_positive_that_the_database_lacks_is_an_error() -> None:
    with pytest.raises(SaccadeError, match="retrieval: query 0 wants row 7, but the database has 2 rows"):
        evaluate_retrieval(ranking(0, 1), [relevance(easy=(0, 7))], "easy")


def test_as_many_rankings_as_queries_are_needed() -> None:
    with pytest.raises(SaccadeError, match=r"retrieval: rankings have shape \(2, 1\), ground truth has 2 queries"):
        evaluate_retrieval(ranking(0, 1), [relevance(easy=(0,))] * 2, "easy")


@pytest.mark.parametrize("name", ["database", "queries"])
def test_features_that_are_no_numbers_are_not_ranked(name: str) -> None:
    sides = {"database": np.ones((3, 4), np.float32), "queries": np.ones((2, 4), np.float32)}
    sides[name][1, 2] = np.nan
    with pytest.raises(SaccadeError, match=f"{name}: 1 of [23] rows holds NaN or infinity"):
        rank_database(**sides)
