"""Work in a process of its own, for what may crash or spoil the process it runs in: the parent's side, and the child's.

The child is `python -m MODULE`. It reads one job as JSON from stdin and writes one message a line to stdout.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

PR_SET_PDEATHSIG = 1  # linux/prctl.h
Job = TypeVar("Job", bound=msgspec.Struct)


class Death(NamedTuple):
    """A child that ended without its last word."""

    status: int  # below 0: the signal that ended it
    stderr: str

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        return signal.Signals(-self.status).name if self.status < 0 else None


# ---- the parent's side


def run_child(module: str, job: msgspec.Struct, messages: Any, hear: Callable[[Any], bool]) -> Any:
    """Run a child and return its last word, or Death where it ended without one.

    `hear` gets each message, decoded as one of `messages`, and says whether more are to come. The child never outlives
    this call, whatever ends it.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as stderr, subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
    ) as child:
        try:
            last_word = _last_word(child, job, messages, hear)
            child.wait()
        except BaseException:
            child.kill()
            raise
        if last_word is not None:
            return last_word
        stderr.seek(0)
        return Death(child.returncode, stderr.read().decode(errors="replace"))


def _last_word(
    child: subprocess.Popen[bytes], job: msgspec.Struct, messages: Any, hear: Callable[[Any], bool]
) -> Any:
    """Hand the job over and listen; None where the child died without a last word."""
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as stdin:  # a dead child is reported by its exit status
        stdin.write(msgspec.json.encode(job))
    for line in child.stdout:
        if not line.endswith(b"\n"):  # it died in the middle of a word
            break
        message = msgspec.json.decode(line, type=messages)
        if not hear(message):
            return message
    return None


# ---- the child's side


def take_job(kind: type[Job]) -> tuple[Job, Callable[[msgspec.Struct], None]]:
    """Return the job, whose `parent` is the process to end with, and the function that sends a message.

    Ctrl-C, which a terminal sends to both, is the parent's to decide on.
    """
    channel = _claim_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    _end_with(job.parent)  # type: ignore[attr-defined]

    def send(message: msgspec.Struct) -> None:
        channel.write(msgspec.json.encode(message) + b"\n")
        channel.flush()

    return job, send


def _claim_stdout() -> BinaryIO:
    """Return the real stdout and point descriptor 1 at stderr: TensorRT prints some complaints there directly."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def _end_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the work just runs to its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
