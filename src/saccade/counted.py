"""Counts in sentences: "1 image is", "2 images are"."""
from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun; the plural where it is more than an s."""
    return f"{count} {agreeing(count, noun, plural or f'{noun}s')}"


def agreeing(count: int, one: str, many: str) -> str:
    """Return the word that goes with a count."""
    return one if count == 1 else many
