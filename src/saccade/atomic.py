"""Write files and folders beside their final place, then rename: what exists is always whole."""
from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from saccade.errors import SaccadeError

# Temporary names start with this; an interrupted process may leave one behind, and no reader ever looks at it.
PENDING_PREFIX = ".pending-"

_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and repeat",
    errno.EDQUOT: "the disk quota is used up; free some space and repeat",
    errno.EROFS: "the file system is read-only; choose a place that can be written",
    errno.EACCES: "permission denied; choose a place that can be written",
    errno.EPERM: "permission denied; choose a place that can be written",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "it is a folder; name a file",
}


def write_error(path: Path, error: OSError) -> SaccadeError:
    """Return the one-line form of an error met while writing `path`."""
    reason = _WRITE_ERRORS.get(error.errno or 0, f"{error.strerror or error}")
    return SaccadeError(f"cannot write {path}: {reason}")


def _pending_path(target: Path) -> Path:
    """Return a fresh name in the folder of `target`; the suffix stays, since some libraries look at it."""
    if target.name in ("", ".."):  # "." and "/" have no name
        raise SaccadeError(f"cannot write {target}: it has no name of its own to be written under; choose another place")
    return target.with_name(f"{PENDING_PREFIX}{secrets.token_hex(4)}-{target.name}")


def _is_ours(error: OSError, pending: Path) -> bool:
    """Whether an error met in the body is about what is written there, and not about something that it read."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or error.filename is None:
        return True
    return str(error.filename).startswith(str(pending)) or str(error.filename) == str(pending.parent)


@contextlib.contextmanager
def pending_file(target: Path) -> Iterator[Path]:
    """Yield a path to write; on success it replaces `target`, on any error or interrupt it is removed."""
    pending = _pending_path(target)
    if target.exists() and not target.is_file() and not target.is_dir():  # a device such as /dev/null would be replaced
        raise SaccadeError(f"cannot write {target}: it is a device or a pipe; name a file")
    try:
        yield pending
        pending.replace(target)
    except OSError as error:
        if _is_ours(error, pending):
            raise write_error(target, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            pending.unlink()


@contextlib.contextmanager
def pending_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `target`, replacing the folder that stood there.

    A symbolic link to a folder stays: the folder behind it is replaced, on its own disk.
    """
    _pending_path(target)  # refuse what has no name, before the link is followed
    place = target.resolve()
    pending = _pending_path(place)
    try:
        pending.mkdir()
        yield pending
        _replace_folder(pending, place)
    except OSError as error:
        if _is_ours(error, pending):
            raise write_error(target, error) from error
        raise
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def _replace_folder(pending: Path, target: Path) -> None:
    """Put `pending` in the place of `target`; a folder cannot be renamed over a full one, so that steps aside first."""
    if not target.is_dir():
        pending.rename(target)
        return
    old = _pending_path(target)
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
