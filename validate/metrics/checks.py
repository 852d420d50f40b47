"""What every task asks of its arrays before it computes, so that a meaningless number never comes out."""
from __future__ import annotations

import numpy as np

from saccade.counted import agreeing, counted
from saccade.errors import SaccadeError


def check_labels(name: str, labels: np.ndarray, classes: int, ignore: int | None = None) -> None:
    """Refuse labels that are not whole numbers in 0..classes-1, or `ignore` where a task has such a label."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise SaccadeError(f"{name}: labels are {labels.dtype}; give whole numbers")
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if wrong.any():
        also = "" if ignore is None else f" or {ignore} (ignored)"
        found = ", ".join(str(label) for label in np.unique(labels[wrong])[:5])
        count = int(np.count_nonzero(wrong))
        labels_are = f"{counted(count, 'label')} {agreeing(count, 'is', 'are')}"
        raise SaccadeError(f"{name}: {labels_are} out of range ({found}); give 0..{classes - 1}{also}")


def check_shape(name: str, array: np.ndarray, expected: tuple[int | None, ...]) -> None:
    """Refuse an array of another shape; None stands for any length."""
    fits = array.ndim == len(expected) and all(
        want is None or have == want for have, want in zip(array.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if extent is None else str(extent) for extent in expected)
        raise SaccadeError(f"{name}: shape {array.shape}; expected ({wanted})")


def check_enough(name: str, have: int, need: int, purpose: str) -> None:
    """Refuse fewer samples than the protocol needs."""
    if have < need:
        are = agreeing(have, "is", "are")
        raise SaccadeError(f"{name}: {have} {are} too few for {purpose}, which needs {need}; give more or ask for less")


def check_finite(name: str, features: np.ndarray) -> None:
    """Refuse features (..., D) with NaN or infinity, which would pass through a ranking unseen."""
    sums = features.sum(axis=-1, dtype=np.float64)  # as wide as the rows, where isfinite would be as wide as the values
    bad = sums.size - int(np.count_nonzero(np.isfinite(sums)))
    if bad:
        rows_hold = f"{counted(sums.size, 'row')} {agreeing(bad, 'holds', 'hold')}"
        raise SaccadeError(f"{name}: {bad} of {rows_hold} NaN or infinity; look at the engine with saccade parity")
