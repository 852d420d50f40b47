"""What every error line keeps to."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError


@given(st.text(st.characters(codec=None, categories=("L", "Zl", "Zp", "Cc", "Cs", "Cf", "Zs"))))
def test_a_message_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    line = str(SaccadeError(text))
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


def test_what_cannot_be_printed_is_shown_escaped() -> None:
    assert str(SaccadeError("x.json: unknown field `a\nb\x1b[31m\udcff`")) == r"x.json: unknown field `a\nb\x1b[31m\udcff`"
    assert str(SaccadeError("a grid of 3 × 4 … patches")) == "a grid of 3 × 4 … patches"
