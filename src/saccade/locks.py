"""Locks between processes: held on a file or folder by whoever works on it, and gone with the process however it ends."""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from saccade.errors import SaccadeError

LOCK_PREFIX = ".lock-"
PATIENCE_S = 0.5  # a holder that is just letting go removes its file first


def lock(path: Path, *, shared: bool = False, create: bool = False) -> int | None:
    """Return a descriptor that holds the lock of `path` until it is closed, or None where there are no locks.

    Raises BlockingIOError where another process holds it, FileNotFoundError where `path` is no longer what was locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(path)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:  # some disks have none
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def reserved(place: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Hold `place` while the body runs; where another process holds it, raise `busy` at once.

    Several may share it. The lock is on an empty file beside `place`, since that may not exist yet, or be swapped for
    another folder meanwhile. The last holder removes it; one that a killed process left is taken over. Where no file can
    stand beside `place` nobody can replace it either, so that nothing needs to be locked.
    """
    place = Path(os.path.realpath(place))
    path = place.with_name(f"{LOCK_PREFIX}{place.name}") if place.name else None
    descriptor = None if path is None or not path.parent.is_dir() else _take(path, busy, shared=shared)
    try:
        yield
    finally:
        if path is not None and descriptor is not None:
            _let_go(path, descriptor)


def _take(path: Path, busy: str, *, shared: bool) -> int | None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            descriptor = lock(path, shared=shared, create=True)
        except (BlockingIOError, FileNotFoundError) as error:
            if time.monotonic() > deadline:
                raise SaccadeError(busy) from error
            time.sleep(0.01)
        else:
            if descriptor is None:
                _remove_unlocked(path)
            return descriptor


def _remove_unlocked(path: Path) -> None:
    """Remove the file that was made before it turned out that this disk has no locks; it says nothing to anybody."""
    with contextlib.suppress(OSError):
        path.unlink()


def _let_go(path: Path, descriptor: int) -> None:
    import fcntl

    try:
        with contextlib.suppress(OSError):  # others share it still: the last of them removes it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(descriptor)
