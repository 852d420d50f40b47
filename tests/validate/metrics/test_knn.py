"""k-NN votes as PW-Self's eval_knn.py does on the golden features, and as a loop over neighbours does."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics import knn
from saccade.validate.metrics.knn import evaluate_knn, knn_votes
from saccade.validate.metrics.neighbours import nearest

GOLDEN = np.load(Path(__file__).parents[2] / "golden/pwself_knn.npz")
CLASSES = 12


def golden_arguments() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    sides = ("train_features", "train_labels", "test_features", "test_labels")
    return (*(GOLDEN[name] for name in sides), CLASSES)  # type: ignore[return-value]


@pytest.mark.parametrize("k", [10, 20])
def test_neighbours_and_votes_equal_the_official_ones(k: int) -> None:
    train, labels, test, _, _ = golden_arguments()
    similarities, rows = nearest(test, train, k, cosine=True)
    assert np.array_equal(rows, GOLDEN[f"k{k}_neighbours"])
    temperature = float(GOLDEN["temperature"])
    votes = knn_votes(similarities, labels[rows], CLASSES, temperature)
    votes_of_nearest = np.exp(similarities[:, :1].astype(np.float64) / temperature)
    np.testing.assert_allclose(votes * votes_of_nearest, GOLDEN[f"k{k}_votes"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("block", [7, 1 << 22])
def test_predictions_and_rates_equal_the_official_ones(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BLOCK_VALUES", block)
    for result in evaluate_knn(*golden_arguments(), ks=(10, 20)):
        assert np.array_equal(result.prediction, GOLDEN[f"k{result.k}_prediction"])
        assert result.top1 == pytest.approx(float(GOLDEN[f"k{result.k}_top1"]), abs=1e-12)
        assert result.top5 == pytest.approx(float(GOLDEN[f"k{result.k}_top5"]), abs=1e-12)


@given(st.integers(1, 12), st.integers(2, 7), st.integers(0, 99))
def test_votes_equal_a_loop_over_neighbours(k: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    similarities = -np.sort(-random.uniform(-1, 1, (4, k)).astype(np.float32), axis=1)
    labels = random.integers(0, classes, (4, k))
    expected = np.zeros((4, classes))
    for image in range(4):
        for neighbour in range(k):
            weight = np.exp((float(similarities[image, neighbour]) - float(similarities[image, 0])) / 0.07)
            expected[image, labels[image, neighbour]] += weight
    np.testing.assert_allclose(knn_votes(similarities, labels, classes), expected, rtol=1e-6)


def features_at(*degrees: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees], np.float32)


def test_a_label_without_a_vote_is_in_no_top_five() -> None:
    train, labels = features_at(0, 1, 90), np.array([4, 4, 0])
    (result,) = evaluate_knn(train, labels, features_at(0, 0), np.array([4, 0]), classes=5, ks=[2])
    assert result.top1_hits.tolist() == [True, False]
    assert result.top5_hits.tolist() == [True, False]  # all five labels would fit, but only label 4 got a vote


def test_with_k_below_five_only_the_first_k_labels_count() -> None:
    train, labels = features_at(0, 10, 20), np.array([0, 1, 2])
    two, three = evaluate_knn(train, labels, features_at(0), np.array([1]), classes=3, ks=[1, 2])
    assert (two.top5, three.top5) == (0, 100)


def test_equal_votes_go_to_the_lower_label() -> None:
    (result,) = evaluate_knn(features_at(-5, 5), np.array([2, 1]), features_at(0), np.array([2]), classes=3, ks=[2])
    assert result.prediction.tolist() == [1]
    assert (result.top1, result.top5) == (0, 100)


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1e9])
def test_the_nearest_wins_at_the_smallest_temperature_and_the_most_at_the_largest(temperature: float) -> None:
    train, labels = features_at(1, 20, 21), np.array([2, 1, 1])
    arguments = train, labels, features_at(0), np.array([2]), 3
    (result,) = evaluate_knn(*arguments, ks=[3], temperature=temperature)
    assert result.prediction.tolist() == [2 if temperature < 1 else 1]


def test_labels_may_have_gaps_and_a_single_class_is_always_right() -> None:
    train, test = features_at(0, 90), features_at(10, 80)
    (result,) = evaluate_knn(train, np.array([3, 9]), test, np.array([3, 5]), classes=10, ks=[2])
    assert result.prediction.tolist() == [3, 9]
    assert result.top5_hits.tolist() == [True, False]  # label 5 is nobody's, and gets no vote
    (result,) = evaluate_knn(train, np.array([0, 0]), test, np.array([0, 0]), classes=1, ks=[1])
    assert (result.top1, result.top5) == (100, 100)


def test_a_zero_vector_is_as_far_from_all_so_that_the_first_rows_vote() -> None:
    train = np.concatenate([np.zeros((1, 2), np.float32), features_at(0, 90)])
    test = np.concatenate([np.zeros((1, 2), np.float32), features_at(85)])
    (result,) = evaluate_knn(train, np.array([2, 1, 0]), test, np.array([2, 0]), classes=3, ks=[1])
    assert result.prediction.tolist() == [2, 0]


def with_one(features: np.ndarray, value: float) -> np.ndarray:
    changed = features.copy()
    changed[3, 0] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": with_one(GOLDEN["train_features"], np.nan)}, "memory from row 0: 1 of 600 rows holds NaN"),
        ({"test_features": with_one(GOLDEN["test_features"], np.inf)}, "queries: 1 of 200 rows holds NaN or infinity"),
        ({"train_features": with_one(GOLDEN["train_features"], 1e38)}, "features: 1 of .* no length that float32 can hold"),
        ({"test_labels": np.full(200, 12)}, r"test labels: 200 labels are out of range \(12\); give 0\.\.11"),
        ({"train_labels": np.full(600, -1)}, r"train labels: 600 labels are out of range \(-1\)"),
        ({"train_labels": np.zeros(600)}, "train labels: labels are float64; give whole numbers"),
        ({"test_labels": np.zeros(3, int)}, r"test labels: shape \(3,\); expected \(200\)"),
        ({"ks": (10, 601)}, "memory rows: 600 are too few for 601 neighbours"),
        ({"ks": (0,)}, r"k-NN: k is \(0,\); give one or more whole numbers from 1"),
        ({"ks": ()}, r"k-NN: k is \(\)"),
        (
            {"test_features": np.ones((0, 32), np.float32), "test_labels": np.zeros(0, int)},
            "test images: 0 are too few for k-NN",
        ),
    ],
)
def test_what_would_be_meaningless_is_refused(change: dict[str, object], message: str) -> None:
    names = ("train_features", "train_labels", "test_features", "test_labels", "classes")
    with pytest.raises(SaccadeError, match=message):
        evaluate_knn(**(dict(zip(names, golden_arguments(), strict=True)) | change))  # type: ignore[arg-type]
