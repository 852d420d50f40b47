"""Features of many images on disk: extracted in batches, in the order of the images, and taken up again where they stopped.

A folder holds one file of raw rows for each output and `state.json`, which says how many rows of them count. Rows are
appended and never mapped while they are written, so memory does not grow with the number of images.
"""
from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct

from saccade import atomic, locks
from saccade.counted import counted
from saccade.errors import EngineError, SaccadeError
from saccade.runtime.finite import row_not_finite

STATE = "state.json"
FEATURES_VERSION = 1  # raise it where saccade itself comes to give other features for the same recipe
SAVE_EVERY = 64  # images: what an interrupted run does again at most
MAX_STATE_BYTES = 1 << 28
AHEAD = 2  # batches that are decoded before their turn

Decode: TypeAlias = Callable[[Path], np.ndarray]  # a file as uint8 (H, W, 3), already of the size it runs at
# Batches of images of one size -> the outputs of each, batch axis first, in order; several may be under way at once.
Stream: TypeAlias = Callable[[Iterable[list[np.ndarray]]], Iterable[Mapping[str, np.ndarray]]]
Count: TypeAlias = Annotated[int, Meta(ge=0)]


class NothingReadableError(SaccadeError):
    """Not one image of a list can be read: where the list is a part of a data set, the rest may do without it."""


class RowSpec(Struct, frozen=True):
    """One row of an output."""

    dtype: Annotated[str, Meta(pattern="^[<>|][fiu][1248]$")]
    shape: tuple[Count, ...]

    @property
    def bytes(self) -> int:
        """Return the size of a row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class State(Struct, kw_only=True):
    """How far an extraction has come."""

    recipe: dict[str, str]
    seen: Count = 0  # images taken from the list, unreadable ones included
    outputs: dict[Annotated[str, Meta(pattern="^\\w+$")], RowSpec] = {}
    failed: dict[Count, str] = {}  # number of an unreadable image in the list -> why

    @property
    def rows(self) -> int:
        """Return how many rows of each output count."""
        return self.seen - len(self.failed)


@dataclass(frozen=True)
class Features:
    """What was extracted: row i of every array belongs to `names[i]`."""

    names: list[str]
    arrays: dict[str, np.ndarray]  # mapped from disk, read only
    failed: dict[str, str]

    def rows_of(self, images: Sequence[Path]) -> np.ndarray:
        """Return the row of each of the images that were extracted, in their order, int64; -1 for an unreadable one."""
        readable = np.array([str(path) not in self.failed for path in images])
        return np.where(readable, np.cumsum(readable) - 1, -1)


def extract(
    images: Sequence[Path],
    root: Path,
    recipe: Mapping[str, str],
    *,
    decode: Decode,
    stream: Stream,
    outputs: Sequence[str] | None,
    batch: int = 8,
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
    sized: Callable[[int], None] = lambda size: None,
) -> Features:
    """Extract `outputs` (None: all that `stream` gives) of all images below `root` and return them.

    What an earlier run has left there is not done again. `recipe` is everything the features depend on beside the images
    (graphs, engine, size, k, ...): another one gets another folder, and so do images that have changed since. `progress`
    hears how many images are done, `sized` how many bytes all their rows take, once that is known. An unreadable image has
    no row and is named in `failed`. Raises NothingReadableError where none is readable, and SaccadeError after the first
    batch where the disk is too small for all.
    """
    names = [str(path) for path in images]
    what = {"features": str(FEATURES_VERSION), "outputs": " ".join(outputs or ())}
    full = {**recipe, **what, "images": _digest(map(_identity, names))}
    folder = root / _digest([f"{name}={value}" for name, value in sorted(full.items())])[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.write_error(folder, error) from error
    busy = f"{folder} is being filled by another process; wait for it"
    with locks.reserved(folder, busy):
        state = _read_state(folder, full, len(names))
        if state.seen < len(names):
            with ExitStack() as stack:
                writer = stack.enter_context(_Writer(folder, state, len(names), sized))
                progress(state.seen)
                for done in _extracted(images[state.seen :], decode, stream, outputs, batch, workers):
                    writer.add(done)
                    progress(state.seen)
    if not state.rows:
        why = next(iter(state.failed.values()), "the list is empty")
        raise NothingReadableError(f"none of {counted(len(names), 'image')} can be read ({why})")
    readable = [name for index, name in enumerate(names) if index not in state.failed]
    return Features(readable, _mapped(folder, state), {names[index]: why for index, why in state.failed.items()})


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(os.fsencode(text) + b"\0")
    return digest.hexdigest()


def _identity(name: str) -> str:
    """Return a file's name with what changes when its content does; the name alone where it cannot be read now."""
    try:
        status = Path(name).stat()
    except OSError:
        return name  # it will fail to decode, and be counted
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}" if os.access(name, os.R_OK) else name


def _read_state(folder: Path, recipe: dict[str, str], images: int) -> State:
    """Return what an earlier run left, or a beginning."""
    path = folder / STATE
    if not os.path.lexists(path):
        return State(recipe=recipe)
    remedy = f"delete {folder}"
    if not path.is_file() or path.stat().st_size > MAX_STATE_BYTES:
        raise SaccadeError(f"{path}: not a state of an extraction; {remedy}")
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SaccadeError(f"{path}: {error}; {remedy}") from error
    short = [name for name, spec in state.outputs.items() if _size(folder / f"{name}.rows") < state.rows * spec.bytes]
    if state.recipe != recipe or short or not max(state.failed, default=-1) < state.seen <= images:
        raise SaccadeError(f"{path}: it does not belong to the rows beside it; {remedy}")
    return state


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _mapped(folder: Path, state: State) -> dict[str, np.ndarray]:
    return {
        name: np.memmap(folder / f"{name}.rows", spec.dtype, "r", shape=(state.rows, *spec.shape))
        for name, spec in state.outputs.items()
    }


@dataclass(frozen=True)
class _Done:
    """Some images that are dealt with: those of one batch, or one that cannot be read."""

    names: list[str]
    outputs: Mapping[str, np.ndarray]
    failure: str | None = None


@dataclass(frozen=True)
class _Batch:
    """Images of one size that run together; none where the one name cannot be read, and why."""

    names: list[str]
    pixels: list[np.ndarray]
    failure: str | None = None


def _extracted(
    images: Sequence[Path], decode: Decode, stream: Stream, outputs: Sequence[str] | None, batch: int, workers: int
) -> Iterator[_Done]:
    """Run batches of images in order; the next ones are decoded meanwhile."""
    under_way: deque[tuple[list[str], str | None]] = deque()

    def noted() -> Iterator[list[np.ndarray]]:
        for each in _batches(images, decode, batch, workers):
            under_way.append((each.names, each.failure))
            if each.failure is None:
                yield each.pixels

    def failures() -> Iterator[_Done]:
        while under_way and under_way[0][1] is not None:
            names, failure = under_way.popleft()
            yield _Done(names, {}, failure)

    for found in stream(noted()):
        yield from failures()  # those before it, in the order of the list
        names, _ = under_way.popleft()
        yield _Done(names, {name: found[name] for name in outputs or found})
    yield from failures()


def _batches(images: Sequence[Path], decode: Decode, batch: int, workers: int) -> Iterator[_Batch]:
    """Yield images in batches that share a size, and each unreadable one by itself, in the order of the list."""
    names: list[str] = []
    pixels: list[np.ndarray] = []
    for path, result in _decoded(images, decode, batch, workers):
        if pixels and (isinstance(result, SaccadeError) or len(pixels) == batch or pixels[0].shape != result.shape):
            yield _Batch(names, pixels)
            names, pixels = [], []
        if isinstance(result, SaccadeError):
            yield _Batch([str(path)], [], str(result))
        else:
            names.append(str(path))
            pixels.append(result)
    if pixels:
        yield _Batch(names, pixels)


def _decoded(
    images: Sequence[Path], decode: Decode, batch: int, workers: int
) -> Iterator[tuple[Path, np.ndarray | SaccadeError]]:
    """Yield each image decoded, or what is wrong with it, in order; a few are decoded ahead in other threads."""

    def attempt(path: Path) -> np.ndarray | SaccadeError:
        try:
            return decode(path)
        except SaccadeError as error:
            return error

    pending: deque[tuple[Path, Future[np.ndarray | SaccadeError]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="saccade-decode") as pool:
        try:
            for path in images:
                pending.append((path, pool.submit(attempt, path)))
                if len(pending) > AHEAD * batch:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _check_rows(name: str, array: np.ndarray, images: Sequence[str]) -> None:
    """Refuse rows that are not one for each image, or that hold what no score may be made of, before they are kept."""
    if len(array) != len(images):
        rows = counted(len(array), "row")
        raise SaccadeError(f"{images[0]}: {rows} of {name} came of a batch of {counted(len(images), 'image')}")
    if (row := row_not_finite(array)) is not None:
        raise EngineError(f"{images[row]}: its {name} holds NaN or infinity; look at the engine with saccade parity")


class _Writer:
    """Appends rows, and now and then says in state.json that they count."""

    def __init__(self, folder: Path, state: State, images: int, sized: Callable[[int], None]) -> None:
        self._folder, self._state, self._images, self._sized = folder, state, images, sized
        self._is_sized = False
        self._files: dict[str, BinaryIO] = {}
        self._saved = state.seen

    def __enter__(self) -> _Writer:
        for name, spec in self._state.outputs.items():
            os.truncate(self._folder / f"{name}.rows", self._state.rows * spec.bytes)  # rows that do not count yet
            self._files[name] = self._opened(name)
        return self

    def __exit__(self, *unused: object) -> None:
        try:
            self._save()  # also after an interrupt: what is done is done
        finally:
            for file in self._files.values():
                with contextlib.suppress(OSError):  # a full disk, which the save has named
                    file.close()

    def _opened(self, name: str) -> BinaryIO:
        path = self._folder / f"{name}.rows"
        try:
            return path.open("ab")
        except OSError as error:
            raise atomic.write_error(path, error) from error

    def add(self, done: _Done) -> None:
        """Write the rows of a batch; they count from the next save on."""
        for name, array in done.outputs.items():
            _check_rows(name, array, done.names)
            spec = RowSpec(array.dtype.str, array.shape[1:])
            if self._state.outputs.setdefault(name, spec) != spec:
                have, want = list(spec.shape), list(self._state.outputs[name].shape)
                raise SaccadeError(f"{done.names[0]}: its {name} has shape {have}, the others {want}; all must share one")
            if name not in self._files:
                (self._folder / f"{name}.rows").unlink(missing_ok=True)
                self._files[name] = self._opened(name)
        if done.outputs and not self._is_sized:
            self._check_space()
        for name, array in done.outputs.items():
            self._write(name, np.ascontiguousarray(array))
        if done.failure is not None:
            self._state.failed[self._state.seen] = done.failure
        self._state.seen += len(done.names)
        if self._state.seen - self._saved >= SAVE_EVERY:
            self._save()

    def _check_space(self) -> None:
        """Refuse rows that the disk cannot hold before hours go into them; what is there already needs no room."""
        row = sum(spec.bytes for spec in self._state.outputs.values())
        size, missing = row * self._images, row * (self._images - self._state.seen)
        free = shutil.disk_usage(self._folder).free
        if missing > free:
            need = f"features of {counted(self._images, 'image')} take {missing / 1e9:.1f} GB more"
            raise SaccadeError(f"{self._folder}: {need} and {free / 1e9:.1f} GB are free; give --features on another disk")
        self._is_sized = True
        self._sized(size)

    def _write(self, name: str, array: np.ndarray) -> None:
        try:
            self._files[name].write(array.data)
        except OSError as error:
            raise atomic.write_error(self._folder / f"{name}.rows", error) from error

    def _save(self) -> None:
        try:
            for file in self._files.values():
                file.flush()
        except OSError as error:
            raise atomic.write_error(self._folder, error) from error
        atomic.write_bytes(self._folder / STATE, msgspec.json.encode(self._state))
        self._saved = self._state.seen
