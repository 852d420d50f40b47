"""Revisited Oxford and Paris: ROOT/DATASET/gnd_DATASET.pkl and ROOT/DATASET/jpg/NAME.jpg, as the benchmark ships them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.validate.datasets.plain_pickle import PlainArray, read_plain_pickle
from saccade.validate.metrics.retrieval import Relevance

KINDS = ("easy", "hard", "junk")
PUBLISHED = {"roxford5k": (70, 4993), "rparis6k": (70, 6322)}  # queries and images of the benchmark


@dataclass(frozen=True)
class Revisited:
    """The images of the database, the queries, and which rows of the database each query looks for."""

    database: list[Path]
    queries: list[Path]
    relevance: list[Relevance]
    notes: tuple[str, ...]


def read_revisited(root: Path, dataset: str) -> Revisited:
    """Read the ground truth and name the files; raises SaccadeError for a file that does not say what it must."""
    folder = root / dataset
    path = folder / f"gnd_{dataset}.pkl"
    truth = read_plain_pickle(path)
    if not isinstance(truth, dict):
        raise SaccadeError(f"{path}: holds a {type(truth).__name__}, not the dict with imlist, qimlist and gnd")
    if not (folder / "jpg").is_dir():
        raise SaccadeError(f"{folder / 'jpg'}: no such folder; the images are expected there")
    database, queries = (_files(path, folder / "jpg", truth, key) for key in ("imlist", "qimlist"))
    entries = _list(path, truth, "gnd")
    if len(entries) != len(queries):
        counts = f"{counted(len(entries), 'entry', 'entries')} for {counted(len(queries), 'query', 'queries')}"
        raise SaccadeError(f"{path}: gnd has {counts}; get the official file")
    relevance = [_relevance(f"{path}: gnd {number}", entry, len(database)) for number, entry in enumerate(entries)]
    return Revisited(database, queries, relevance, _notes(dataset, len(queries), len(database)))


def _list(path: Path, truth: Mapping[Any, Any], key: str) -> list[Any]:
    found = truth.get(key)
    if not isinstance(found, list) or not found:
        raise SaccadeError(f"{path}: has no list {key}; get the official file")
    return found


def _files(path: Path, folder: Path, truth: Mapping[Any, Any], key: str) -> list[Path]:
    """Return the files of a list of names, all of which lie in the folder."""
    names = _list(path, truth, key)
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name or "/" in name or "\\" in name or "\0" in name:
            raise SaccadeError(f"{path}: {key} {number} is {str(name)[:80]!r}, no plain file name; get the official file")
    return [folder / f"{name}.jpg" for name in names]


def _relevance(where: str, entry: Any, images: int) -> Relevance:
    if not isinstance(entry, dict):
        raise SaccadeError(f"{where} is a {type(entry).__name__}, not a dict with easy, hard and junk")
    rows = [_rows(f"{where}, {kind}", entry.get(kind), images) for kind in KINDS]
    values, counts = np.unique(np.concatenate(rows), return_counts=True)
    if (counts > 1).any():
        raise SaccadeError(f"{where} names row {values[counts > 1][0]} more than once; get the official file")
    return Relevance(*rows)


def _rows(where: str, value: Any, images: int) -> np.ndarray:
    """Return row numbers of the database, int64 (n,)."""
    if isinstance(value, PlainArray):
        rows = value.values
    elif isinstance(value, (list, tuple)) and all(type(row) is int and abs(row) < 1 << 62 for row in value):
        rows = np.array(value, np.int64)
    else:
        raise SaccadeError(f"{where}: is no list of rows; get the official file")
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise SaccadeError(f"{where}: rows are {rows.dtype} {list(rows.shape)}; a list of whole numbers is expected")
    if rows.size and (rows.min() < 0 or rows.max() >= images):
        wrong = rows[(rows < 0) | (rows >= images)][0]
        size = counted(images, "image")
        raise SaccadeError(f"{where}: row {wrong} is out of range; the database has {size}, so 0..{images - 1}")
    return rows.astype(np.int64)


def _notes(dataset: str, queries: int, images: int) -> tuple[str, ...]:
    """Say where the ground truth is not the published one's, whose numbers it cannot be compared with."""
    published = PUBLISHED[dataset]
    if (queries, images) == published:
        return ()
    found = f"{counted(queries, 'query', 'queries')} and {counted(images, 'image')}"
    return (f"{found}; the published {dataset} has {published[0]} and {published[1]}",)
