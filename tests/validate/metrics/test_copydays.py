"""Copydays scores as the official CopydaysDataset and score_ap_from_ranks_1 give them, and features by their formulas."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.average_precision import average_precision
from saccade.validate.metrics.copydays import (
    block_ap,
    copy_features,
    retrieve,
    same_number_positives,
    strong_positives,
    whiten,
)

GOLDEN = np.load(Path(__file__).parents[2] / "golden/pwself_copydays.npz")
ORIGINALS = len(GOLDEN["original_names"])


@pytest.mark.parametrize("case", range(10))
def test_average_precision_equals_the_official_one(case: int) -> None:
    first, last = GOLDEN["ap_ranks_offsets"][case : case + 2]
    found = average_precision(GOLDEN["ap_ranks"][first:last], int(GOLDEN["ap_positives"][case]))
    assert found == pytest.approx(float(GOLDEN["ap"][case]), abs=1e-6)


@given(st.lists(st.integers(0, 60), unique=True, max_size=20), st.integers(0, 5))
def test_average_precision_equals_the_area_of_trapezoids(ranks: list[int], never_found: int) -> None:
    places, positives = sorted(ranks), len(ranks) + never_found
    if not positives:
        return
    area = 0.0
    for found, place in enumerate(places):
        before = found / place if place else 1.0
        area += (before + (found + 1) / (place + 1)) / 2 / positives
    assert average_precision(np.array(places, int), positives) == pytest.approx(area, abs=1e-12)


def test_original_block_equals_the_official_one() -> None:
    ap = block_ap(GOLDEN["ids"][:ORIGINALS], same_number_positives(ORIGINALS))
    np.testing.assert_allclose(ap, GOLDEN["original_ap"], atol=1e-6)
    assert ap.mean() == pytest.approx(float(GOLDEN["original_map"]), abs=1e-12)


def test_strong_block_equals_the_official_one() -> None:
    positives = strong_positives(GOLDEN["original_names"].tolist(), GOLDEN["strong_names"].tolist())
    ap = block_ap(GOLDEN["ids"][ORIGINALS:], positives)
    np.testing.assert_allclose(ap, GOLDEN["strong_ap"], atol=1e-6)
    assert ap.mean() == pytest.approx(float(GOLDEN["strong_map"]), abs=1e-12)


def test_copies_are_found_before_distractors() -> None:
    random = np.random.default_rng(0)
    originals, distractors = random.standard_normal((6, 16)), random.standard_normal((40, 16))
    copies = 3 * originals + 0.1 * random.standard_normal((6, 16))
    ids = retrieve(copies, np.concatenate([originals, distractors]))
    assert ids.shape == (6, 20)
    assert block_ap(ids, same_number_positives(6)).tolist() == [1] * 6


def test_features_are_cls_and_the_fourth_root_of_the_mean_fourth_power() -> None:
    tokens = np.array([[[1.0, -5.0], [3.0, -1.0]]], np.float32)
    features = copy_features(np.array([[7.0, 8.0]], np.float32), tokens)
    np.testing.assert_allclose(features, [[7, 8, 41**0.25, 1e-6]], rtol=1e-5)
    assert features.dtype == np.float32


def test_whitening_makes_the_uncentred_second_moment_the_identity() -> None:
    random = np.random.default_rng(1)
    sample = random.standard_normal((500, 4)) @ random.standard_normal((4, 4)) + 2
    mean = sample.mean(axis=0)
    (white,) = whiten([sample + mean], sample)  # the mean is subtracted, so this whitens the sample itself
    np.testing.assert_allclose(white.T @ white / 500, np.eye(4), atol=1e-5)


def test_a_direction_without_variance_is_not_blown_up() -> None:
    sample = np.zeros((10, 2))
    sample[:, 0] = np.linspace(-1, 1, 10)
    moment = np.mean(sample[:, 0] ** 2)
    (white,) = whiten([np.array([[0.0, 1.0]])], sample)
    assert np.abs(white).max() == pytest.approx((moment * 1e-5) ** -0.5, rel=1e-5)


def test_a_strong_copy_without_original_is_an_error() -> None:
    with pytest.raises(SaccadeError, match=r"copydays: strong/200199\.jpg has no original whose name begins with 2001"):
        strong_positives(["200000.jpg"], ["200001.jpg", "200199.jpg"])


def test_a_block_of_another_length_is_an_error() -> None:
    with pytest.raises(SaccadeError, match=r"copydays: retrieved rows: shape \(2, 3\); expected \(4, any\)"):
        block_ap(np.zeros((2, 3), int), same_number_positives(4))
    with pytest.raises(SaccadeError, match="copydays queries: 0 are too few for a block"):
        block_ap(np.zeros((0, 3), int), [])
