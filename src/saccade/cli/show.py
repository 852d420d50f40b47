"""Commands that tell: inspect, doctor."""
from __future__ import annotations

import argparse
from typing import Any

import msgspec

from saccade.bundle import Bundle, DataFile, GraphFile, read_bundle
from saccade.cli import options as shared
from saccade.cli.console import Report, size_text, table
from saccade.cli.create import audit_lines, receipt_data
from saccade.engines import store


def add_commands(commands: Any) -> None:
    """Add both commands to the parser."""
    parser = commands.add_parser("inspect", help="what a bundle holds, after checking every hash")
    shared.add_bundle(parser)
    parser.set_defaults(execute=inspect)
    parser = commands.add_parser("doctor", help="what is installed here, what is missing for which engine, and the remedy")
    parser.set_defaults(execute=doctor)


def inspect(options: argparse.Namespace) -> Report:
    """Check all files of a bundle and describe it."""
    bundle = read_bundle(options.bundle)
    manifest, model = bundle.manifest, bundle.model
    entries: list[GraphFile | DataFile] = [graph for each in manifest.graphs.values() for graph in each.values()]
    entries += [manifest.positions, *([manifest.golden] if manifest.golden else [])]
    files = {entry.file: bundle.checked_path(entry).stat().st_size for entry in entries}
    engines = [receipt_data(folder, receipt) for folder, receipt in store.receipts(bundle)]
    data = {"bundle": str(bundle.path), **msgspec.to_builtins(manifest), "files": files, "engines": engines}
    lines = [
        f"{bundle.path}: {model.family}, task {manifest.task}",
        f"  extractor: {model.depth} blocks, width {model.dim}, {model.heads} heads, {model.ffn}, patch {model.patch}",
        f"  selector: {model.selector_depth} blocks, {model.selector_size} px -> {model.map_size}x{model.map_size} scores",
        f"  prefix: {model.prefix} row{'s' if model.prefix > 1 else ''} from the selector; "
        f"positions on a {model.base_grid[0]}x{model.base_grid[1]} grid"
        + (f"; {model.classes} classes" if model.classes else ""),
        f"  defaults: {_defaults(bundle)}",
        *table([(f"  {name}", size_text(size), "hash checked") for name, size in files.items()]),
    ]
    for role, variants in manifest.graphs.items():
        for precision, graph in variants.items():
            ends = [", ".join(f"{t.name} {list(t.shape)}" for t in tensors) for tensors in (graph.inputs, graph.outputs)]
            lines.append(f"  {role} {precision}: {ends[0]} -> {ends[1]}".replace("'", ""))
    for folder, receipt in store.receipts(bundle):
        lines.append(f"  engine {folder.name}: {receipt.realised}; built in {receipt.seconds:.1f} s")
        lines += [f"  {line}" for line in audit_lines(receipt)]
    for entry in manifest.parity:
        word = "equal to PyTorch" if entry.get("passed") else "DIFFERENT from PyTorch"
        lines.append(f"  parity: {entry.get('engine')} {entry.get('precision')} {word} on {entry.get('images')} images")
    return Report(data, lines)


def _defaults(bundle: Bundle) -> str:
    defaults = bundle.manifest.defaults
    kept = f"k = {defaults.k}" if defaults.k is not None else f"k = {defaults.k_ratio} of the patches"
    return f"{defaults.size[0]}x{defaults.size[1]} px, {kept}"


def doctor(options: argparse.Namespace) -> Report:
    """Look at the machine and the installed packages."""
    from saccade.validate.doctor import diagnose, lines

    data = diagnose()
    return Report(data, lines(data))
