"""Built engines on disk: found by the conditions they were built under, rebuilt when stale, with the reason named.

Each lies under a key over everything it depends on. Where several serve a request, one that states its limits gets the
engine under its own key, else the newest; a run, which states none, gets the newest. The newest is what `saccade build`
made or was asked for last.
"""
from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from saccade import atomic
from saccade._version import VERSION
from saccade.bundle import Bundle, FileName, Sha256, check_hash, sha256_of_file
from saccade.contract import ALL_ROLES
from saccade.engines import quarantine
from saccade.engines.audit import Audit
from saccade.engines.engine import (
    ENGINE_NAMES,
    LIMITS,
    WISHES,
    Backend,
    Built,
    Engine,
    EngineRequest,
    Progress,
    build_command,
    refuse_path,
)
from saccade.engines.sole_builder import sole_builder
from saccade.errors import SaccadeError

RECEIPT = "receipt.json"
SELF_TESTED = ("tensorrt",)  # engines that are built on the GPU they are for, and that 'saccade build' runs there
MAX_RECEIPT_BYTES = 1 << 20
GRAPHS = frozenset(f"{role}_sha256" for role in ALL_ROLES)  # the conditions that name the graphs
VERSIONS = frozenset({"version", "allocation"})  # those that another version of the engine, or of saccade, changes
FORM = frozenset({"static_k", "cls_only"})  # those of an engine that does not take and give everything
# Where each engine's backend lives; the module is imported only when its engine is asked for.
_BACKENDS = {
    "openvino": ("saccade.engines.openvino", "OpenVINOBackend", ()),
    "onnxruntime": ("saccade.engines.onnxruntime", "OnnxRuntimeBackend", ()),
    "tensorrt": ("saccade.engines.tensorrt", "TensorRTBackend", ("tensorrt",)),
    "tensorrt-rtx": ("saccade.engines.tensorrt", "TensorRTBackend", ("tensorrt-rtx",)),
}


Check = Callable[[Path, "Receipt"], None]  # raises where the engine that lies in a folder is not to be put to use


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


def check_runs(engine: str) -> None:
    """Refuse an engine that cannot run here, before one is built that only another machine can use."""
    found = backend(engine).capabilities()
    if not found.can_run:
        raise SaccadeError(found.missing or f"{engine} cannot run here; 'saccade doctor' says what it lacks")


def check_offers(bundle: Bundle, request: EngineRequest) -> None:
    """Refuse what the asked engine does not offer, or the bundle's task cannot give."""
    for name in request.wishes:
        if name not in backend(request.engine).offers:
            others = [engine for engine in ENGINE_NAMES if name in backend(engine).offers]
            raise SaccadeError(f"{request.engine} {WISHES[name]}, or use {' or '.join(others)}")
    if request.cls_only or request.static_k is not None:
        bundle.model  # noqa: B018 - raises for a plain backbone, whose graph has neither form
    if request.cls_only and bundle.manifest.task == "segment":
        raise SaccadeError(f"{bundle.path} segments, and gives nothing but patch tokens; leave cls_only out")


def conditions(bundle: Bundle, request: EngineRequest) -> dict[str, str]:
    """Return everything a built engine depends on, as text by field."""
    chosen = backend(request.engine)
    variant = chosen.variant(request.precision)
    graphs = {f"{role}_sha256": bundle.graph(role, variant).sha256 for role in bundle.roles}
    own = chosen.conditions(request) | _form(request)
    return {"engine": request.engine, "precision": request.precision} | graphs | own


def _form(request: EngineRequest) -> dict[str, str]:
    """Return the conditions in FORM that a request has."""
    static = {} if request.static_k is None else {"static_k": str(request.static_k)}
    return static | ({"cls_only": "yes"} if request.cls_only else {})


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
        and set(receipt.files) <= set(ALL_ROLES)
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


def find(
    bundle: Bundle, request: EngineRequest, fields: dict[str, str], *, whole: bool = False
) -> tuple[Path, Receipt] | None:
    """Return the built engine that serves a request best; with `whole` only one whose files are what its receipt says."""
    own = folder_of(bundle, request, fields)
    serves = backend(request.engine).serves
    fitting = [
        (not request.any_limits and folder == own, _age_key(folder), folder, receipt)
        for folder, receipt in receipts(bundle)
        if serves(receipt.conditions, fields, request) and not (whole and damage(folder))
    ]
    if not fitting:
        return None
    *_, folder, receipt = max(fitting, key=lambda each: each[:3])
    return folder, receipt


def _make_newest(bundle: Bundle, request: EngineRequest, fields: dict[str, str], folder: Path) -> None:
    """Let runs take the engine that was asked for last, where several would do."""
    newest = find(bundle, msgspec.structs.replace(request, any_limits=True), fields)
    if newest is not None and newest[0] != folder:
        with contextlib.suppress(OSError):  # a read-only bundle keeps its order
            os.utime(folder / RECEIPT)


def _age_key(folder: Path) -> int:
    """Return a number that is larger for a newer engine."""
    try:
        return (folder / RECEIPT).stat().st_mtime_ns
    except OSError:
        return 0


def damage(folder: Path) -> str | None:
    """Say what is wrong with an engine folder and its files, without the remedy; None where nothing is."""
    try:
        check_files(folder, read_receipt(folder))
    except SaccadeError as error:
        return str(error).rpartition("; ")[0]
    return None


def check_files(folder: Path, receipt: Receipt) -> None:
    """Compare an engine's files with their hashes."""
    for name, digest in receipt.sha256.items():
        check_hash(folder / name, digest, str(folder / RECEIPT), f"delete {folder} and build again")


def why_stale(bundle: Bundle, request: EngineRequest, fields: dict[str, str]) -> str | None:
    """Name what changed since the nearest built engine of the asked kind, or return None where there is none."""
    kind = {"engine", "precision"} | FORM
    changes = [
        _obstacles(receipt.conditions, fields, request)
        for _, receipt in receipts(bundle)
        if all(receipt.conditions.get(name) == fields.get(name) for name in kind)
    ]
    return "; ".join(sorted(changes, key=len)[0]) if changes else None


def _obstacles(old: dict[str, str], new: dict[str, str], request: EngineRequest) -> list[str]:
    """Name the changes that matter: those without which the old engine would still not serve."""
    serves = backend(request.engine).serves
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in names
        if name not in old or not serves(new | {name: old[name]}, new, request)
    ]


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 40 else f"{value[:12]}…"


def ensure(
    bundle: Bundle,
    request: EngineRequest,
    progress: Progress,
    note: Callable[[str], None],
    *,
    build: bool = True,
    thorough: bool = False,
    check: Check | None = None,
) -> tuple[Path, Receipt]:
    """Return the folder and receipt of the asked engine, building it where it is missing or stale.

    `note` hears one line that says why something is built or removed. With `build` False a missing engine is an error.
    `thorough` is what `saccade build` asks for: the files are checked too, a damaged engine is built again (else it is
    an error), and engines of other versions go. What is built is put to use only after `check`.
    """
    refuse_path(bundle.path)
    check_offers(bundle, request)
    variant = backend(request.engine).variant(request.precision)
    for role in bundle.roles:
        bundle.checked_graph(role, variant)
    fields = conditions(bundle, request)
    if found := find(bundle, request, fields, whole=thorough):
        if not request.any_limits:
            _make_newest(bundle, request, fields, found[0])
        return found
    reason = _why_missing(bundle, request, fields, thorough=thorough)
    if not build:
        raise SaccadeError(f"{bundle.path}: {reason}; '{build_command(bundle, request)}' builds it")
    note(f"{reason}: building it{_untested(bundle, request) if check is None else ''}")
    with sole_builder(bundle, variant):
        if found := find(bundle, request, fields, whole=thorough):  # built by another process while this one waited
            return found
        folder = folder_of(bundle, request, fields)
        receipt = build_into(bundle, request, fields, folder, progress, check)
        for old in remove_superseded(bundle, receipt, other_versions=thorough):
            note(f"removed {old}, which an older version or graph explains")
        return folder, receipt


def _untested(bundle: Bundle, request: EngineRequest) -> str:
    """Say of an engine that a run builds that nobody tests it, where 'saccade build' would."""
    if request.engine not in SELF_TESTED:
        return ""
    return f", untested; '{build_command(bundle, request)}' tests it"


def _why_missing(bundle: Bundle, request: EngineRequest, fields: dict[str, str], *, thorough: bool) -> str:
    """Say why no built engine serves; one that is damaged is an error unless it is to be built again."""
    folder = folder_of(bundle, request, fields)
    if not thorough:
        _refuse_failed(bundle, request, fields)
    if os.path.lexists(folder):
        if not thorough:
            read_receipt(folder)
        if damaged := damage(folder):
            return damaged
    what = f"{request.title} engine"
    stale = why_stale(bundle, request, fields)
    return f"the built {what} is for other conditions ({stale})" if stale else f"no {what} is built yet"


def _refuse_failed(bundle: Bundle, request: EngineRequest, fields: dict[str, str]) -> None:
    """Raise where this engine failed its self-test, or one that takes other sizes and is otherwise the same."""
    own = quarantine.place_of(folder_of(bundle, request, fields))
    for place in quarantine.places(bundle.engines_path):
        failed: dict[str, str] = {}
        with contextlib.suppress(SaccadeError):
            failed = read_receipt(place).conditions
        if place == own or _without_limits(failed) == _without_limits(fields):
            raise quarantine.refusal(place, build_command(bundle, request))


def _without_limits(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in LIMITS}


def build_into(
    bundle: Bundle,
    request: EngineRequest,
    fields: dict[str, str],
    folder: Path,
    progress: Progress,
    check: Check | None = None,
) -> Receipt:
    """Build beside, write the receipt, check, rename: an interrupted build or check leaves no engine."""
    start = time.perf_counter()
    _make_way(folder)
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
        if check is not None:
            check(pending, receipt)
    return receipt


def _make_way(folder: Path) -> None:
    """Remove a file or a link that stands for an engine; through the link something elsewhere would be replaced."""
    try:
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
    except OSError as error:
        raise atomic.write_error(folder, error) from error


def remove_superseded(bundle: Bundle, receipt: Receipt, *, other_versions: bool = True) -> list[Path]:
    """Delete engines that this one replaces, so that rebuilding does not fill the disk.

    Superseded is what was built for the same engine, precision and hardware, of whatever form and limits, from older graphs,
    which nothing can use any more; and with `other_versions` by another version of the engine. A run leaves those: two
    environments that share a bundle would build in turns. Engines for other devices stay, another machine may have them.
    """
    ageing = GRAPHS | (VERSIONS if other_versions else frozenset())
    removed = []
    for folder, other in receipts(bundle):
        old, new = other.conditions, receipt.conditions
        changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if changed & ageing and changed <= GRAPHS | LIMITS | FORM | VERSIONS:
            with contextlib.suppress(OSError):  # it fills the disk and does no other harm
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
                removed.append(folder)
    return removed


def load(bundle: Bundle, request: EngineRequest, folder: Path, receipt: Receipt) -> dict[str, Engine]:
    """Check the hashes of a built engine's files and load it: one engine per role."""
    check_files(folder, receipt)
    built = Built(files=dict(receipt.files), realised=receipt.realised, audit=receipt.audit)
    loaded = backend(request.engine).load(bundle, request, folder, built)
    if missing := [role for role in bundle.roles if role not in loaded]:
        for engine in loaded.values():
            engine.close()
        raise SaccadeError(f"{folder} holds no {' and no '.join(missing)}; delete it and build again")
    return loaded
