"""Options made of the fields of a Struct: names, kinds, bounds, defaults and help."""
from __future__ import annotations

import argparse
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from saccade.cli.settings import add_options, settings_from
from saccade.errors import SaccadeError


class Some(Struct, frozen=True, kw_only=True):
    max_size: Annotated[int, Meta(ge=0, le=100, description="pixels, 50 % of them")] = 7
    rate: Annotated[float, Meta(gt=0, description="of learning")] = 0.5
    counts: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, description="how many")] = (1, 2)
    kind: Annotated[Literal["red", "blue"], Meta(description="a colour")] = "red"
    folder: Annotated[str, Meta(description="where")] = ""
    both: Annotated[bool, Meta(description="do both")] = False


def parsed(*arguments: str) -> Some:
    parser = argparse.ArgumentParser()
    add_options(parser, Some)
    return settings_from(parser.parse_args(arguments), Some)


def test_what_is_not_given_has_its_default() -> None:
    assert parsed() == Some()


def test_what_is_given_has_the_field_s_type() -> None:
    options = "--max-size 9 --rate 1e-3 --counts 4 5 6 --kind blue --folder there --both"
    assert parsed(*options.split()) == Some(max_size=9, rate=1e-3, counts=(4, 5, 6), kind="blue", folder="there", both=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max-size 101", "--max-size 101: expected `int` <= 100"),
        ("--max-size x", "--max-size x: expected `int`, got `str`"),
        ("--max-size 1.5", "--max-size 1.5: expected `int`, got `str`"),
        ("--rate 0", "--rate 0: expected `float` > 0.0"),
        ("--rate nan", "--rate nan: expected `float` > 0.0"),
        ("--rate inf", "--rate inf: give a finite number"),
        ("--counts 3 0", "--counts 3 0: expected `int` >= 1"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(arguments: str, message: str) -> None:
    with pytest.raises(SaccadeError) as caught:
        parsed(*arguments.split())
    assert str(caught.value) == message


def test_a_choice_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--kind", "green")
    assert "invalid choice: 'green'" in capsys.readouterr().err


def test_help_tells_what_each_is_and_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Some)
    text = " ".join(parser.format_help().split())
    assert "--max-size M pixels, 50 % of them (default: 7)" in text
    assert "--counts C [C ...] how many (default: 1 2)" in text
    assert "--kind {red,blue} a colour (default: red)" in text
    assert "--folder F where (default: none)" in text
    assert "--both do both" in text
