"""The rank of the true label is that of a full sort, and shares are of all images, in percent."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saccade.validate.metrics.classification import Classified, labels_before


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_labels_before_the_true_one_are_those_of_a_full_sort(images: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-2, 3, (images, classes)).astype(np.float32)  # so that many are equal
    truth = random.integers(classes, size=images)
    order = np.argsort(-scores, axis=1, kind="stable")
    assert labels_before(scores, truth).tolist() == np.argwhere(order == truth[:, None])[:, 1].tolist()


def test_shares_are_in_percent() -> None:
    found = Classified(np.array([3, 1, 1, 0]), np.array([True, False, False, False]), np.array([True, True, True, False]))
    assert (found.top1, found.top5) == (25, 75)
