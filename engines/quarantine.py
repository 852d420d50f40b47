"""Engines that failed their self-test: kept aside with the reason, used by nobody, and not built again by a mere run."""
from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from saccade import atomic
from saccade.errors import SaccadeError

PREFIX = ".quarantined-"  # hidden, so that no list of engines shows it
REASON = "reason.txt"


def place_of(folder: Path) -> Path:
    """Return where the engine of a folder lies in quarantine."""
    return folder.with_name(PREFIX + folder.name)


def put(folder: Path, reason: str) -> Path:
    """Move an engine out of the way, in place of an older one, and return where it lies."""
    place = place_of(folder)
    if not folder.is_dir() and place.is_dir():
        return place  # another process found the same
    atomic.write_bytes(folder / REASON, reason.encode() + b"\n")  # before it is moved: never without it
    release(folder)
    try:
        folder.rename(place)
    except OSError as error:
        raise atomic.write_error(place, error) from error
    return place


def refuse(folder: Path, command: str) -> None:
    """Raise where the engine that belongs into a folder failed its self-test; `command` builds and tests it again."""
    place = place_of(folder)
    if place.is_dir():
        reason = "no reason is kept"
        with contextlib.suppress(OSError):
            reason = (place / REASON).read_text(errors="replace").strip()
        raise SaccadeError(f"{place}: this engine failed its self-test ({reason}); '{command}' builds it again and tests it")


def release(folder: Path) -> None:
    """Forget the failed engine of a folder, if there is one."""
    place = place_of(folder)
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise atomic.write_error(place, error) from error
