"""golden.npz: a few images with the reference's outputs, so that a bundle can be checked where torch is absent."""
from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from saccade import atomic
from saccade.errors import SaccadeError

MAX_CASES = 16
MAX_ARRAY_BYTES = 1 << 28


@dataclass(frozen=True)
class ReferenceOutput:
    """What the PyTorch reference gives for B images on a grid of gh x gw cells; float32 but for the indices."""

    raw_score_map: np.ndarray  # (B, M, M)
    score_map: np.ndarray  # (B, gh, gw)
    prefix: np.ndarray  # (B, P, D)
    indices: np.ndarray  # (B, k) int32, best score first
    tokens: np.ndarray  # (B, k, D), or (B, k, C) for segment
    pooled: np.ndarray  # cls (B, D) for features, logits (B, C) for classify, (B, 0) for segment


@dataclass(frozen=True)
class Case:
    """Images of one size, the reference's outputs on them, and how far float32 is from float64 there.

    `floor` holds the relative difference |fp32 - fp64| / |fp64| (2-norms, worst image) of pooled and tokens under the same
    selection: what no engine can be asked to beat.
    """

    images: np.ndarray  # (B, H, W, 3) uint8
    output: ReferenceOutput
    floor: dict[str, float] = field(default_factory=dict)


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write all cases into one .npz file without pickles."""
    arrays: dict[str, np.ndarray] = {}
    for index, case in enumerate(cases):
        arrays[f"{index}.images"] = case.images
        arrays |= {f"{index}.{name}": getattr(case.output, name) for name in _OUTPUTS}
        arrays |= {f"{index}.floor.{name}": np.float64(value) for name, value in case.floor.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its own options
    atomic.write_bytes(path, buffer.getvalue())


_OUTPUTS = tuple(member.name for member in fields(ReferenceOutput))


def read_cases(path: Path) -> list[Case]:
    """Read the cases of a golden.npz; raises SaccadeError for anything but plain arrays of the expected kinds."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.file_size > MAX_ARRAY_BYTES for member in archive.infolist()):
                raise SaccadeError(f"{path}: an array larger than {MAX_ARRAY_BYTES >> 20} MiB; export the bundle again")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SaccadeError(f"{path}: not a golden file ({error}); export the bundle again") from error
    count = len({name.split(".", 1)[0] for name in arrays})
    if not 0 < count <= MAX_CASES:
        raise SaccadeError(f"{path}: {count} cases; export the bundle again")
    return [_case(path, arrays, index) for index in range(count)]


def _case(path: Path, arrays: dict[str, np.ndarray], index: int) -> Case:
    try:
        images = arrays[f"{index}.images"]
        output = ReferenceOutput(**{name: arrays[f"{index}.{name}"] for name in _OUTPUTS})
    except KeyError as error:
        raise SaccadeError(f"{path}: case {index} lacks {error}; export the bundle again") from error
    batch = len(images)
    if images.dtype != np.uint8 or images.ndim != 4 or any(len(getattr(output, name)) != batch for name in _OUTPUTS):
        raise SaccadeError(f"{path}: case {index} has arrays that do not belong together; export the bundle again")
    prefix = f"{index}.floor."
    floor = {name.removeprefix(prefix): float(value) for name, value in arrays.items() if name.startswith(prefix)}
    return Case(images, output, floor)


def relative_difference(value: np.ndarray, truth: np.ndarray) -> float:
    """Return the worst image's |value - truth| / |truth| in 2-norms over everything but the batch axis, in float64."""
    flat = truth.astype(np.float64).reshape(len(truth), -1)
    difference = value.astype(np.float64).reshape(len(truth), -1) - flat
    return float((np.linalg.norm(difference, axis=1) / np.linalg.norm(flat, axis=1)).max())
