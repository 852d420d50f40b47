"""The entry point: arguments, dispatch, and what becomes of errors."""
from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from saccade._version import VERSION
from saccade.cli import interrupts
from saccade.cli.console import json_text
from saccade.errors import SaccadeError, one_line

COMMANDS = {  # name: what adds its options, imported only where the command is given, and its line of --help
    "make-checkpoint": (
        "make_checkpoint:add_make_checkpoint",
        "write seeded weights in a real checkpoint layout, to try everything without a download",
    ),
    "export": ("create:add_export", "checkpoint -> bundle: both ONNX graphs, checked against PyTorch"),
    "build": ("create:add_build", "build a bundle's engines"),
    "convert": ("convert:add_convert", "add a precision to a bundle: calibrated, judged, kept only if it holds"),
    "run": ("run:add_run", "images -> features, on any engine"),
    "parity": ("check:add_parity", "prove an engine equal to PyTorch on your images"),
    "verify": ("check:add_verify", "self-test an engine against the bundle's own reference outputs, without torch"),
    "bench": ("bench:add_bench", "time the chain, engines and other ways to run the model in turns"),
    "evaluate": (
        "evaluate:add_evaluate", "judge the features of an engine by a task: k-NN, retrieval, segmentation, …",
    ),
    "inspect": (
        "show:add_inspect",
        "what a bundle and its engines hold, after checking every hash, or how a checkpoint is understood",
    ),
    "doctor": ("show:add_doctor", "what is installed here, what is missing for which engine, and the remedy"),
}  # fmt: skip


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, whose options are added once it is asked to parse."""

    add_options: Callable[[], None] | None = None

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Add the options, and then parse."""
        if self.add_options is not None:
            add_options, self.add_options = self.add_options, None
            add_options()
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line; a command's module is imported when its name is parsed."""
    parser = argparse.ArgumentParser(
        prog="saccade",
        description="Take LookWhere models and plain backbones out of PyTorch: export, build engines, run, prove equality.",
    )
    parser.add_argument("--version", action="version", version=f"saccade {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, (_, line) in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        command.add_options = functools.partial(_add_options, name, command)
    return parser


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    pkgutil.resolve_name(f"saccade.cli.{COMMANDS[name][0]}")(command)
    if name != "evaluate":  # each of its tasks has it
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 for success, 1 for a problem the user can mend; argparse itself exits with 2.

    An interrupt returns what a shell says of its signal: 130 for Ctrl-C (SIGINT), 143 for SIGTERM.
    """
    try:
        options = build_parser().parse_args(arguments)
        interrupts.raise_from_now_on()
        with interrupts.sigterm_interrupts():
            return _execute(options)
    except KeyboardInterrupt as interrupt:
        _complain(interrupts.MESSAGE)
        return interrupts.exit_code(interrupt)


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
        _say(json_text(report.data) if options.json else "\n".join(map(one_line, report.lines)))
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
        print(text, flush=True)
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
        print(f"saccade: {one_line(line)}", file=sys.stderr)
