"""Commands that tell: inspect, doctor."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from saccade.bundle import RULE_WORDS, BackboneModel, Bundle, DataFile, GraphFile, Model, family_of, read_bundle
from saccade.cli import options as shared
from saccade.cli.console import Report, size_text, table
from saccade.cli.create import FAMILIES, LOOKWHERE, NETWORKS, audit_lines, receipt_data
from saccade.cli.verdicts import changed_graphs, graphs_of, line_of, state_of, unjudged
from saccade.contract import extras_of
from saccade.counted import counted
from saccade.engines import store
from saccade.errors import SaccadeError


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the options of inspect."""
    parser.description = (
        "Check every file of a bundle and its engines against its hash and say what is whole, stale or damaged. "
        "Of a checkpoint file, say what is read from it (needs torch)."
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE|CHECKPOINT", help="a bundle folder, or a checkpoint file")
    parser.add_argument("--family", choices=FAMILIES, help="of a checkpoint: whose code it is from, as for 'export'")
    parser.add_argument("--checkpoint-key", choices=NETWORKS, help="of a checkpoint: which of its networks")
    parser.set_defaults(execute=inspect)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of doctor, which has none of its own."""
    parser.description = "Look at the machine and the installed packages, and say which engines build and run here."
    parser.set_defaults(execute=doctor)


def inspect(options: argparse.Namespace) -> Report:
    """Check all files of a bundle and describe it, or a checkpoint; fails where an engine is damaged."""
    if options.bundle.is_file():
        return _inspect_checkpoint(options.bundle, options.family, options.checkpoint_key)
    if options.family or options.checkpoint_key:
        raise SaccadeError(f"{options.bundle} is no checkpoint file; leave out --family and --checkpoint-key")
    bundle = read_bundle(options.bundle)
    manifest = bundle.manifest
    entries: list[GraphFile | DataFile] = [graph for each in manifest.graphs.values() for graph in each.values()]
    entries += [manifest.positions, *([manifest.golden] if manifest.golden else [])]
    files = {entry.file: bundle.checked_path(entry).stat().st_size for entry in entries}
    engines = [_inspect_engine(bundle, folder) for folder in sorted(bundle.engines_path.glob("[!.]*"))]
    verdicts = [verdict | {"state": state_of(bundle, verdict)} for verdict in manifest.parity]
    data = {"bundle": str(bundle.path), **msgspec.to_builtins(manifest), "files": files}
    data |= {"engines": [each.data for each in engines], "parity": verdicts, "unjudged": unjudged(bundle)}
    lines = [
        f"{bundle.path}: {family_of(manifest.model)}, task {manifest.task}",
        f"  from {manifest.provenance.get('checkpoint_layout', 'an unnamed checkpoint')}",
        *_model_lines(manifest.model),
        f"  defaults: {_defaults(bundle)}",
        f"  images: {manifest.image.in_words()}",
        *table([(f"  {name}", size_text(size), "hash checked") for name, size in files.items()]),
    ]
    for role, variants in manifest.graphs.items():
        for precision, graph in variants.items():
            ends = [", ".join(f"{t.name} {list(t.shape)}" for t in tensors) for tensors in (graph.inputs, graph.outputs)]
            lines.append(f"  {role} {precision}: {ends[0]} -> {ends[1]}".replace("'", ""))
    lines += [line for each in engines for line in each.lines]
    lines += [f"  {line_of(bundle, verdict)}" for verdict in manifest.parity]
    for name in unjudged(bundle):
        lines.append(f"  {name}: judged on no engine; run 'saccade verify {bundle.path} --precision {name}'")
    return Report(data, lines, all(each.passed for each in engines))


def _inspect_checkpoint(path: Path, family: str | None, key: str | None) -> Report:
    """Say how a checkpoint file is understood, as `export` would."""
    shared.require_modules(("torch",), "export")
    from saccade.export.backbone_checkpoint import read_backbone
    from saccade.export.checkpoint import read_checkpoint
    from saccade.export.weights_file import is_plain_backbone

    data: dict[str, Any] = {"checkpoint": str(path)}
    if family not in (None, LOOKWHERE) or is_plain_backbone(path):
        backbone = read_backbone(path, family, key)
        model: Model | BackboneModel = backbone.model
        layout, sha256 = backbone.describe(), backbone.sha256
    else:
        checkpoint = read_checkpoint(path)
        model, layout, sha256 = checkpoint.model, checkpoint.layout, checkpoint.sha256
    data |= {"layout": layout, "sha256": sha256, "model": msgspec.to_builtins(model)}
    return Report(data, [f"{path}: {family_of(model)}, {layout}", *_model_lines(model), f"  SHA-256 {sha256}"])


def _model_lines(model: Model | BackboneModel) -> list[str]:
    """Describe the networks."""
    blocks, heads = counted(model.depth, "block"), counted(model.heads, "head")
    width = f"{blocks}, width {model.dim}, {heads}, {model.ffn}, patch {model.patch}"
    rows = f"{counted(model.prefix, 'row')}"
    grid = f"positions on a {model.base_grid[0]}x{model.base_grid[1]} grid"
    if isinstance(model, BackboneModel):
        scaled = "LayerScale" if model.layer_scale else "no LayerScale"
        size = " x ".join(str(extent * model.patch) for extent in reversed(model.base_grid))
        return [
            f"  backbone: {width}, hidden width {model.hidden}, {scaled}",
            f"  prefix: {rows} (cls and {model.registers or 'no'} registers)",
            f"  {grid}, {size} px; to other grids {RULE_WORDS[model.position_rule]}",
            f"  outputs: cls, tokens, {', '.join(extras_of(model))}",
        ]
    return [
        f"  extractor: {width}",
        f"  selector: {counted(model.selector_depth, 'block')}, {model.selector_size} px -> "
        f"{model.map_size}x{model.map_size} scores",
        f"  prefix: {rows} from the selector; {grid}" + (f"; {model.classes} classes" if model.classes else ""),
    ]


def _inspect_engine(bundle: Bundle, folder: Path) -> Report:
    """Read an engine's receipt, hash its files, and compare the graphs that it was built from with the bundle's."""
    data: dict[str, Any] = {"folder": str(folder)}
    details: list[str] = []
    try:
        receipt = store.read_receipt(folder)
        data |= receipt_data(folder, receipt)
        details = [f"{receipt.realised}; built in {receipt.seconds:.1f} s", *audit_lines(receipt)]
        store.check_files(folder, receipt)
    except SaccadeError as error:
        state = f"damaged: {error}"
    else:
        change = changed_graphs(bundle, graphs_of(receipt))
        state = f"stale: {change}; build again" if change else "whole"
    lines = [f"  engine {folder.name}: {'; '.join([state, *details[:1]])}", *(f"  {line}" for line in details[1:])]
    return Report(data | {"state": state}, lines, not state.startswith("damaged"))


def _defaults(bundle: Bundle) -> str:
    defaults = bundle.manifest.defaults
    size = f"{defaults.size[0]}x{defaults.size[1]} px"
    if isinstance(bundle.manifest.model, BackboneModel):
        return size
    kept = f"k = {defaults.k}" if defaults.k is not None else f"k = {defaults.k_ratio} of the patches"
    return f"{size}, {kept}"


def doctor(options: argparse.Namespace) -> Report:
    """Look at the machine and the installed packages."""
    from saccade.validate.doctor import diagnose, lines

    data = diagnose()
    return Report(data, lines(data))
