"""What Ctrl-C and SIGTERM do: they end a command in one line, with the exit code that a shell expects of the signal."""
from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

MESSAGE = "interrupted; nothing half-written was left behind"


class Terminated(KeyboardInterrupt):
    """A SIGTERM, which cleans up as Ctrl-C does."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 130 for Ctrl-C (SIGINT), 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def end_at_once() -> None:
    """Let Ctrl-C end the process where it stands, while modules are imported and nothing is there to clean up.

    Raised in the middle of an import it could come out as any other error.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, _end)


def raise_from_now_on() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again where `end_at_once` has taken it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, f"saccade: {MESSAGE}\n".encode())
    os._exit(128 + signal.SIGINT)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise Terminated in the body, and then give it back to whoever had it."""

    def terminate(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: then signals are the caller's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
