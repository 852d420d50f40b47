"""Write files and folders beside their final place, then rename: what exists is always whole."""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from saccade import locks
from saccade.errors import SaccadeError

# Temporary names start with this. A killed process may leave one behind: no reader ever looks at it, and the next writer
# of the same target removes it.
PENDING_PREFIX = ".pending-"
# What stood at a target while its successor moves in; the only copy there is if the process is killed just then.
REPLACED_PREFIX = ".replaced-"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h

_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and repeat",
    errno.EDQUOT: "the disk quota is used up; free some space and repeat",
    errno.EROFS: "the file system is read-only; choose a place that can be written",
    errno.EACCES: "permission denied; choose a place that can be written",
    errno.EPERM: "permission denied; choose a place that can be written",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "something else stands there; move it away first",
}


# The same of what can lie in no other place: whatever is added to a bundle.
_FIXED_PLACE_ERRORS = {
    errno.EROFS: "the file system is read-only; copy the bundle to a place that can be written",
    errno.EACCES: "permission denied; run it as a user who may write there, or copy the bundle",
    errno.EPERM: "permission denied; run it as a user who may write there, or copy the bundle",
}


def write_error(path: Path, error: OSError) -> SaccadeError:
    """Return the one-line form of an error met while writing `path`."""
    reason = _WRITE_ERRORS.get(error.errno or 0, f"{error.strerror or error}")
    return SaccadeError(f"cannot write {path}: {reason}")


def _fresh_name(target: Path, prefix: str) -> Path:
    """Return a fresh name in the folder of `target`; the suffix stays, since some libraries look at it."""
    return target.with_name(f"{prefix}{secrets.token_hex(4)}-{target.name}")


def _refuse_nameless(target: Path) -> None:
    if target.name in ("", ".."):  # "." and "/" have no name
        raise SaccadeError(f"cannot write {target}: it has no name of its own to be written under; choose another place")


def _is_ours(error: OSError, target: Path) -> bool:
    """Whether an error met in the body is about what is written there, and not about something that it read."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or error.filename is None:
        return True
    path = str(error.filename)
    return path.startswith(str(target.with_name(PENDING_PREFIX))) or path == str(target.parent)


@contextlib.contextmanager
def _held(target: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a fresh pending file or folder, locked and removed at the end, after removing what dead writers left."""
    _sweep(target)
    pending, descriptor = _made(target, folder=folder)
    try:
        yield pending
    finally:
        _remove(pending)
        if descriptor is not None:
            os.close(descriptor)


def _made(target: Path, *, folder: bool) -> tuple[Path, int | None]:
    """Make a pending file or folder and lock it, which is how others know that its writer lives."""
    while True:
        pending = _fresh_name(target, PENDING_PREFIX)
        if folder:
            pending.mkdir()
        else:
            pending.touch(exist_ok=False)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # swept before it was locked: another one
            return pending, locks.lock(pending)


def _sweep(target: Path) -> None:
    """Remove what killed writers of `target` left behind: what has our very pattern and can be locked."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed is reported where it is written
        prefixes = [PENDING_PREFIX, *([REPLACED_PREFIX] if target.exists() else [])]
        ours = re.compile(f"({'|'.join(map(re.escape, prefixes))})[0-9a-f]{{8}}-{re.escape(target.name)}")
        for path in list(target.parent.iterdir()):
            if ours.fullmatch(path.name):
                _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    try:
        descriptor = locks.lock(path)
    except OSError:  # its writer lives, or somebody else removes it
        return
    if descriptor is not None:
        _remove(path)
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def check_writable(target: Path) -> None:
    """Raise what writing `target` would raise now, before the work whose result it is to hold."""
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise write_error(target, error) from error


def prepare_in_bundle(folder: Path) -> None:
    """Make a bundle's folder if it is missing, and raise where nothing can be added to it, with what to do instead."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in _FIXED_PLACE_ERRORS:
            raise SaccadeError(f"cannot write {folder}: {_FIXED_PLACE_ERRORS[error.errno]}") from error
        raise write_error(folder, error) from error


@contextlib.contextmanager
def pending_file(target: Path) -> Iterator[Path]:
    """Yield an empty file to fill; on success it replaces `target`, on any error or interrupt it is removed."""
    _refuse_nameless(target)
    if target.exists() and not target.is_file() and not target.is_dir():  # a device such as /dev/null would be replaced
        raise SaccadeError(f"cannot write {target}: it is a device or a pipe; name a file")
    with _errors_named(target, target), _held(target, folder=False) as pending:
        yield pending
        pending.replace(target)


@contextlib.contextmanager
def pending_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `target`, replacing the folder that stood there.

    A symbolic link to a folder stays: the folder behind it is replaced, on its own disk.
    """
    _refuse_nameless(target)  # before the link is followed
    place = Path(os.path.realpath(target))  # resolve() raises RuntimeError where links go round in a circle
    with _errors_named(target, place), _held(place, folder=True) as pending:
        yield pending
        _replace_folder(pending, place)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that is removed in the end; what is to stay is renamed out of it."""
    with _errors_named(target, target), _held(target, folder=True) as pending:
        yield pending


@contextlib.contextmanager
def _errors_named(target: Path, place: Path) -> Iterator[None]:
    """Turn an error of the system met while writing beside `place` into one line about `target`."""
    try:
        yield
    except OSError as error:
        if _is_ours(error, place):
            raise write_error(target, error) from error
        raise


def _replace_folder(pending: Path, target: Path) -> None:
    """Put `pending` in the place of `target`. What stood there ends up under the name of `pending`, or is removed."""
    if not target.is_dir():
        try:
            pending.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another writer's folder came first
                raise
    if not _exchange(pending, target):
        _step_aside(pending, target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that a reader always finds one; False where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    answer: int = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return answer == 0


def _step_aside(pending: Path, target: Path) -> None:
    """Replace in two steps: a folder cannot be renamed over a full one, so that steps aside first."""
    old = _fresh_name(target, REPLACED_PREFIX)
    try:
        target.rename(old)
        pending.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():  # else the old folder is all there is
            shutil.rmtree(old, ignore_errors=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` in one step."""
    with pending_file(target) as pending, pending.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
