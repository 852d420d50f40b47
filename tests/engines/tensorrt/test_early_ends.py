"""A build that is killed, interrupted or left alone ends its child and leaves no file."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_graphs import RTX, job, make_bundle, quiet, request

from saccade.bundle import Bundle
from saccade.engines.tensorrt_build import build_in_child
from saccade.errors import SaccadeError


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_child_is_an_error_that_names_the_signal(bundle: Bundle, tmp_path: Path) -> None:
    def kill(phase: str) -> None:
        if "building" in phase:
            os.kill(children_of(os.getpid())[-1], signal.SIGKILL)

    with pytest.raises(SaccadeError, match="process building the selector was ended by SIGKILL, mostly for want of"):
        RTX.build(bundle, request(), tmp_path, kill)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_the_child_is_no_saccade_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Traceback"):
        build_in_child(job(bundle, tmp_path / "e", extents="eight"), quiet)


BUILD_SCRIPT = """
    import os, sys
    from pathlib import Path
    from saccade.bundle import read_bundle
    from saccade.engines.engine import EngineRequest
    from saccade.engines.tensorrt import TensorRTBackend

    def say(phase):
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        print(*children, phase, flush=True)

    request = EngineRequest(engine="tensorrt-rtx", device="0", max_k=64)
    TensorRTBackend("tensorrt-rtx").build(read_bundle(sys.argv[1]), request, Path(sys.argv[2]), say)
"""


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Deep enough for its build to be met in the middle."""
    return make_bundle(tmp_path_factory.mktemp("slow"), depth=16)


@pytest.fixture
def running_build(slow_bundle: Bundle, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in the midst of a build, and the id of its child."""
    command = [sys.executable, "-c", textwrap.dedent(BUILD_SCRIPT), str(slow_bundle.path), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "building" in line)
        try:
            yield process, int(line.split()[0])
        finally:
            process.kill()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, given a moment; a zombie that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_an_interrupted_build_ends_its_child_and_leaves_no_file(running_build: Any, tmp_path: Path) -> None:
    process, child = running_build
    assert Path(f"/proc/{child}").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert is_gone(child)
    assert list(tmp_path.iterdir()) == []


def test_the_child_dies_with_its_parent(running_build: Any) -> None:
    process, child = running_build
    process.kill()
    assert is_gone(child)
