"""Converted graphs move into their bundle: all of them, named in its manifest, or none."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from saccade import atomic
from saccade.bundle import MANIFEST, Bundle, GraphFile, read_bundle, sha256_of_file, write_manifest
from saccade.errors import SaccadeError

Pair = dict[str, Path]  # role -> graph file


def keep_graphs(bundle: Bundle, pairs: dict[Any, Pair], provenance: dict[Any, Any]) -> dict[str, int]:
    """Move the files into the bundle and name them in its manifest; return their sizes.

    A variant that is there already leaves the manifest first: at no moment does bundle.json name a file with another hash.
    Where any step fails, those before it are undone, the last one first.
    """
    entries = {
        (role, variant): msgspec.structs.replace(bundle.graph(role, "fp32"), file=path.name, sha256=sha256_of_file(path))
        for variant, pair in pairs.items()
        for role, path in pair.items()
    }
    before = (bundle.path / MANIFEST).read_bytes()
    manifest = read_bundle(bundle.path).manifest  # as it is now: this took a while
    if any(manifest.graphs[role]["fp32"] != bundle.graph(role, "fp32") for role in bundle.roles):
        raise SaccadeError(f"{bundle.path} was exported again meanwhile; repeat the command")
    others = {
        role: {variant: graph for variant, graph in manifest.graphs[role].items() if variant not in pairs}
        for role in bundle.roles
    }
    graphs: dict[str, dict[Any, GraphFile]] = {
        role: others[role] | {variant: entries[role, variant] for variant in pairs} for role in bundle.roles
    }
    known = manifest.provenance.get("variants")
    kept = (known if isinstance(known, dict) else {}) | provenance  # nothing else reads it, so it may be anything
    sizes = {path.name: path.stat().st_size for pair in pairs.values() for path in pair.values()}
    with contextlib.ExitStack() as undo:
        undo.callback(_write_back, bundle.path / MANIFEST, before)
        if others != manifest.graphs:
            write_manifest(bundle.path, msgspec.structs.replace(manifest, graphs=others))
        for pair in pairs.values():
            for path in pair.values():
                _move_in(path, bundle.path / path.name, undo)
        named = msgspec.structs.replace(manifest, graphs=graphs, provenance=manifest.provenance | {"variants": kept})
        write_manifest(bundle.path, named)
        undo.pop_all()
    return sizes


def _write_back(path: Path, content: bytes) -> None:
    if path.read_bytes() != content:
        atomic.write_bytes(path, content)


def _move_in(path: Path, place: Path, undo: contextlib.ExitStack) -> None:
    """Put a file of the scratch folder in its place; what stood there steps aside into that folder until the end."""
    aside, is_new = path.with_name(f"older.{path.name}"), not place.exists()

    def put_back() -> None:
        if aside.exists():
            aside.replace(place)
        elif is_new:
            place.unlink(missing_ok=True)

    undo.callback(put_back)
    if not is_new:
        place.replace(aside)
    path.replace(place)
