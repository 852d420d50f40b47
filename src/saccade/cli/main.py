"""The entry point: arguments, dispatch, and what becomes of errors."""
from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from saccade._version import VERSION
from saccade.cli import bench, check, convert, create, evaluate, make_checkpoint, run, show
from saccade.cli.console import json_text, printable
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
    except OSError as error:  # met wherever a path is first looked at
        if error.errno is None or error.filename is None:  # no answer of the system about a path
            raise
        return _fail(_refusal(error), as_json=options.json)
    try:
        _say(json_text(report.data) if options.json else "\n".join(report.lines))
    except OSError as error:
        reason = f"cannot write the result to stdout: {error.strerror}; send it to another place and repeat"
        return _fail(reason, as_json=False)
    return 0 if report.passed else 1


def _refusal(error: OSError) -> str:
    """Say in one line what the system has refused."""
    name = os.fsdecode(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        return f"the path {name[:40]}… is too long; give a shorter one"
    return f"cannot use {name}: {error.strerror}; mend that, or give another place, and repeat"


def _say(text: str) -> None:
    """Print the result now; a reader that has seen enough (`| head`) is no error."""
    try:
        print(printable(text), flush=True)
    except OSError as error:
        # Python flushes stdout once more at its end; there is nothing left that it could write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


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
