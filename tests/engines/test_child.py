"""A process of its own: its messages, its last word, and every way in which it may end without one."""
from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Struct

from saccade.engines.child import Death, run_child

CHILD = """
    import os, signal, sys
    from msgspec import Struct
    from saccade.engines.child import take_job

    class Job(Struct):
        word: str
        parent: int

    class Said(Struct):
        text: str

    job, send = take_job(Job)
"""


class Job(Struct):
    word: str = "hello"
    parent: int = os.getpid()


class Said(Struct):
    text: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Return a function that runs a child with some lines of code and listens until it says "done"."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(code: str, heard: list[str] | None = None) -> object:
        (tmp_path / "the_child.py").write_text(textwrap.dedent(CHILD) + textwrap.dedent(code))

        def hear(said: Said) -> bool:
            if heard is not None:
                heard.append(said.text)
            return said.text != "done"

        return run_child("the_child", Job(parent=os.getpid()), Said, hear)

    return run


def test_messages_are_heard_as_they_come_and_the_last_word_is_returned(run: Callable[..., object]) -> None:
    heard: list[str] = []
    assert run('send(Said(job.word)); print("TensorRT says"); send(Said("done"))', heard) == Said("done")
    assert heard == ["hello", "done"]  # what a library prints is no message


def test_a_crash_is_told_by_its_signal(run: Callable[..., object]) -> None:
    death = run('send(Said("begun")); os.kill(os.getpid(), signal.SIGSEGV)')
    assert isinstance(death, Death)
    assert (death.status, death.signal) == (-signal.SIGSEGV, "SIGSEGV")


def test_an_exception_is_told_by_status_and_traceback(run: Callable[..., object]) -> None:
    death = run('raise ValueError("odd")')
    assert isinstance(death, Death)
    assert (death.status, death.signal) == (1, None)
    assert death.stderr.endswith("ValueError: odd\n")


def test_a_child_that_dies_in_the_middle_of_a_word_has_no_last_word(run: Callable[..., object]) -> None:
    half = """
        sys.stdout.flush()
        send.__closure__[0].cell_contents.write(b'{"text": "do')
        send.__closure__[0].cell_contents.flush()
        os._exit(3)
    """
    assert run(half) == Death(3, "")


def test_ctrl_c_is_the_parents_to_decide_on(run: Callable[..., object]) -> None:
    assert run('os.kill(os.getpid(), signal.SIGINT); send(Said("done"))') == Said("done")
