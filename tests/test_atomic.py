"""What exists is whole: a failure or an interrupt leaves the old content and nothing else."""
from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from saccade import atomic
from saccade.errors import SaccadeError

Pending = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture(params=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pending(kind: str) -> Pending:
    return atomic.pending_file if kind == "file" else atomic.pending_folder


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts an empty disk of 64 kB with further mount options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=64k", *options]), "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("a disk can be mounted by root only")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def fill(path: Path, text: str) -> None:
    """Write `text` to a file, or into two levels of a folder."""
    if path.is_dir():
        (path / "inner").mkdir()
        path = path / "inner" / "content"
    path.write_text(text)


def make(kind: str, target: Path, text: str) -> None:
    if kind == "folder":
        target.mkdir()
    fill(target, text)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_puts_the_content_at_the_target_and_nothing_else(tmp_path: Path, pending: Pending) -> None:
    with pending(tmp_path / "target") as path:
        fill(path, "new")
    assert (names(tmp_path), list(content(tmp_path).values())) == (["target"], ["new"])


def test_success_replaces_all_of_what_stood_there(tmp_path: Path, kind: str, pending: Pending) -> None:
    make(kind, tmp_path / "target", "old")
    if kind == "folder":
        (tmp_path / "target" / "left over").write_text("from before")
    with pending(tmp_path / "target") as path:
        fill(path, "new")
    assert (names(tmp_path), list(content(tmp_path).values())) == (["target"], ["new"])


def test_the_target_is_whole_while_the_new_one_is_written(tmp_path: Path, kind: str, pending: Pending) -> None:
    make(kind, tmp_path / "target", "old")
    before = content(tmp_path / "target") if kind == "folder" else "old"
    with pending(tmp_path / "target") as path:
        fill(path, "new")
        assert (content(tmp_path / "target") if kind == "folder" else (tmp_path / "target").read_text()) == before


@pytest.mark.parametrize("raised", [ValueError, SaccadeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, kind: str, pending: Pending, raised: type[BaseException], there: bool
) -> None:
    if there:
        make(kind, tmp_path / "target", "old")
    before = content(tmp_path)
    with pytest.raises(raised, match="half-way"), pending(tmp_path / "target") as path:
        fill(path, "half")
        raise raised("half-way")
    assert content(tmp_path) == before
    assert names(tmp_path) == (["target"] if there else [])


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path: Path, pending: Pending) -> None:
    with pytest.raises(KeyboardInterrupt), pending(tmp_path / "target"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_pending_name_keeps_the_suffix_and_is_hidden(tmp_path: Path) -> None:
    with atomic.pending_file(tmp_path / "model.onnx") as path:
        assert (path.parent, path.suffix, path.name.startswith(".")) == (tmp_path, ".onnx", True)
        path.touch()


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_says_to_free_some_space(tmp_path: Path, pending: Pending, number: str) -> None:
    with pytest.raises(SaccadeError) as caught, pending(tmp_path / "target"):
        raise OSError(getattr(errno, number), "what the system says")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'target'}: the disk")
    assert "free some space" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "the file system is read-only; choose a place that can be written"),
        (errno.EACCES, "permission denied; choose a place that can be written"),
        (errno.EPERM, "permission denied; choose a place that can be written"),
        (errno.EIO, "Input/output error"),
        (None, "3 requested and 1 written"),
    ],
)
def test_an_error_of_the_system_becomes_one_line(tmp_path: Path, pending: Pending, number: int | None, words: str) -> None:
    error = OSError("3 requested and 1 written") if number is None else OSError(number, os.strerror(number))
    with pytest.raises(SaccadeError) as caught, pending(tmp_path / "target"):
        raise error
    assert str(caught.value) == f"cannot write {tmp_path / 'target'}: {words}"
    assert names(tmp_path) == []


def test_a_really_full_disk_leaves_the_old_file(mounted: Callable[..., Path]) -> None:
    disk = mounted()
    atomic.write_bytes(disk / "target", b"old")
    with pytest.raises(SaccadeError, match=r"^cannot write .*target: the disk is full; free some space and repeat$"):
        atomic.write_bytes(disk / "target", bytes(1 << 20))
    assert content(disk) == {"target": "old"}


def test_a_really_full_disk_leaves_the_old_folder(mounted: Callable[..., Path]) -> None:
    disk = mounted()
    make("folder", disk / "target", "old")
    with pytest.raises(SaccadeError, match="the disk is full"), atomic.pending_folder(disk / "target") as path:
        fill(path, "new")
        (path / "large").write_bytes(bytes(1 << 20))
    assert content(disk) == {"target/inner/content": "old"}


def test_a_read_only_disk_is_named(mounted: Callable[..., Path], pending: Pending) -> None:
    disk = mounted("ro")
    with (
        pytest.raises(SaccadeError, match=r"target: the file system is read-only; choose a place"),
        pending(disk / "target") as path,
    ):
        path.touch()


def test_a_folder_without_permission_is_named(pending: Pending) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        with pytest.raises(SaccadeError, match=r"target: permission denied; choose a place that can be written$"):
            try:
                if user == 0:
                    os.seteuid(65534)  # root may write anywhere, nobody may not
                with pending(folder / "target") as path:
                    path.touch()
            finally:
                os.seteuid(user)


def test_a_missing_folder_is_to_be_created_first(tmp_path: Path, pending: Pending) -> None:
    with (
        pytest.raises(SaccadeError, match=r"none/target: its folder does not exist; create it first$"),
        pending(tmp_path / "none" / "target") as path,
    ):
        path.touch()


def test_a_file_for_a_parent_is_named(tmp_path: Path, pending: Pending) -> None:
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(SaccadeError, match="file/target: a file stands where a folder is needed"),
        pending(tmp_path / "file" / "target") as path,
    ):
        path.touch()
    assert content(tmp_path) == {"file": "old"}


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    make("folder", tmp_path / "target", "old")
    with pytest.raises(SaccadeError, match="target: it is a folder; name a file"):
        atomic.write_bytes(tmp_path / "target", b"new")
    assert content(tmp_path) == {"target/inner/content": "old"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with (
        pytest.raises(SaccadeError, match="target: a file stands where a folder is needed"),
        atomic.pending_folder(tmp_path / "target") as path,
    ):
        fill(path, "new")
    assert content(tmp_path) == {"target": "old"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    make("folder", tmp_path / "elsewhere" / "real", "old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    with atomic.pending_folder(tmp_path / "link") as path:
        assert path.parent == tmp_path / "elsewhere"
        fill(path, "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "elsewhere") == {"real/inner/content": "new"}
    assert names(tmp_path) == ["elsewhere", "link"]


def test_links_that_go_round_in_a_circle_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with (
        pytest.raises(SaccadeError, match="one: a file stands where a folder is needed"),
        atomic.pending_folder(tmp_path / "one"),
    ):
        pass
    assert names(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("name", [".", "..", "/", "", "sub/.."])
def test_a_target_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: Pending, name: str
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SaccadeError, match="it has no name of its own"), pending(Path(name)) as path:
        path.touch()
    assert names(tmp_path) == ["sub"]


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path, pending: Pending) -> None:
    with (
        pytest.raises(SaccadeError, match=r"^cannot write .*: File name too long$"),
        pending(tmp_path / ("n" * 250)) as path,
    ):
        path.touch()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("step", [1, 2], ids=["aside", "into place"])
def test_an_interrupted_replacement_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, step: int
) -> None:
    make("folder", tmp_path / "target", "old")
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == step:
            raise raised
        return rename(self, target)

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on a disk that cannot swap
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, SaccadeError)), atomic.pending_folder(tmp_path / "target") as path:
        fill(path, "new")
    assert content(tmp_path) == {"target/inner/content": "old"}
    assert names(tmp_path) == ["target"]


def test_an_interrupt_after_the_replacement_leaves_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("folder", tmp_path / "target", "old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target.name == "target":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on a disk that cannot swap
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.pending_folder(tmp_path / "target") as path:
        fill(path, "new")
    assert content(tmp_path) == {"target/inner/content": "new"}
    assert names(tmp_path) == ["target"]


def test_two_writers_do_not_share_a_pending_file(tmp_path: Path) -> None:
    with atomic.pending_file(tmp_path / "target") as first, atomic.pending_file(tmp_path / "target") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert content(tmp_path) == {"target": "first"}  # the last to finish


# ---- replacing in one step


def version_at(folder: Path) -> str:
    return (folder / "inner" / "content").read_text()


def test_a_reader_always_finds_a_folder_while_folders_are_swapped(tmp_path: Path) -> None:
    target = tmp_path / "target"
    make("folder", target, "0")
    missed, looks, done = [], [], threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                os.close(os.open(target, os.O_RDONLY | os.O_DIRECTORY))
                looks.append(1)
            except FileNotFoundError as error:
                missed.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, 300):
            with atomic.pending_folder(target) as path:
                fill(path, str(number))
            assert version_at(target) == str(number)
    finally:
        done.set()
        reader.join()
    assert len(looks) > 300
    assert missed == []
    assert names(tmp_path) == ["target"]


def test_a_disk_that_cannot_swap_replaces_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("folder", tmp_path / "target", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    with atomic.pending_folder(tmp_path / "target") as path:
        fill(path, "new")
    assert content(tmp_path) == {"target/inner/content": "new"}
    assert names(tmp_path) == ["target"]


# ---- what a killed writer leaves

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from saccade import atomic

    with getattr(atomic, f"pending_{sys.argv[1]}")(Path(sys.argv[2])) as path:
        (path / "half" if path.is_dir() else path).write_text("half")
        if sys.argv[3] == "waits":
            print("written", flush=True)
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(kind: str, target: Path, end: str) -> subprocess.Popen[str]:
    """Start a process that writes half of `target` and is then killed, or waits for the end of its stdin first."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), kind, str(target), end]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path, kind: str, pending: Pending) -> None:
    with writer(kind, tmp_path / "target", "dies") as dead:
        assert dead.wait(30) == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with pending(tmp_path / "target") as path:
        assert names(tmp_path) == [path.name]
        fill(path, "new")
    assert names(tmp_path) == ["target"]


def test_what_a_living_writer_writes_is_left_alone(tmp_path: Path, kind: str, pending: Pending) -> None:
    with writer(kind, tmp_path / "target", "waits") as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "written\n"
        (theirs,) = names(tmp_path)
        with pending(tmp_path / "target") as path:
            fill(path, "new")
        assert names(tmp_path) == sorted([theirs, "target"])
        living.communicate("")
    with pending(tmp_path / "target") as path:
        fill(path, "newer")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(
    "name",
    [
        ".pending-0123abcd-other",  # of another target
        ".pending-0123abcd-target.bak",
        ".pending-0123ABCD-target",
        ".pending-0123abc-target",
        ".pending-target",
        "x.pending-0123abcd-target",
    ],
)
def test_only_names_of_our_pattern_are_removed(tmp_path: Path, pending: Pending, name: str) -> None:
    (tmp_path / name).write_text("theirs")
    with pending(tmp_path / "target") as path:
        fill(path, "new")
    assert (tmp_path / name).read_text() == "theirs"


def test_a_link_of_our_pattern_is_not_followed(tmp_path: Path, pending: Pending) -> None:
    make("folder", tmp_path / "mine", "precious")
    (tmp_path / ".pending-0123abcd-target").symlink_to("mine")
    with pending(tmp_path / "target") as path:
        fill(path, "new")
    assert version_at(tmp_path / "mine") == "precious"


def test_without_locks_nothing_is_removed(tmp_path: Path, pending: Pending, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leftover cannot be told from what another process is writing."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".pending-0123abcd-target").write_text("half")
    with pending(tmp_path / "target") as path:
        fill(path, "new")
    assert names(tmp_path) == [".pending-0123abcd-target", "target"]


def test_the_only_copy_of_a_folder_is_kept_until_there_is_another(tmp_path: Path) -> None:
    """Killed between the two steps of a disk that cannot swap: what stood there is all there is."""
    make("folder", tmp_path / ".replaced-0123abcd-target", "old")
    with pytest.raises(KeyboardInterrupt), atomic.pending_folder(tmp_path / "target"):
        raise KeyboardInterrupt
    assert version_at(tmp_path / ".replaced-0123abcd-target") == "old"
    make("folder", tmp_path / "target", "new")
    with atomic.pending_folder(tmp_path / "target") as path:
        fill(path, "newer")
    assert names(tmp_path) == ["target"]


def test_writers_that_sweep_at_once_all_end_well(tmp_path: Path, kind: str, pending: Pending) -> None:
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(50):
                with pending(tmp_path / "target") as path:
                    fill(path, str(number))
        except SaccadeError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert errors == []
    shutil.rmtree(tmp_path / "target") if kind == "folder" else (tmp_path / "target").unlink()
    assert names(tmp_path) == []
