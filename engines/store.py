"""Built engines on disk: found under a key over everything they depend on, rebuilt when stale, with the reason named."""
from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from saccade import atomic
from saccade._version import VERSION
from saccade.bundle import Bundle, FileName, Sha256, check_hash, sha256_of_file
from saccade.engines.audit import Audit
from saccade.engines.engine import ENGINE_NAMES, ROLES, Backend, Built, Engine, EngineRequest, Progress
from saccade.errors import SaccadeError

RECEIPT = "receipt.json"
MAX_RECEIPT_BYTES = 1 << 20
# Where each engine's backend lives; the module is imported only when its engine is asked for.
_BACKENDS = {
    "openvino": ("saccade.engines.openvino", "OpenVINOBackend", ()),
    "onnxruntime": ("saccade.engines.onnxruntime", "OnnxRuntimeBackend", ()),
    "tensorrt": ("saccade.engines.tensorrt", "TensorRTBackend", ("tensorrt",)),
    "tensorrt-rtx": ("saccade.engines.tensorrt", "TensorRTBackend", ("tensorrt-rtx",)),
}


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies in an engine folder, and under which conditions it was built."""

    key: str
    engine: str
    precision: str
    conditions: dict[str, str]  # all that the key is made of
    files: dict[str, FileName]  # role -> file in the engine folder; empty where the engine compiles at load
    sha256: dict[FileName, Sha256]
    realised: str
    audit: dict[str, Any] | None
    seconds: float
    saccade: str


def backend(engine: str) -> Backend:
    """Return the backend of an engine by its name."""
    if engine not in _BACKENDS:
        raise SaccadeError(f"unknown engine {engine!r}; choose from: {', '.join(ENGINE_NAMES)}")
    module, name, arguments = _BACKENDS[engine]
    found: Backend = getattr(importlib.import_module(module), name)(*arguments)
    return found


def conditions(bundle: Bundle, request: EngineRequest) -> dict[str, str]:
    """Return everything a built engine depends on, as text by field."""
    graphs = {f"{role}_sha256": bundle.graph(role, request.precision).sha256 for role in ROLES}
    own = backend(request.engine).conditions(request)
    return {"engine": request.engine, "precision": request.precision} | graphs | own


def key_of(fields: dict[str, str]) -> str:
    """Return 16 hex digits over all fields."""
    return hashlib.sha256(msgspec.json.encode(sorted(fields.items()))).hexdigest()[:16]


def folder_of(bundle: Bundle, request: EngineRequest, fields: dict[str, str]) -> Path:
    """Return where the engine with these conditions lies, built or not."""
    return bundle.engines_path / f"{request.engine}-{request.precision}-{key_of(fields)}"


def read_receipt(folder: Path) -> Receipt:
    """Read and check the receipt of one engine folder."""
    path = folder / RECEIPT
    remedy = f"delete {folder} and build again"
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_RECEIPT_BYTES):
            raise SaccadeError(f"{path}: not a receipt; {remedy}")
        receipt = msgspec.json.decode(path.read_bytes(), type=Receipt)
        msgspec.convert(receipt.audit or {}, dict[str, Audit])
    except FileNotFoundError as error:
        raise SaccadeError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise SaccadeError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SaccadeError(f"{path}: {error}; {remedy}") from error
    if key_of(receipt.conditions) != receipt.key or not folder.name.endswith(receipt.key):
        raise SaccadeError(f"{path} is not this engine's receipt (key {receipt.key}); {remedy}")
    if not _is_consistent(receipt):
        raise SaccadeError(f"{path} contradicts itself, so somebody changed it; {remedy}")
    return receipt


def _is_consistent(receipt: Receipt) -> bool:
    """Compare what a receipt says twice, and its roles with those that there are."""
    said = {"engine": receipt.engine, "precision": receipt.precision}
    return (
        said.items() <= receipt.conditions.items()
        and set(receipt.files.values()) == set(receipt.sha256)
        and set(receipt.files) <= set(ROLES)
    )


def receipts(bundle: Bundle) -> list[tuple[Path, Receipt]]:
    """Return all built engines of a bundle, whatever they were built for; unreadable ones are passed over."""
    found = []
    for folder in sorted(bundle.engines_path.glob("[!.]*-*")):  # a leading dot: an interrupted build
        try:
            found.append((folder, read_receipt(folder)))
        except SaccadeError:
            continue
    return found


def why_stale(bundle: Bundle, request: EngineRequest, fields: dict[str, str]) -> str | None:
    """Name what changed since the nearest built engine of the asked kind, or return None where there is none."""
    candidates = [
        receipt
        for _, receipt in receipts(bundle)
        if (receipt.engine, receipt.precision) == (request.engine, request.precision)
    ]
    if not candidates:
        return None
    changes = sorted((_changed(receipt.conditions, fields) for receipt in candidates), key=len)
    return "; ".join(changes[0])


def _changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in names]


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 40 else f"{value[:12]}…"


def ensure(
    bundle: Bundle, request: EngineRequest, progress: Progress, note: Callable[[str], None], *, build: bool = True
) -> tuple[Path, Receipt]:
    """Return the folder and receipt of the asked engine, building it where it is missing or stale.

    `note` hears one line that says why something is built. With `build` False a missing engine is an error.
    """
    for role in ROLES:
        bundle.checked_path(bundle.graph(role, request.precision))
    fields = conditions(bundle, request)
    folder = folder_of(bundle, request, fields)
    if folder.is_dir():
        receipt = read_receipt(folder)
        _check_conditions(folder, receipt, fields)
        return folder, receipt
    stale = why_stale(bundle, request, fields)
    what = f"{request.engine} {request.precision} engine"
    reason = f"the built {what} is for other conditions ({stale})" if stale else f"no {what} is built yet"
    if not build:
        raise SaccadeError(f"{bundle.path}: {reason}; 'saccade build {bundle.path} --engine {request.engine}' builds it")
    note(f"{reason}: building it")
    with _sole_builder(bundle):
        if folder.is_dir():  # another process built it while this one waited
            return folder, read_receipt(folder)
        return folder, build_into(bundle, request, fields, folder, progress)


def _check_conditions(folder: Path, receipt: Receipt, fields: dict[str, str]) -> None:
    """The folder's name already says that they agree, unless somebody renamed it."""
    if changed := _changed(receipt.conditions, fields):
        what = "; ".join(changed)
        raise SaccadeError(f"{folder}: its receipt is for other conditions ({what}); delete it and build again")


@contextlib.contextmanager
def _sole_builder(bundle: Bundle) -> Iterator[None]:
    """Make the folder of engines and hold its lock, so that processes started together build an engine once."""
    try:
        bundle.engines_path.mkdir(exist_ok=True)
    except OSError as error:
        raise atomic.write_error(bundle.engines_path, error) from error
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # no locks on Windows and on some disks: then each builds
            import fcntl

            descriptor = os.open(bundle.engines_path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def build_into(
    bundle: Bundle, request: EngineRequest, fields: dict[str, str], folder: Path, progress: Progress
) -> Receipt:
    """Build beside, write the receipt last, rename: an interrupted build leaves no engine."""
    start = time.perf_counter()
    with atomic.pending_folder(folder) as pending:
        built = backend(request.engine).build(bundle, request, pending, progress)
        receipt = Receipt(
            key=key_of(fields),
            engine=request.engine,
            precision=request.precision,
            conditions=fields,
            files=built.files,
            sha256={name: sha256_of_file(pending / name) for name in built.files.values()},
            realised=built.realised,
            audit=built.audit,
            seconds=round(time.perf_counter() - start, 3),
            saccade=VERSION,
        )
        atomic.write_bytes(pending / RECEIPT, msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n")
    return receipt


def remove_superseded(bundle: Bundle, receipt: Receipt) -> list[Path]:
    """Delete engines that only an older version or graph explains, so that rebuilding does not fill the disk.

    Engines for another device, shape or target stay: another machine may share the bundle.
    """
    ageing = {"version", *(f"{role}_sha256" for role in ROLES)}
    removed = []
    for folder, other in receipts(bundle):
        same_kind = (other.engine, other.precision) == (receipt.engine, receipt.precision)
        names = {change.split(" ", 1)[0] for change in _changed(other.conditions, receipt.conditions)}
        if same_kind and names and names <= ageing:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def load(bundle: Bundle, request: EngineRequest, folder: Path, receipt: Receipt) -> dict[str, Engine]:
    """Check the hashes of a built engine's files and load it: one engine per role."""
    for name, digest in receipt.sha256.items():
        check_hash(folder / name, digest, str(folder / RECEIPT), f"delete {folder} and build again")
    built = Built(files=dict(receipt.files), realised=receipt.realised, audit=receipt.audit)
    loaded = backend(request.engine).load(bundle, request, folder, built)
    if missing := [role for role in ROLES if role not in loaded]:
        raise SaccadeError(f"{folder} holds no {' and no '.join(missing)}; delete it and build again")
    return loaded
