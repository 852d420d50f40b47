"""Copydays in the folders original, strong, jpegqual/QUALITY and crops/PERCENT."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import few, image_files
from saccade.validate.metrics.copydays import same_number_positives, strong_positives

STRONG = "strong"
# block_names of eval_copy_detection.py, less the originals, which find themselves.
BLOCKS = (
    STRONG,
    *(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)),
    *(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)),
)
PUBLISHED = (157, 229)  # originals and strong copies


@dataclass(frozen=True)
class Block:
    """Copies of one kind, and for each the rows of the originals that it was made of."""

    paths: list[Path]
    positives: list[np.ndarray]


@dataclass(frozen=True)
class Copydays:
    """The originals and the blocks that are there, strong first."""

    originals: list[Path]
    blocks: dict[str, Block]
    notes: tuple[str, ...]


def read_copydays(root: Path) -> Copydays:
    """List the images; raises SaccadeError without originals or strong copies, or where a copy has no original."""
    originals = listed(root / "original")
    blocks = {}
    for name in BLOCKS:
        if name == STRONG or (root / name).is_dir():
            paths = listed(root / name)
            blocks[name] = Block(paths, _positives(name, originals, paths))
    return Copydays(originals, blocks, _notes(originals, blocks))


def listed(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted; raises SaccadeError where there are none."""
    if not folder.is_dir():
        raise SaccadeError(f"{folder}: no such folder")
    paths = image_files(folder)
    if not paths:
        raise SaccadeError(f"{folder}: holds no images")
    return paths


def _positives(block: str, originals: Sequence[Path], paths: Sequence[Path]) -> list[np.ndarray]:
    """Return the rows of the originals of each copy: by number where all are there, as upstream, otherwise by name."""
    if block == STRONG:
        return strong_positives([path.name for path in originals], [path.name for path in paths])
    if len(paths) == len(originals):
        return same_number_positives(len(paths))
    row = {path.stem: number for number, path in enumerate(originals)}
    for path in paths:
        if path.stem not in row:
            raise SaccadeError(
                f"{path}: no original has its name, and {block} has {counted(len(paths), 'image')} "
                f"for {counted(len(originals), 'original')}; "
                "complete or remove the folder"
            )
    return [np.array([row[path.stem]]) for path in paths]


def _notes(originals: Sequence[Path], blocks: dict[str, Block]) -> tuple[str, ...]:
    notes = []
    have = len(originals), len(blocks[STRONG].paths)
    if have != PUBLISHED:
        counts = f"{PUBLISHED[0]} and {PUBLISHED[1]}"
        found = f"{counted(have[0], 'original')} and {counted(have[1], 'strong copy', 'strong copies')}"
        notes.append(f"{found}; the published data set has {counts}")
    if missing := [name for name in BLOCKS if name not in blocks]:
        notes.append(f"{few(missing)} of {len(BLOCKS)} blocks {agreeing(len(missing), 'is', 'are')} missing")
    partial = [name for name, block in blocks.items() if name != STRONG and len(block.paths) != len(originals)]
    copies = {name: counted(len(blocks[name].paths), "copy", "copies") for name in partial}
    notes += [f"{name} has {count} of {counted(len(originals), 'original')}" for name, count in copies.items()]
    return tuple(notes)
