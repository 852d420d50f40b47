"""Disks that are really full or read-only, paths that engines cannot open, and file systems without locks."""
from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kept_engines import ONNXRUNTIME, OPENVINO, engines_in, ensure, load

from saccade import Bundle, SaccadeError, read_bundle


def mounted(*arguments: str) -> None:
    """Run mount, or skip where a test may not mount (it needs root and the capability for it)."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no one mount")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a real disk of 5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted("-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def read_only_bundle(bundle: Bundle, tmp_path: Path) -> Iterator[Bundle]:
    """Return the bundle on a file system that really cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    mounted("--bind", str(bundle.path), str(place))
    subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
    yield read_bundle(place)
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_is_one_line(bundle: Bundle, small_disk: Path) -> None:
    full = read_bundle(shutil.copytree(bundle.path, small_disk / "bundle"))  # 3.5 MB; both blobs need as much
    with pytest.raises(SaccadeError, match=r"^cannot write .*: the disk is full; free some space and repeat$"):
        ensure(full, OPENVINO)
    assert engines_in(full) == []


def test_a_disk_that_is_really_read_only_is_one_line(read_only_bundle: Bundle) -> None:
    with pytest.raises(SaccadeError, match=r"^cannot write .*engines: the file system is read-only"):
        ensure(read_only_bundle, OPENVINO)


def test_a_built_engine_runs_from_a_read_only_disk(
    bundle: Bundle, built: Path, request: pytest.FixtureRequest, photographs: list[np.ndarray]
) -> None:
    with load(request.getfixturevalue("read_only_bundle"), build=False) as pipe:
        assert pipe(photographs[0]).tokens.shape == (1, 8, 128)


def test_a_path_that_is_not_utf8_is_refused(bundle: Bundle) -> None:
    place = bundle.path.rename(os.fsdecode(os.fsencode(bundle.path) + b"\xff"))
    for request_ in (OPENVINO, ONNXRUNTIME):
        with pytest.raises(SaccadeError, match="its path is not UTF-8, which engines cannot open; rename its folder"):
            ensure(read_bundle(place), request_)


def test_a_file_system_without_locks_is_no_obstacle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert ensure(bundle, OPENVINO).is_dir()
