"""Locks between processes: one holder or several that share, nothing left behind, and no obstacle where there are none."""
from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from saccade.errors import SaccadeError
from saccade.locks import reserved

HOLD = """
    import sys
    from pathlib import Path
    from saccade.locks import reserved

    with reserved(Path(sys.argv[1]), "busy", shared=sys.argv[2] == "shared"):
        print("held", flush=True)
        sys.stdin.read()
"""


def holder(place: Path, how: str) -> subprocess.Popen[str]:
    """Start a process that holds `place` until its stdin ends."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(place), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("theirs", "ours"), [("alone", "alone"), ("alone", "shared"), ("shared", "alone")])
def test_a_place_that_another_process_holds_is_refused_in_its_words(tmp_path: Path, theirs: str, ours: str) -> None:
    with holder(tmp_path / "place", theirs) as other:
        with (
            pytest.raises(SaccadeError, match=r"^somebody is at it; wait$"),
            reserved(tmp_path / "place", "somebody is at it; wait", shared=ours == "shared"),
        ):
            pytest.fail("two held it")
        other.communicate("")
    with reserved(tmp_path / "place", "busy"):
        assert names(tmp_path) == [".lock-place"]
    assert names(tmp_path) == []


def test_several_may_share_and_the_last_one_removes_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "place", "shared") as other:
        with reserved(tmp_path / "place", "busy", shared=True):
            pass
        assert names(tmp_path) == [".lock-place"]
        with pytest.raises(SaccadeError, match="busy"), reserved(tmp_path / "place", "busy"):
            pytest.fail("it is still shared")
        other.communicate("")
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path / "place", "alone") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert names(tmp_path) == [".lock-place"]
        with reserved(tmp_path / "place", "busy"):
            pass
    assert names(tmp_path) == []


def test_a_link_and_its_folder_are_one_place(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with (
        reserved(tmp_path / "link", "busy"),
        pytest.raises(SaccadeError, match="busy"),
        reserved(tmp_path / "folder", "busy"),
    ):
        pytest.fail("two held it")


def test_where_no_lock_can_be_there_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for place in (tmp_path / "none" / "place", Path("/"), tmp_path / ("n" * 252)):
        with reserved(place, "busy"):
            pass
    monkeypatch.setattr(fcntl, "flock", refuse)
    with reserved(tmp_path / "place", "busy"):
        assert names(tmp_path) == []
