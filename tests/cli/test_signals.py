"""An interrupt of either kind ends a command with its own exit code, and everything that the command had started."""
from __future__ import annotations

import builtins
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.cli import main as entry
from saccade.cli.main import main

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "saccade"]
INTERRUPTED = "saccade: interrupted; nothing half-written was left behind"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
DEADLINE_S = 60.0

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@pytest.fixture
def copy(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the small bundle, without engines."""
    return shutil.copytree(small_bundle("dinov2"), tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))


def family(mark: str) -> dict[int, str]:
    """Return the command lines of all processes that have `mark` in their environment, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SACCADE_TEST_MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended, or is somebody else's
            continue
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(command: list[object], word: str, number: signal.Signals, mark: str) -> tuple[int, str, str]:
    """Start a command, send it a signal once a child with `word` in its command line runs, and return how it ended."""
    environment = os.environ | {"SACCADE_TEST_MARK": mark}
    process = subprocess.Popen(
        [*CLI, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    wait_for(lambda: process.poll() is not None or any(word in line for line in family(mark).values()))
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


@needs_proc
@pytest.mark.parametrize("number", CODES)
def test_an_interrupt_of_the_benchmark_ends_its_sides(number: signal.Signals, copy: Path) -> None:
    mark = f"{os.getpid()}-bench-{number}"
    command = ["bench", copy, "--k", 4, 8, "--rounds", 100_000, "--frames", 100]
    code, out, err = interrupted(command, "bench_side", number, mark)
    assert (code, out) == (CODES[number], "")
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    wait_for(lambda: not family(mark))


@needs_proc
@pytest.mark.parametrize("number", CODES)
def test_an_interrupt_of_a_tensorrt_build_ends_its_child(number: signal.Signals, copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")
    mark = f"{os.getpid()}-build-{number}"
    code, out, err = interrupted(["build", copy, "--engine", "tensorrt-rtx"], "tensorrt_build", number, mark)
    assert (code, out) == (CODES[number], "")
    assert err.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in err
    wait_for(lambda: not family(mark))
    assert list((copy / "engines").iterdir()) == []


def signalled(patch: str) -> tuple[int, str]:
    """Run `saccade doctor` after `patch`, which makes it signal itself; return its exit code and its last line.

    In a process of its own: what a signal does to the one that runs the tests is not ours to say.
    """
    code = f"""
import signal, sys
from saccade.cli import main as entry
from saccade.validate import doctor
{patch}
sys.exit(entry.main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", CODES)
def test_each_signal_has_its_own_exit_code(number: signal.Signals) -> None:
    assert signalled(f"doctor.diagnose = lambda: signal.raise_signal({int(number)})") == (CODES[number], INTERRUPTED)


def handler(*_: object) -> None:
    """Stand in for a caller's own handler."""


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, handler], ids=["default", "ignored", "own"])
@pytest.mark.parametrize("outcome", [None, KeyboardInterrupt(), RuntimeError("a bug of ours"), SystemExit(2)], ids=repr)
def test_the_callers_handler_of_sigterm_is_given_back(
    before: Any, outcome: BaseException | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def execute(options: object) -> int:
        assert signal.getsignal(signal.SIGTERM) is not before
        if outcome is not None:
            raise outcome
        return 0

    monkeypatch.setattr(entry, "_execute", execute)
    earlier = signal.signal(signal.SIGTERM, before)
    try:
        if isinstance(outcome, (RuntimeError, SystemExit)):
            with pytest.raises(type(outcome)):
                main(["doctor"])
        else:
            assert main(["doctor"]) == (0 if outcome is None else 130)
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_in_another_thread_the_signals_are_the_callers(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", "no-such-bundle"])))
    thread.start()
    thread.join()
    assert codes == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_while_the_result_is_printed_is_one_line() -> None:
    assert signalled("entry._say = lambda text: signal.raise_signal(signal.SIGTERM)") == (143, INTERRUPTED)


def test_an_interrupt_of_a_librarys_import_is_no_missing_library(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A compiled module that is interrupted while it starts says "initialization failed", with the interrupt behind it."""

    def interrupted_import(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] in ("openvino", "onnxruntime"):
            raise ImportError("initialization failed") from KeyboardInterrupt()
        return real_import(name, *rest, **options)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted_import)
    for command in (["run", ROOT / "examples/china.jpg"], ["convert", "--precision", "fp16"]):
        name, *rest = map(str, command)
        assert main([name, str(copy), *rest]) == 130
        assert capfd.readouterr().err.splitlines()[-1] == INTERRUPTED


def test_an_interrupt_while_options_are_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "build_parser", interrupt)
    assert main(["doctor"]) == 130
    assert capfd.readouterr().err == f"{INTERRUPTED}\n"


SLOW_IMPORT = """
import signal, sys
from importlib.abc import MetaPathFinder

class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == NAME:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:  # as a compiled module does, and any `except BaseException` on the way
                raise ImportError("initialization failed") from None

sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["run", "no-such-bundle", "image.png"]
from saccade.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["saccade.cli.main", "numpy", "saccade.cli.run", "PIL.Image"])
def test_an_interrupt_of_a_commands_own_imports_is_one_line(name: str) -> None:
    code = SLOW_IMPORT.replace("NAME", repr(name))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED}\n")


def test_an_interrupt_that_the_caller_ignores_stays_ignored() -> None:
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code = ignored + SLOW_IMPORT.replace("NAME", repr("saccade.cli.run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:15]) == (1, "saccade: error:")
