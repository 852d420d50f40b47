"""The entry point: arguments, dispatch, and what becomes of errors."""
from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from saccade._version import VERSION
from saccade.cli import bench, check, convert, create, evaluate, make_checkpoint, run, show
from saccade.errors import SaccadeError


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line; building it imports neither torch nor an engine."""
    parser = argparse.ArgumentParser(
        prog="saccade",
        description="Take LookWhere models and plain backbones out of PyTorch: export, build engines, run, prove equality.",
    )
    parser.add_argument("--version", action="version", version=f"saccade {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (make_checkpoint, create, convert, run, check, bench, evaluate, show):
        module.add_commands(commands)
    for name, command in commands.choices.items():
        if name == "evaluate":
            continue  # each of its tasks has it
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return parser


class _Terminated(KeyboardInterrupt):
    """A SIGTERM, which cleans up as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 for success, 1 for a problem the user can mend; argparse itself exits with 2.

    An interrupt returns what a shell says of its signal: 130 for Ctrl-C (SIGINT), 143 for SIGTERM.
    """
    try:
        options = build_parser().parse_args(arguments)
        with _sigterm_interrupts():
            return _execute(options)
    except KeyboardInterrupt as interrupt:
        _complain("interrupted; nothing half-written was left behind")
        return 128 + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise _Terminated in the body, and then give it back to whoever had it."""

    def terminate(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: then signals are the caller's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _execute(options: argparse.Namespace) -> int:
    """Run the command and print what it says."""
    try:
        report = options.execute(options)
    except SaccadeError as error:
        return _fail(str(error), as_json=options.json)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # met wherever a path is first looked at
            raise
        return _fail(f"the path {str(error.filename)[:40]}… is too long; give a shorter one", as_json=options.json)
    try:
        _say(json.dumps(_jsonable(report.data), allow_nan=False) if options.json else "\n".join(report.lines))
    except OSError as error:
        reason = f"cannot write the result to stdout: {error.strerror}; send it to another place and repeat"
        return _fail(reason, as_json=False)
    return 0 if report.passed else 1


def _say(text: str) -> None:
    """Print the result now; a reader that has seen enough (`| head`) is no error."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes stdout once more at its end; there is nothing left that it could write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _jsonable(value: Any) -> Any:
    """Return what JSON can hold: it has no NaN and no infinity (the PSNR of equal tensors), so those become null."""
    if isinstance(value, dict):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(message: str, *, as_json: bool) -> int:
    """Say what went wrong in one line."""
    line = " ".join(message.split())
    if as_json:
        with contextlib.suppress(OSError):  # nobody reads: the exit code still tells
            _say(json.dumps({"error": line}))
    _complain(f"error: {line}")
    return 1


def _complain(line: str) -> None:
    if sys.stderr is not None:  # None where the caller closed it; print would then use stdout
        print(f"saccade: {line}", file=sys.stderr)
