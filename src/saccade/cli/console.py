"""What commands say and where: results to stdout, progress and notes to stderr."""
from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Report:
    """The outcome of a command: lines for people, data for programs, and whether it is good."""

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    passed: bool = True


def json_text(data: Any, indent: int | None = None) -> str:
    """Return data as JSON, which has no NaN and no infinity (the PSNR of equal tensors): those become null.

    Bytes of a path that are no UTF-8 become escapes, since a reader of JSON may refuse the lone surrogates they stand as.
    """
    return json.dumps(_jsonable(data), allow_nan=False, indent=indent)


def printable(text: str) -> str:
    """Return text that can be written as UTF-8: lone surrogates, which stand for a path's other bytes, become escapes."""
    return text.encode(errors="backslashreplace").decode()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key) if isinstance(key, str) else key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Phases:
    """Shows what a long command is doing and for how long: a ticking line on a terminal, else a line a phase."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._start = 0.0
        self._live = sys.stderr is not None and sys.stderr.isatty()  # None where it was closed
        self._line_start = "\r\x1b[K" if self._live else ""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Phases:
        if self._live:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._finish("failed" if kind else "done")

    def __call__(self, phase: str) -> None:
        """End the phase before and begin `phase`."""
        with self._lock:
            self._end_line("done")
            self._phase, self._start = phase, time.monotonic()

    def note(self, line: str) -> None:
        """Print one line without ending the phase."""
        with self._lock:
            self._write(f"{self._line_start}saccade: {line}\n")

    def _finish(self, word: str) -> None:
        with self._lock:
            self._end_line(word)
            self._phase = None

    def _end_line(self, word: str) -> None:
        if self._phase is not None:
            self._write(f"{self._line_start}  {self._phase}: {word} in {time.monotonic() - self._start:.1f} s\n")

    def _tick(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                if self._phase is not None:
                    self._write(f"{self._line_start}  {self._phase} … {time.monotonic() - self._start:.1f} s")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, AttributeError):  # a closed stderr must not end a build
            sys.stderr.write(text)
            sys.stderr.flush()


@contextlib.contextmanager
def progress_bar(total: int, label: str, unit: str = "image") -> Iterator[Any]:
    """Yield a tqdm bar on stderr with `update(n)`."""
    from tqdm import tqdm

    with tqdm(total=total, desc=f"  {label}", file=sys.stderr, unit=unit, leave=False, disable=None) as bar:
        yield bar


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size_text(count: int) -> str:
    """Return a byte count in MB or kB, as file managers show it."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
