"""One builder of a bundle's engines at a time, and none while the bundle is exported or converted."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from saccade import atomic, locks
from saccade.bundle import Bundle, read_bundle
from saccade.errors import SaccadeError


@contextlib.contextmanager
def sole_builder(bundle: Bundle, variant: str) -> Iterator[None]:
    """Make the folder of engines and hold its lock, so that processes started together build an engine once.

    The bundle is reserved too, together with other builds: an export that replaced it now would take the engine along.
    """
    with contextlib.ExitStack() as stack:
        if not bundle.path.name.startswith(atomic.PENDING_PREFIX):  # there an export checks what nobody else knows of
            busy = f"{bundle.path} is being exported or converted by another process; repeat when it is done"
            stack.enter_context(locks.reserved(bundle.path, busy, shared=True))
            now = read_bundle(bundle.path)
            if any(now.graph(role, variant) != bundle.graph(role, variant) for role in bundle.roles):
                raise SaccadeError(f"{bundle.path} was exported or converted again meanwhile; repeat")
        stack.enter_context(_lock_on_engines(bundle))
        yield


@contextlib.contextmanager
def _lock_on_engines(bundle: Bundle) -> Iterator[None]:
    """Wait for other builds of this bundle, unlike a reservation, since they may be building this very engine."""
    atomic.prepare_in_bundle(bundle.engines_path)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # no locks on Windows and on some disks: then each builds
            import fcntl

            descriptor = os.open(bundle.engines_path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
