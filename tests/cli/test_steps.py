"""Counted phases and estimated times."""
from __future__ import annotations

import pytest

from saccade.cli.steps import Steps, time_text


def test_phases_are_counted_and_may_be_counted_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(2) as phases:
        phases("open")
        phases("write")
        phases.count(1)
        phases("look for the reason")
    said = [line.split(": done")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["  1 of 2: open", "  2 of 2: write", "  1 of 1: look for the reason"]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "about 10 s"), (47, "about 50 s"), (150, "about 2 min")])
def test_an_estimate_claims_no_more_than_it_knows(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
