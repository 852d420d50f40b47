"""golden.npz: a few images with the reference's outputs, so that a bundle can be checked where torch is absent."""
from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

import numpy as np

from saccade import atomic
from saccade.bundle import Bundle
from saccade.contract import extractor_contract, selector_contract
from saccade.errors import SaccadeError

MAX_CASES = 16
MAX_UNPACKED_BYTES = 1 << 29  # over all arrays; at 2072 px with every patch kept there are 150 MB
FLOOR = "floor."  # before the names of a case's float32 noise


class StoredCase(Protocol):
    """Images of one size with the reference's outputs on them, of LookWhere or of a plain backbone."""

    @property
    def images(self) -> np.ndarray:
        """The images, (B, H, W, 3) uint8."""

    def members(self) -> dict[str, np.ndarray]:
        """Return every array of the case by its name in the file."""


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

    def members(self) -> dict[str, np.ndarray]:
        """Return every array of the case by its name in the file."""
        outputs = {name: getattr(self.output, name) for name in _OUTPUTS}
        return {"images": self.images} | outputs | floor_members(self.floor)


def floor_members(floor: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return a case's float32 noise as the arrays that a file holds of it."""
    return {f"{FLOOR}{name}": np.asarray(value, np.float64) for name, value in floor.items()}


def write_cases(path: Path, cases: Sequence[StoredCase]) -> None:
    """Write all cases into one .npz file without pickles."""
    arrays = {f"{index}.{name}": array for index, case in enumerate(cases) for name, array in case.members().items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its own options
    atomic.write_bytes(path, buffer.getvalue())


_OUTPUTS = tuple(member.name for member in fields(ReferenceOutput))
# dtype and number of axes of each output
_KINDS: dict[str, tuple[type[np.generic], int]] = {
    "raw_score_map": (np.float32, 3),
    "score_map": (np.float32, 3),
    "prefix": (np.float32, 3),
    "indices": (np.int32, 2),
    "tokens": (np.float32, 3),
    "pooled": (np.float32, 2),
}


def read_cases(path: Path) -> list[Case]:
    """Read the cases of a golden.npz; raises SaccadeError for anything but plain arrays of the expected kinds."""
    return [_case(path, members, index) for index, members in enumerate(read_members(path))]


def read_members(path: Path) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each case by name, whatever they are; raises SaccadeError where the file is none of ours."""
    arrays = _read_arrays(path)
    count = len({name.split(".", 1)[0] for name in arrays})
    if not 0 < count <= MAX_CASES:
        raise SaccadeError(f"{path}: {count} cases; export the bundle again")
    starts = [f"{index}." for index in range(count)]
    return [{name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)} for start in starts]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return every array of the file; its size is known before anything is unpacked."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked <= MAX_UNPACKED_BYTES:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # damaged bytes make zipfile, zlib and NumPy's header parser raise anything
        raise SaccadeError(f"{path}: not a golden file ({error}); export the bundle again") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise SaccadeError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB; export the bundle again")
    return arrays


def _case(path: Path, members: Mapping[str, np.ndarray], index: int) -> Case:
    try:
        images = members["images"]
        output = ReferenceOutput(**{name: members[name] for name in _OUTPUTS})
    except KeyError as error:
        raise SaccadeError(f"{path}: case {index} lacks '{index}.{error.args[0]}'; export the bundle again") from error
    floor = floor_of(members)
    typed = is_array(images, np.uint8, 4) and all(is_array(getattr(output, name), *kind) for name, kind in _KINDS.items())
    if not typed or floor is None:
        raise SaccadeError(f"{path}: case {index} has an array of the wrong kind; export the bundle again")
    if not _belong_together(images, output):
        raise SaccadeError(f"{path}: case {index} has arrays that do not belong together; export the bundle again")
    return Case(images, output, floor)


def is_array(value: object, dtype: type[np.generic], axes: int) -> bool:
    """Tell whether a member is an array of that type; NumPy gives bytes for a foreign one."""
    return isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == axes


def floor_of(members: Mapping[str, np.ndarray]) -> dict[str, float] | None:
    """Return a case's float32 noise by output, or None where that is no number."""
    floor = {name.removeprefix(FLOOR): value for name, value in members.items() if name.startswith(FLOOR)}
    typed = all(is_array(value, np.float64, 0) for value in floor.values())
    return {name: float(value) for name, value in floor.items()} if typed else None


def _belong_together(images: np.ndarray, output: ReferenceOutput) -> bool:
    """True where batch, k and grid agree and every index is a cell of the grid."""
    cells = output.score_map.shape[1] * output.score_map.shape[2]
    return (
        len(images) > 0
        and images.shape[3] == 3
        and all(len(getattr(output, name)) == len(images) for name in _OUTPUTS)
        and output.tokens.shape[:2] == output.indices.shape
        and 0 < output.indices.shape[1] <= cells
        and bool(((output.indices >= 0) & (output.indices < cells)).all())
    )


def cases_of(bundle: Bundle) -> list[Case]:
    """Read a LookWhere bundle's golden cases; raises SaccadeError for arrays that its model and task cannot have given."""
    bundle.model  # noqa: B018 - raises for a plain backbone
    path = golden_path(bundle)
    cases = read_cases(path)
    for index, case in enumerate(cases):
        misfit = _misfit(case, bundle)
        if misfit:
            raise SaccadeError(f"{path}: case {index}: {misfit}; export the bundle again")
    return cases


def golden_path(bundle: Bundle) -> Path:
    """Return the path of a bundle's golden.npz after comparing its hash, or say that there is none."""
    if bundle.manifest.golden is None:
        raise SaccadeError(f"{bundle.path} has no golden.npz to verify against; export the bundle again")
    return bundle.checked_path(bundle.manifest.golden)


def _misfit(case: Case, bundle: Bundle) -> str | None:
    """Return what in a case the bundle's model and task cannot have given, if anything."""
    batch, height, width, _ = case.images.shape
    patch = bundle.model.patch
    if height % patch or width % patch:
        return f"images are {width} x {height} px, which the {patch} px patch does not divide"
    grid = (height // patch, width // patch)
    for name, shape in _shapes_per_image(bundle, grid, case.output.indices.shape[1]).items():
        array: np.ndarray = getattr(case.output, name)
        if array.shape[1:] != shape:
            return f"{name} must be {[batch, *shape]}, found {list(array.shape)}"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    if any(len(np.unique(kept)) < len(kept) for kept in case.output.indices):
        return "indices name a cell twice"
    return floor_misfit(case.floor)


def floor_misfit(floor: Mapping[str, float]) -> str | None:
    """Return which noise is no noise, if any."""
    for name, value in floor.items():
        if not 0 <= value < np.inf:
            return f"{FLOOR}{name} is {value}, not a finite number from 0 on"
    return None


def _shapes_per_image(bundle: Bundle, grid: tuple[int, int], k: int) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each output without its batch axis."""
    contracts = selector_contract(bundle.model), extractor_contract(bundle.model, bundle.manifest.task)
    given = {tensor.name: tensor.shape[1:] for contract in contracts for tensor in contract.outputs}
    return {
        "raw_score_map": given["score_map"],
        "score_map": grid,
        "prefix": given["prefix"],
        "tokens": (k, *given["tokens"][1:]),
        "pooled": given.get("cls") or given.get("logits") or (0,),
    }


def relative_difference(value: np.ndarray, truth: np.ndarray) -> float:
    """Return the worst image's |value - truth| / |truth| in 2-norms over everything but the batch axis, in float64.

    Equal images differ by 0 even where both are zero throughout; anything else is infinitely far from zero.
    """
    flat = truth.astype(np.float64).reshape(len(truth), -1)
    apart = np.linalg.norm(value.astype(np.float64).reshape(len(truth), -1) - flat, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(apart == 0, 0.0, apart / np.linalg.norm(flat, axis=1))
    return float(shares.max())
