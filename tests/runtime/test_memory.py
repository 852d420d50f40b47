"""A process's peak memory is what it held itself."""
from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.runtime import memory
from saccade.runtime.memory import peak_bytes

SCRIPT = "from saccade.runtime.memory import peak_bytes; print(peak_bytes())"
MIB = 1 << 20


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_the_peak_is_the_processes_own_and_not_its_parents() -> None:
    ballast = b"x" * (600 * MIB)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert MIB < int(done.stdout) < len(ballast) // 2


def test_the_peak_counts_what_was_freed_since() -> None:
    script = f"ballast = b'x' * {400 * MIB}; del ballast; {SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 400 * MIB


def test_without_its_own_line_the_peak_is_what_getrusage_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    (tmp_path / "status").write_text("Name:\tpython\n")  # as some sandboxes have it
    for status in (tmp_path / "status", tmp_path / "gone"):
        monkeypatch.setattr(memory, "STATUS", status)
        assert peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
