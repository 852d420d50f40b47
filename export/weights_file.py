"""The weights in a file: loaded without running anything that it holds, named, and held against the module they are for."""
from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.errors import SaccadeError

MAX_NAMED_KEYS = 3  # an error names this many keys; one wrong prefix would otherwise print hundreds
MAX_NESTING = 8  # dicts within dicts; an optimizer's state lies four deep
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # torch.save's two formats: a zip archive, and before 1.6 a pickle
# Training checkpoints of DINO and of what grew from it keep their command line as one of these: attributes and no code.
ALLOWED_CLASSES = (argparse.Namespace,)
Tensors = dict[str, Tensor]


def load_content(path: Path) -> Mapping[str, object]:
    """Load with weights_only, so that a file that holds code is refused instead of run."""
    start = _first_bytes(path)
    if not start.startswith((ZIP_START, PICKLE_START)):
        raise SaccadeError(f"{path} is not a PyTorch checkpoint; give a .pt file of tensors")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*ALLOWED_CLASSES]):
            warnings.simplefilter("ignore")  # its notes about pickle protocols and TorchScript; the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP_START))
    except pickle.UnpicklingError as error:
        raise SaccadeError(
            f"{path} holds objects other than tensors, which could run code: refused; "
            "save it again as a plain state dict of tensors"
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise anything: IndexError, struct.error, ...
        reason = f"{type(error).__name__} {error}".splitlines()[0].split(". ")[0].strip()
        raise SaccadeError(f"{path} is truncated or not a PyTorch checkpoint ({reason}); copy it again") from error
    if not isinstance(content, Mapping):
        raise SaccadeError(f"{path} holds a {type(content).__name__}, not a dict of tensors; save a state dict")
    return content


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise SaccadeError(f"{path} is a folder, not a checkpoint; give the .pt file itself")
    if not path.is_file():
        raise SaccadeError(f"{path}: no such checkpoint file; 'saccade make-checkpoint' writes one to try things with")
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP_START))
    except OSError as error:
        raise SaccadeError(f"cannot read {path}: {error.strerror}; copy it again") from error
    if not start:
        raise SaccadeError(f"{path} is empty; copy it again")
    return start


def is_lookwhere(path: Path) -> bool:
    """Whether a checkpoint holds a selector and an extractor, whatever else is wrong with it."""
    names = [name for name, _ in leaves(path, load_content(path))]
    return any(name.startswith(("selector.", "extractor.")) for name in names)


def leaves(path: Path, tree: Mapping[str, object], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of everything in a nested dict that is no dict itself."""
    if depth > MAX_NESTING:  # a dict may even hold itself
        raise SaccadeError(f"{path}: {prefix[:40]!r} is nested too deeply; save a plain state dict of tensors")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(path, value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def as_weights(path: Path, named: Mapping[str, object]) -> Tensors:
    """Return every value as a float32 tensor; raise SaccadeError where one is anything but floating-point numbers."""
    flat: Tensors = {}
    for name, value in named.items():
        if not (isinstance(value, Tensor) and _holds_numbers(value)):
            raise SaccadeError(f"{path}: {name!r} is of type {_kind(value)}, not a floating-point tensor; save weights only")
        flat[name] = value.detach().to(torch.float32)
    return flat


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}, {value.layout} on {value.device}"


def check_tensors(path: Path, part: str, tensors: Tensors, expected: nn.Module) -> None:
    """Name every missing, unexpected and misshapen key, and refuse values that are not finite."""
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    missing = [name.removeprefix("backbone.") for name in wanted if name not in tensors]
    extra = [name.removeprefix("backbone.") for name in tensors if name not in wanted]
    if missing:
        raise SaccadeError(f"{path}: {part} lacks {keys_of(missing)}; the checkpoint is incomplete")
    if extra:
        raise SaccadeError(f"{path}: {part} has unexpected {keys_of(extra)}; this is another architecture")
    for name, shape in wanted.items():
        found, public = tuple(tensors[name].shape), name.removeprefix("backbone.")
        if found != shape:
            raise SaccadeError(f"{path}: {part} key {public!r} has shape {list(found)}, expected {list(shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise SaccadeError(f"{path}: {part} key {public!r} holds NaN or infinity; the checkpoint is damaged")


def some_of(names: Mapping[str, object] | Sequence[str]) -> str:
    """Return the first names, quoted, and how many there are beside them."""
    shown = [repr(name) for name in list(names)[:MAX_NAMED_KEYS]]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def keys_of(names: Sequence[str]) -> str:
    """Return `some_of` the names behind the word key or keys."""
    return f"key{'s' if len(names) > 1 else ''} {some_of(names)}"
