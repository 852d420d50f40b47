"""A build that ends badly leaves no engine, keeps the older one, and is one line."""
from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_engines import OPENVINO, engines_in, ensure, load

from saccade import Bundle, SaccadeError, atomic
from saccade.engines import openvino as openvino_module
from saccade.engines import store
from saccade.engines.store import RECEIPT


@pytest.fixture
def failing_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes OpenVINO's build raise once its first graph is written."""

    def fail_with(error: BaseException) -> None:
        original, calls = openvino_module._compiled, []

        def compiled(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise error
            return original(*arguments)

        monkeypatch.setattr(openvino_module, "_compiled", compiled)

    return fail_with


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SaccadeError("no")], ids=["ctrl-c", "memory", "ours"])
def test_an_interrupted_build_leaves_nothing(
    bundle: Bundle, failing_build: Callable[[BaseException], None], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_build(error)
    with pytest.raises(type(error)):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == []
    monkeypatch.undo()
    with load(bundle) as pipe:
        assert engines_in(bundle) == [f"openvino-fp32-{pipe.receipt.key}"]


def test_a_failed_rebuild_leaves_the_older_engine(
    bundle: Bundle, built: Path, failing_build: Callable[[BaseException], None], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("other_version")
    failing_build(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == [built.name]
    store.read_receipt(built)


KILLED = """
    import os, signal, sys
    import saccade
    from saccade import atomic

    def kill(pending, target):
        os.kill(os.getpid(), signal.SIGKILL)

    atomic._replace_folder = kill  # the last step: blobs and receipt are written, the name is not given
    saccade.load(sys.argv[1])
"""


def test_a_killed_build_is_no_engine_to_later_runs(bundle: Bundle) -> None:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), bundle.path], check=False, capture_output=True)
    assert run.returncode == -signal.SIGKILL
    (left,) = engines_in(bundle)
    assert left.startswith(atomic.PENDING_PREFIX)
    assert (bundle.engines_path / left / RECEIPT).exists()
    assert store.receipts(bundle) == []
    notes: list[str] = []
    folder = ensure(bundle, OPENVINO, notes.append)
    assert notes == ["no openvino fp32 engine is built yet: building it"]
    load(bundle, build=False).close()
    assert engines_in(bundle) == [folder.name]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EROFS, "the file system is read-only; copy the bundle to a place that can be written"),
        (errno.EACCES, "permission denied; run it as a user who may write there, or copy the bundle"),
        (errno.ENOSPC, "the disk is full; free some space and repeat"),
    ],
)
def test_a_bundle_that_cannot_be_written_is_one_line(
    bundle: Bundle, code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SaccadeError, match=f"^cannot write {bundle.engines_path}: {reason}$"):
        ensure(bundle, OPENVINO)


@pytest.mark.parametrize("file", ["extractor.blob", RECEIPT])
def test_a_disk_that_fills_up_during_a_build_is_one_line(bundle: Bundle, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if path.name.endswith(file) and "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SaccadeError, match=r"^cannot write .*: the disk is full; free some space and repeat$"):
        ensure(bundle, OPENVINO)
    assert engines_in(bundle) == []
