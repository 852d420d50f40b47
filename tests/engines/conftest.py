"""What the tests of several engines share: a small bundle and inputs that fit its graphs."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saccade import Bundle, read_bundle

DIM, PREFIX = 128, 5

Feed = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def bundle(small_bundle: Callable[[str], Path]) -> Bundle:
    """Return the small bundle. Read only."""
    return read_bundle(small_bundle("dinov2"))


@pytest.fixture(scope="session")
def feed_of() -> Callable[..., Feed]:
    """Return a function from a role, and a batch and k, to random inputs: the same for the same shapes."""

    def random(*shape: int) -> np.ndarray:
        return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)

    def feed(role: str, batch: int = 2, k: int = 6) -> Feed:
        if role == "selector":
            return {"lowres": random(batch, 3, 154, 154)}
        shapes = {"patches": (batch, k, 588), "positions": (batch, k, DIM), "prefix": (batch, PREFIX, DIM)}
        return {name: random(*shape) for name, shape in shapes.items()}

    return feed
