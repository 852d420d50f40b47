"""Two selections are judged by what theory says of exact top-k under perturbed scores; nothing broken slips through."""
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saccade.validate.selection import SelectionResult, compare_selection, score_error, selection_regret

MANY = settings(deadline=None, max_examples=150)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def ranked(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k best cells by Python's own sort, ties to the lower cell."""
    values = scores.ravel().tolist()
    return np.array(sorted(range(len(values)), key=lambda cell: (-values[cell], cell))[:k], np.int32)


@st.composite
def reference_maps(draw: st.DrawFn, least: int = 1) -> np.ndarray:
    """Draw maps of any shape: smooth, with many ties, far from zero, over many magnitudes, flat."""
    rng = draw(seeds)
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)).filter(lambda grid: grid[0] * grid[1] >= least))
    normal = rng.standard_normal(shape)
    kinds = {
        "normal": normal,
        "ties": rng.choice([-1.0, -0.0, 0.0, 0.5], shape),
        "far": 1000 + 1e-3 * normal,
        "magnitudes": normal * np.exp(rng.uniform(-40, 40, shape)),
        "flat": np.full(shape, 0.1),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))].astype(np.float32)


@st.composite
def pairs(draw: st.DrawFn, least: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw a map, the same map after noise and float32 rounding, and k."""
    reference = draw(reference_maps(least))
    rng, size = draw(seeds), draw(st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 1.0, 100.0]))
    noise = size * max(float(reference.astype(np.float64).std()), 1e-30) * rng.uniform(-1, 1, reference.shape)
    return reference, (reference + noise).astype(np.float32), draw(st.integers(1, reference.size))


def compare(reference: np.ndarray, scores: np.ndarray, k: int) -> SelectionResult:
    return compare_selection(reference, ranked(reference, k), scores, ranked(scores, k))


@MANY
@given(pairs())
def test_exact_top_k_of_perturbed_scores_never_yields_an_unexplained_swap(
    pair: tuple[np.ndarray, np.ndarray, int],
) -> None:
    reference, scores, k = pair
    result = compare(reference, scores, k)
    assert (result.unexplained, result.misranked) == (0, 0)
    ours, theirs = set(ranked(scores, k).tolist()), set(ranked(reference, k).tolist())
    assert [cell for cell, _ in result.swaps] == sorted(ours ^ theirs)
    assert all(distance <= 2 for _, distance in result.swaps if np.isfinite(distance))
    assert result.overlap == len(ours & theirs) / k


@pytest.mark.parametrize(
    ("truth", "scores"), [([0, -1.9375, -9], [-1, -0.9375, -9]), ([-2, 0, -9], [-1, -1, -9])], ids=["within", "at the edge"]
)
def test_a_swap_of_almost_or_just_twice_the_error_is_explained(truth: list[float], scores: list[float]) -> None:
    result = compare(np.array([truth], np.float32), np.array([scores], np.float32), 1)
    assert len(result.swaps) == 2
    assert (result.unexplained, result.misranked) == (0, 0)


@MANY
@given(pairs(least=2), seeds)
def test_one_cell_from_outside_the_band_is_always_caught(
    pair: tuple[np.ndarray, np.ndarray, int], rng: np.random.Generator
) -> None:
    reference, scores, k = pair
    exact, kept = reference.astype(np.float64).ravel(), ranked(scores, k)
    error = np.abs(scores.astype(np.float64).ravel() - exact).max()
    outside = np.flatnonzero(np.abs(exact - np.sort(exact)[-k]) > 2 * error)
    wrong = np.setdiff1d(outside, np.union1d(kept, ranked(reference, k)))
    assume(wrong.size > 0)
    kept[rng.integers(k)] = rng.choice(wrong)
    assert compare_selection(reference, ranked(reference, k), scores, kept).unexplained > 0


@MANY
@given(pairs(least=2), seeds)
def test_a_wrong_cell_inside_a_wide_band_is_caught_by_the_engines_own_scores(
    pair: tuple[np.ndarray, np.ndarray, int], rng: np.random.Generator
) -> None:
    reference, scores, k = pair
    assume(k < reference.size)
    kept = ranked(scores, k)
    kept[rng.integers(k)] = rng.choice(np.setdiff1d(np.arange(reference.size), kept))
    assert compare_selection(reference, ranked(reference, k), scores, kept).misranked > 0


def test_dropping_the_last_patch_is_caught_although_the_score_error_explains_it() -> None:
    reference = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    scores = (reference + np.float32(0.5) * np.sin(np.arange(81, dtype=np.float32)).reshape(9, 9)).astype(np.float32)
    kept = np.append(ranked(scores, 10)[:8], ranked(scores, 10)[9])
    result = compare_selection(reference, ranked(reference, 9), scores, kept)
    assert result.unexplained == 0
    assert result.misranked == 1


@MANY
@given(reference_maps(), seeds, st.data())
def test_regret_is_zero_to_the_bit_for_the_same_set_in_any_order(
    reference: np.ndarray, rng: np.random.Generator, data: st.DataObject
) -> None:
    kept = ranked(reference, data.draw(st.integers(1, reference.size)))
    assert selection_regret(reference.astype(np.float64), kept, rng.permutation(kept)) == 0


@MANY
@given(pairs())
def test_regret_is_the_exact_ratio_and_no_more_than_the_score_error_allows(
    pair: tuple[np.ndarray, np.ndarray, int],
) -> None:
    reference, scores, k = pair
    assume(np.ptp(reference) > 1e-3 * np.abs(reference).max())
    exact = [Fraction(value) for value in reference.ravel().tolist()]
    ours, theirs = ranked(scores, k).tolist(), ranked(reference, k).tolist()
    best = sum(exact[cell] for cell in theirs)
    span = best - k * sum(exact) / len(exact)
    assume(k < reference.size and span > 0)
    expected = (best - sum(exact[cell] for cell in ours)) / span
    regret = compare(reference, scores, k).regret
    assert regret == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    error = max(abs(Fraction(a) - b) for a, b in zip(scores.ravel().tolist(), exact, strict=True))
    assert 0 <= expected <= 2 * error * len(set(theirs) - set(ours)) / span


def test_regret_grows_from_nothing_to_about_one_with_the_noise() -> None:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((37, 37)).astype(np.float32)
    noisy = [(reference + size * rng.standard_normal((37, 37))).astype(np.float32) for size in (0, 0.01, 0.3, 3, 1e4)]
    regrets = [compare(reference, scores, 136).regret for scores in noisy]
    assert regrets == sorted(regrets)
    assert regrets[0] == 0
    assert regrets[1] < 1e-3
    assert regrets[-1] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("k", [1, 81], ids=["one patch", "all patches"])
def test_the_smallest_and_the_largest_k_pass_and_have_no_regret(k: int) -> None:
    reference = np.random.default_rng(2).lognormal(0, 8, (9, 9)).astype(np.float32)
    scores = (reference * np.float32(1 + 1e-6)).astype(np.float32)
    result = compare(reference, scores, k)
    assert (result.unexplained, result.misranked, result.regret, result.overlap) == (0, 0, 0, 1)


def test_ties_at_the_cut_are_explained_but_must_go_to_the_lower_cell() -> None:
    flat = np.zeros((3, 3), np.float32)
    first, last = np.arange(4, dtype=np.int32), np.arange(5, 9, dtype=np.int32)
    assert compare_selection(flat, first, flat, first).misranked == 0
    result = compare_selection(flat, first, flat, last)
    assert (result.unexplained, result.misranked, result.regret) == (0, 4, 0)


def test_a_flat_map_has_no_error_when_equal_and_a_failing_one_when_not() -> None:
    flat = np.full((44, 44), 0.1, np.float32)
    assert score_error(flat, flat) == 0
    assert score_error(flat, np.nextafter(flat, np.float32(1))) == np.inf
    assert score_error(flat, flat + np.float32(9)) == np.inf
    assert np.isnan(score_error(flat, np.where(np.eye(44, dtype=bool), np.float32(np.nan), flat)))


def test_score_error_is_the_largest_difference_in_standard_deviations() -> None:
    reference = np.array([[0, 2], [2, 0]], np.float32)  # mean 1, deviation 1
    assert score_error(reference, reference + np.array([[0, 0.25], [-0.5, 0]], np.float32)) == 0.5


@pytest.mark.parametrize(
    "indices",
    [[5, 5, 3], [5, 3, 9], [5, 3, -1], [5, 3, 2**31 - 1], [5, 3], [5, 3, 8, 1], [9, 9, 9], []],
    ids=["twice", "one too high", "negative", "garbage", "too few", "too many", "all out of range", "none"],
)
def test_lists_that_are_no_choice_are_caught_and_do_not_crash(indices: list[int]) -> None:
    reference = np.array([[0, 1, 0.5], [3, 0.1, 5], [0.2, 0.3, 2]], np.float32)  # -1 would be the third best
    result = compare_selection(reference, ranked(reference, 3), reference, np.array(indices, np.int32))
    assert result.unexplained > 0
    assert np.isfinite([result.regret, result.overlap, result.score_error]).all()


def test_nan_scores_fail_by_the_score_error_and_explain_no_swap() -> None:
    reference = np.arange(9, dtype=np.float32).reshape(3, 3)
    broken = np.where(reference == 4, np.float32("nan"), reference)
    result = compare_selection(reference, np.array([8, 7], np.int32), broken, np.array([8, 4], np.int32))
    assert np.isnan(result.score_error)
    assert result.unexplained == 2
