"""Panels keep their pixels, stand where their row and column say, and each has its caption above it."""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from saccade.runtime.sheet import GAP, Panel, caption_font, caption_height, sheet, shortened, wrapped


def panel(number: int, width: int = 120, height: int = 20, caption: str = "") -> Panel:
    return Panel(Image.new("RGB", (width, height), (number, 0, 0)), caption)


@pytest.mark.parametrize(
    ("count", "most", "rows"),
    [(1, 8, [1]), (7, 8, [7]), (13, 8, [7, 6]), (17, 8, [6, 6, 5]), (3, 2, [2, 1]), (5, 3, [3, 2])],
)
def test_panels_are_wrapped_evenly_and_in_order(count: int, most: int, rows: list[int]) -> None:
    found = wrapped([panel(number) for number in range(count)], most)
    assert [len(row) for row in found] == rows
    assert [each.picture.getpixel((0, 0))[0] for row in found for each in row] == list(range(count))


def test_every_panel_stands_in_its_place() -> None:
    line = caption_height(120)
    paper = sheet([[panel(0), panel(1)], [panel(2)]])
    assert paper.size == (2 * (120 + GAP) + GAP, 2 * (line + 20 + GAP) + GAP)
    shown = np.array(paper)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        top, left = GAP + row * (line + 20 + GAP) + line, GAP + column * (120 + GAP)
        assert (shown[top : top + 20, left : left + 120] == (number, 0, 0)).all()
        shown[top : top + 20, left : left + 120] = 255
    assert (shown == 255).all()


def test_a_column_is_as_wide_and_a_row_as_high_as_what_it_holds() -> None:
    paper = sheet([[panel(0, 300, 40), panel(1, 100, 90)], [panel(2, 200, 10)]])
    assert paper.size == (300 + 100 + 3 * GAP, 2 * caption_height(300) + 90 + 10 + 3 * GAP)


def test_a_caption_is_drawn_above_its_panel_and_over_no_other() -> None:
    line = caption_height(120)
    paper = np.array(sheet([[panel(9), panel(9, caption="a name that is much too long for its panel")], [panel(9)]]))
    ink = (paper != 255).any(axis=2) & ~(paper == (9, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(ink)
    assert rows.min() >= GAP
    assert rows.max() < GAP + line
    assert columns.min() >= 120 + 2 * GAP
    assert columns.max() < 2 * (120 + GAP)


@pytest.mark.parametrize("text", ["x" * 500, "two\nlines", "\udcff.png", "", "china.jpg"])
def test_a_caption_is_one_line_of_its_width(text: str) -> None:
    font = caption_font(120)
    found = shortened(text, font, 120)
    assert font.getlength(found) <= 120
    assert found.isprintable()
    assert (found == text) == (text in ("", "china.jpg"))
    assert found.endswith("…") == (len(text) == 500)


def test_no_room_is_no_caption() -> None:
    assert shortened("china.jpg", caption_font(120), 3) == ""


def test_letters_grow_with_the_panels() -> None:
    assert caption_height(64) == caption_height(224) < caption_height(518) < caption_height(1036)
