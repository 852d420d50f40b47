"""Pictures on one sheet, each under a line that says what it shows."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # pixels between the panels and around them all
SMALLEST_FONT = 14  # pixels; wider panels have larger letters, since the eye sees them from further away
LETTERS = 24  # of the largest font in a panel's width, roughly
MOST_COLUMNS = 8


@dataclass(frozen=True)
class Panel:
    """A picture and what it is called."""

    picture: Image.Image
    caption: str


def caption_height(width: int) -> int:
    """Return the pixels of the line above panels of a width."""
    return 3 * _font_size(width) // 2


def sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Put rows of panels below each other; a column is as wide as its widest picture, a row as high as its highest."""
    columns = range(max(map(len, rows)))
    widths = [max(row[column].picture.width for row in rows if column < len(row)) for column in columns]
    heights = [max(panel.picture.height for panel in row) for row in rows]
    line, font = caption_height(max(widths)), caption_font(max(widths))
    size = sum(widths) + GAP * (len(widths) + 1), sum(heights) + line * len(rows) + GAP * (len(rows) + 1)
    paper = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(paper)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for panel, width in zip(row, widths, strict=False):
            draw.text((left, top + line // 2), shortened(panel.caption, font, width), "black", font, anchor="lm")
            paper.paste(panel.picture, (left, top + line))
            left += width + GAP
        top += line + height + GAP
    return paper


def wrapped(panels: Sequence[Panel], most: int = MOST_COLUMNS) -> list[Sequence[Panel]]:
    """Return panels in as few rows of at most `most` as it takes, filled evenly."""
    rows = -(-len(panels) // most)
    columns = -(-len(panels) // rows)
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def caption_font(width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of captions above panels of a width: Pillow's own, so that it looks alike everywhere."""
    return ImageFont.load_default(_font_size(width))


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a line of text that is no wider than `width` pixels: what is too long ends in an ellipsis."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…" if line else ""


def _font_size(width: int) -> int:
    return max(SMALLEST_FONT, width // LETTERS)
