"""Copy detection on Copydays by cls and pooled tokens, with PW-Self's and DINO's preparation (eval_copy_detection.py)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.copydays import STRONG, Block, Copydays, listed, read_copydays
from saccade.validate.datasets.image_folder import failed_note
from saccade.validate.evaluations.task import Outcome, Score, Settings, Task
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.metrics.compare import groups_of
from saccade.validate.metrics.copydays import block_ap, copy_features, retrieve, whiten
from saccade.validate.preparation import Squash, checked_side
from saccade.validate.sources import CLS, TOKENS

SIZE = 320
COPY = "copy"


class CopydaysSettings(Settings, frozen=True):
    """Options of the task."""

    size: Annotated[int, Meta(ge=0, description="pixels of a side (0: 320 in whole patches)")] = 0
    distractors: Annotated[str, Meta(description="a folder of other images among which to search")] = ""
    whitening: Annotated[str, Meta(description="a folder of other images by which features are whitened")] = ""


@dataclass(frozen=True)
class CopyData:
    """The data set and the two folders of other images."""

    copydays: Copydays
    distractors: list[Path]
    whitening: list[Path]


def read(root: Path, settings: CopydaysSettings) -> CopyData:
    """List the images of all folders."""
    distractors, whitening = (listed(Path(name)) if name else [] for name in (settings.distractors, settings.whitening))
    return CopyData(read_copydays(root), distractors, whitening)


def evaluate(data: CopyData, extract: Extractor, settings: CopydaysSettings) -> Outcome:
    """Search the original of every copy; copies and originals that cannot be read are as if they did not exist."""
    side = checked_side(settings.size, extract.source.patch, SIZE)

    def extracted(paths: Sequence[Path], label: str) -> Features:
        return extract(paths, Squash((side, side)), [CLS, TOKENS], label=label, reduce=copy_vector)

    parts = {"original": extracted(data.copydays.originals, "original")}
    for name, block in data.copydays.blocks.items():
        parts[name] = extracted(block.paths, name)
    for name, paths in (("distractors", data.distractors), ("whitening", data.whitening)):
        if paths:
            parts[name] = extracted(paths, name)
    found = _found(data.copydays, parts)
    aps = _aps(found, parts)
    failed = (note for name, features in parts.items() for note in failed_note(features, name))
    strong = zip(found[STRONG], aps[STRONG], strict=True)
    return Outcome(
        tuple(Score(f"mAP {name}", float(100 * ap.mean())) for name, ap in aps.items()),
        aps[STRONG],
        groups=groups_of([each.originals for each in found[STRONG]]),
        notes=(*data.copydays.notes, *failed, *_orphans_note(found, parts)),
        details={"ap_by_strong_copy": {Path(each.name).name: float(100 * ap) for each, ap in strong}},
    )


def copy_vector(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the descriptor, so that tokens need not be kept."""
    return {COPY: copy_features(outputs[CLS], outputs[TOKENS])}


@dataclass(frozen=True)
class Copy:
    """A copy that can be searched: its file, its row among the features of its block, and the rows of its originals."""

    name: str
    row: int
    originals: np.ndarray


def _found(data: Copydays, parts: Mapping[str, Features]) -> dict[str, list[Copy]]:
    """Return the copies of each block that can be read and have an original that can be."""
    row_of = parts["original"].rows_of(data.originals)
    return {name: _copies(block, parts[name], row_of) for name, block in data.blocks.items()}


def _copies(block: Block, features: Features, row_of: np.ndarray) -> list[Copy]:
    row = {name: number for number, name in enumerate(features.names)}
    originals = (row_of[rows] for rows in block.positives)
    pairs = ((str(path), rows[rows >= 0]) for path, rows in zip(block.paths, originals, strict=True))
    return [Copy(name, row[name], rows) for name, rows in pairs if name in row and len(rows)]


def _aps(found: Mapping[str, list[Copy]], parts: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """Return the average precisions of each block's copies."""
    vectors = {name: np.asarray(features.arrays[COPY]) for name, features in parts.items()}
    sample = vectors.pop("whitening", None)
    if sample is not None:
        vectors = dict(zip(vectors, whiten(list(vectors.values()), sample), strict=True))
    database = np.concatenate([vectors[name] for name in ("original", "distractors") if name in vectors])
    aps = {}
    for block, copies in found.items():
        if not copies:
            raise SaccadeError(f"copydays: no copy of {block} has an original that can be read; mend or remove the folder")
        rows = retrieve(vectors[block][[each.row for each in copies]], database)
        aps[block] = block_ap(rows, [each.originals for each in copies])
    return aps


def _orphans_note(found: Mapping[str, list[Copy]], parts: Mapping[str, Features]) -> tuple[str, ...]:
    count = sum(len(parts[block].names) - len(copies) for block, copies in found.items())
    left_out = f"{counted(count, 'copy', 'copies')} {agreeing(count, 'is', 'are')} left out"
    return (f"{left_out}, since no original can be read",) if count else ()


TASK = Task(
    "copydays", "copy detection on Copydays by cls and pooled tokens",
    "original/*.jpg, strong/*.jpg\n  jpegqual/{3,5,8,10,15,20,30,50,75}/*.jpg, crops/{10,15,20,30,40,50,60,70,80}/*.jpg",
    CopydaysSettings, read, evaluate, on_lookwhere=True,
)  # fmt: skip
