"""What Python and the C library say of a bundle that may be damaged."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from binding import Bundle, Library, NativeError

from saccade import SaccadeError, read_bundle


def python_refuses(folder: Path) -> str | None:
    """Return the line with which Python refuses a bundle and its position table, or None."""
    try:
        read_bundle(folder).positions()
    except SaccadeError as error:
        return str(error)
    return None


def c_refuses(library: Library, folder: Path) -> NativeError | None:
    """Return what the C library refuses it with, or None; its line must be one that a user can act on."""
    try:
        with Bundle(library, folder):
            return None
    except NativeError as error:
        line = str(error)
        assert line.isprintable()
        assert str(folder) in line
        assert line.endswith(("export the bundle again", "upgrade libsaccade", "use Python's saccade", "-o FOLDER'")), line
        return error


def write(folder: Path, data: object) -> None:
    """Write data as bundle.json; bytes as they are."""
    (folder / "bundle.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def has_deliberate_difference(node: Any) -> bool:
    """Tell whether Python alone takes something below: k beyond 64 bits, a tensor named twice. Both have tests below."""
    if isinstance(node, dict):
        k = node.get("k")
        return (isinstance(k, int) and k >= 2**63) or any(map(has_deliberate_difference, node.values()))
    if isinstance(node, list):
        names = [each["name"] for each in node if isinstance(each, dict) and isinstance(each.get("name"), str)]
        return len(names) != len(set(names)) or any(map(has_deliberate_difference, node))
    return False
