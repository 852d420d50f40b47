"""How many patches are kept: k, a share, or the bundle's defaults, and what of them cannot be."""
from __future__ import annotations

import pytest

from saccade import SaccadeError
from saccade.bundle import Defaults
from saccade.runtime.kept import checked_k, kept_on
from saccade.runtime.reference import NEIGHBOURS

RATIO, NUMBER = Defaults(size=(126, 126), k_ratio=0.1), Defaults(size=(126, 126), k=7)


@pytest.mark.parametrize("k", [0, 10, -5])
def test_checked_k_names_the_range(k: int) -> None:
    with pytest.raises(SaccadeError, match="give 1 to 9"):
        checked_k(k, 9, dense=False)
    assert checked_k(9, 9, dense=True) == 9
    assert checked_k(NEIGHBOURS, 9, dense=True) == NEIGHBOURS


def test_a_default_ratio_follows_the_grid_and_a_default_k_does_not() -> None:
    assert [kept_on(grid, RATIO) for grid in ((9, 9), (20, 10))] == [8, 20]
    assert [kept_on(grid, NUMBER) for grid in ((9, 9), (20, 10))] == [7, 7]


def test_what_is_asked_for_comes_before_the_defaults() -> None:
    assert kept_on((9, 9), NUMBER, k=12) == 12
    assert kept_on((9, 9), NUMBER, k_ratio=0.5) == 40
    with pytest.raises(SaccadeError, match="give k or k_ratio, not both"):
        kept_on((9, 9), NUMBER, k=12, k_ratio=0.5)
