"""A count agrees with its noun and its verb."""
from __future__ import annotations

import pytest

from saccade.counted import agreeing, counted


@pytest.mark.parametrize(("count", "expected"), [(0, "0 copies are"), (1, "1 copy is"), (2, "2 copies are")])
def test_one_is_one(count: int, expected: str) -> None:
    assert f"{counted(count, 'copy', 'copies')} {agreeing(count, 'is', 'are')}" == expected
    assert counted(count, "image") == ("1 image" if count == 1 else f"{count} images")
