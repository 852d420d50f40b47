"""Builds, exports and runs of one bundle at the same time."""
from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from kept_engines import OPENVINO, change_graph, engines_in, ensure

from saccade import Bundle, SaccadeError, locks
from saccade.engines import store


@pytest.mark.parametrize("shared", [True, False], ids=["a build", "an export"])
def test_a_build_shares_the_bundle_with_builds_and_not_with_an_export(bundle: Bundle, shared: bool) -> None:
    """The lock is another process's as far as the system is concerned: it belongs to the open file."""
    with locks.reserved(bundle.path, "busy", shared=shared):
        if shared:
            assert ensure(bundle, OPENVINO).is_dir()
            return
        with pytest.raises(SaccadeError, match=r"bundle is being exported or converted by another process;"):
            ensure(bundle, OPENVINO)


def test_a_bundle_that_is_exported_again_just_before_a_build_is_not_built(bundle: Bundle) -> None:
    def export_again(line: str) -> None:
        change_graph(bundle, "selector")

    with pytest.raises(SaccadeError, match=r"bundle was exported or converted again meanwhile; repeat$"):
        ensure(bundle, OPENVINO, export_again)


LOAD_AND_RUN = """
    import sys, numpy, saccade
    with saccade.load(sys.argv[1], engine=sys.argv[2]) as pipe:
        print(pipe.receipt.key, float(abs(pipe(numpy.zeros((126, 126, 3), numpy.uint8)).cls).sum()))
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_processes_that_build_at_once_end_well_with_one_engine(bundle: Bundle, engine: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LOAD_AND_RUN), bundle.path, engine]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert engines_in(bundle) == [f"{engine}-fp32-{answers[0][0].split()[0]}"]


def test_an_engine_built_while_another_waited_is_taken_as_it_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held by a build that ends while the second one waits for it."""
    original, builds = store.build_into, []

    def build_into(*arguments: object) -> store.Receipt:
        builds.append(1)
        return original(*arguments)

    real = store.sole_builder

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(store, "sole_builder", real)
        ensure(bundle, OPENVINO)  # the other process, just before this one gets the lock
        return real(*arguments)

    monkeypatch.setattr(store, "build_into", build_into)
    monkeypatch.setattr(store, "sole_builder", slow)
    folder = ensure(bundle, OPENVINO)
    assert (builds, engines_in(bundle)) == ([1], [folder.name])
