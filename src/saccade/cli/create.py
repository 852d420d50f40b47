"""Commands that make a bundle and what is in it: export, build."""
from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade import atomic, locks
from saccade.bundle import (
    BACKBONES,
    ENGINES_FOLDER,
    Bundle,
    DataFile,
    read_bundle,
    sha256_of_file,
    write_manifest,
)
from saccade.cli import normalisation, profile, self_test
from saccade.cli import options as shared
from saccade.cli.console import Phases, Report, size_text, table
from saccade.cli.replacing import check_target, losses_of
from saccade.cli.verdicts import measured_on
from saccade.counted import counted
from saccade.engines import store
from saccade.engines.engine import ENGINE_NAMES, EngineRequest, default_request, refuse_path
from saccade.errors import SaccadeError
from saccade.runtime.kept import MAX_CELLS, checked_k
from saccade.runtime.loading import requests_of

# Which engines each option of `build` means something to.
TAKEN_BY = {
    "device": ("openvino", "onnxruntime", "tensorrt"),  # TensorRT-RTX builds without one, for compute capabilities
    "max_batch": ("tensorrt", "tensorrt-rtx"),
    "max_k": ("tensorrt", "tensorrt-rtx"),
    "max_size": ("tensorrt", "tensorrt-rtx"),
    "compute_capability": ("tensorrt-rtx",),
}

LOOKWHERE = "lookwhere"
FAMILIES = (LOOKWHERE, *BACKBONES)
NETWORKS = ("teacher", "student")  # of a training checkpoint

if TYPE_CHECKING:
    from saccade.bundle import Defaults
    from saccade.export.checkpoint import Checkpoint
    from saccade.golden import StoredCase


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of export."""
    parser.description = (
        "Write a bundle from a checkpoint. If its graphs do not equal PyTorch, there is no bundle. "
        "One that is there is replaced whole, with its engines and verdicts, and what was lost is said; "
        "what takes minutes, a GPU or images to make again is replaced with --force alone."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pt file of tensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--size", type=int, metavar="S", help="default pixels of a run (default: the position table's)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--k", type=int, metavar="K", help="default number of patches to keep")
    kept.add_argument("--k-ratio", type=float, metavar="R", help="default share of patches to keep (default: 0.1)")
    parser.add_argument("--task", choices=("features", "classify", "segment"), help="needed where there is a head")
    parser.add_argument("--family", choices=FAMILIES, help="whose code the model is from, where the file cannot tell")
    parser.add_argument("--checkpoint-key", choices=NETWORKS, help="which network of a training checkpoint")
    normalisation.add_options(parser)
    parser.add_argument("--force", action="store_true", help="replace converted graphs and TensorRT engines too")
    parser.set_defaults(execute=export)


def export(options: argparse.Namespace) -> Report:
    """Write the bundle beside its place, check it against PyTorch, and only then give it its name.

    Nobody else may export or build there meanwhile. It does not wait for them: what they make would be replaced at once.
    """
    shared.require_modules(shared.EXPORT_MODULES, "export")
    start = time.perf_counter()
    target: Path = options.output
    refuse_path(target)
    busy = f"{target} is being exported or built by another process; repeat when it is done, or choose another place"
    with locks.reserved(target, busy), Phases() as phases:
        check_target(target)
        lost = losses_of(target)
        if not options.force:
            lost.refuse_costly(target)
        summary = _export_to(target, options, phases)
        manifest = read_bundle(target).manifest
        files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    task, layout = manifest.task, manifest.provenance["checkpoint_layout"]
    data: dict[str, Any] = {"bundle": str(target), "task": task, "files": files, "parity": summary}
    data |= {"replaced": lost.data(), "mean": manifest.image.mean, "std": manifest.image.std}
    lines = [f"{target}: {task}, equal to PyTorch on {counted(summary['images'], 'image')}", f"  from {layout}"]
    lines.append(f"  images: {manifest.image.in_words()}")
    lines += [f"  {line}" for line in lost.lines()]
    lines += table([(f"  {name}", size_text(size)) for name, size in files.items()])
    return Report(data | {"seconds": round(time.perf_counter() - start, 2)}, lines)


def _export_to(target: Path, options: argparse.Namespace, phases: Phases) -> dict[str, Any]:
    """Write and check the bundle; return the verdict."""
    from saccade.export.bundle_export import resolve_defaults, write_bundle
    from saccade.export.checkpoint import read_checkpoint, resolve_task
    from saccade.export.golden_cases import golden_cases
    from saccade.export.weights_file import is_plain_backbone

    phases("read the checkpoint")
    if options.family not in (None, LOOKWHERE) or is_plain_backbone(options.checkpoint):
        return _export_backbone_to(target, options, phases)
    normalisation.refuse_for_lookwhere(options)
    if options.checkpoint_key is not None:
        raise SaccadeError("--checkpoint-key chooses among a training checkpoint's networks; a LookWhere file has none")
    checkpoint = read_checkpoint(options.checkpoint)
    task = resolve_task(checkpoint, options.task)
    defaults = resolve_defaults(checkpoint, options.size, options.k, options.k_ratio)
    _check_dense(checkpoint, task, defaults)
    with atomic.pending_folder(target) as folder:
        write_bundle(checkpoint, task, defaults, folder, phases)
        bundle = _add_golden(folder, golden_cases(checkpoint, task, defaults, phases))
        phases("check the graphs against PyTorch")
        summary = _check_against_pytorch(bundle)
        phases("move into place")
    return summary


def _export_backbone_to(target: Path, options: argparse.Namespace, phases: Phases) -> dict[str, Any]:
    """Write and check the bundle of a plain backbone; return the verdict."""
    from saccade.export.backbone_checkpoint import read_backbone
    from saccade.export.backbone_export import write_backbone_bundle
    from saccade.export.golden_cases import backbone_golden_cases
    from saccade.export.reference import IMAGENET

    given = {"--k": options.k, "--k-ratio": options.k_ratio, "--task": options.task}
    for flag in (name for name, value in given.items() if value is not None):
        raise SaccadeError(f"{flag} means nothing to a plain backbone: it keeps every patch and has no head; leave it out")
    statistics = normalisation.given_contract(options)
    checkpoint = read_backbone(options.checkpoint, options.family, options.checkpoint_key)
    assumption = normalisation.assumption_of(checkpoint, statistics)
    if assumption:
        phases.note(f"warning: {assumption}")
    image = statistics or IMAGENET
    with atomic.pending_folder(target) as folder:
        write_backbone_bundle(checkpoint, options.size, folder, phases, image)
        bundle = _add_golden(folder, backbone_golden_cases(checkpoint, phases, image))
        phases("check the graph against PyTorch")
        summary = _check_against_pytorch(bundle)
        phases("move into place")
    return summary


def _check_dense(checkpoint: Checkpoint, task: str, defaults: Defaults) -> None:
    """Refuse a default k that no run could use: segmentation fills every cell from the nearest kept patches."""
    if task == "segment":
        height, width = defaults.size
        cells = height * width // checkpoint.model.patch**2
        checked_k(defaults.k_on(cells), cells, dense=True)


def _add_golden(folder: Path, cases: Sequence[StoredCase]) -> Bundle:
    """Write golden.npz and name it in the manifest."""
    from saccade.golden import write_cases

    bundle = read_bundle(folder)
    path = folder / "golden.npz"
    write_cases(path, cases)
    golden = DataFile(path.name, sha256_of_file(path))
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, golden=golden))
    return read_bundle(folder)


def _check_against_pytorch(bundle: Bundle) -> dict[str, Any]:
    """Run the graphs in ONNX Runtime at other batches, k and grids than the tracer saw; raise where they differ."""
    from saccade.runtime.loading import load
    from saccade.validate.verify import verify

    with load(bundle, engine="onnxruntime", note=lambda line: None) as pipeline:
        result = verify(pipeline)
    shutil.rmtree(bundle.path / ENGINES_FOLDER)  # only a receipt for this machine; bundles travel without it
    summary = result.summary() | measured_on(bundle, pipeline.receipt, None)
    if not result.passed:
        failed = [measure.name for measure in result.measures if not measure.passed]
        raise SaccadeError(
            f"the exported graphs differ from PyTorch in {', '.join(failed)}; no bundle was written. "
            "This is a bug of saccade or of the installed torch: please report it with the versions of 'saccade doctor'"
        )
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, parity=(summary,)))
    return summary


def add_build(parser: argparse.ArgumentParser) -> None:
    """Add the options of build."""
    parser.description = "Build one engine for each graph of a bundle. An engine that is there and not stale is kept."
    shared.add_bundle(parser)
    shared.add_engine(parser)
    shared.add_static(parser)
    parser.add_argument("--k", type=int, metavar="K", help="patches of the static engines (default: the bundle's)")
    shared.add_cls_only(parser)
    profile.add_options(parser)
    parser.add_argument(
        "--compute-capability", nargs="+", metavar="SM89", help="TensorRT-RTX targets (default: its own)"
    )
    parser.set_defaults(execute=build)


def build(options: argparse.Namespace) -> Report:
    """Build what is missing, stale or damaged and report what there is."""
    bundle = read_bundle(options.bundle)
    request = engine_request(bundle, options)
    with Phases() as phases:
        check = self_test.check_of(bundle, request, phases)
        before = {folder: folder.stat().st_mtime_ns for folder, _ in store.receipts(bundle)}
        folder, receipt = store.ensure(bundle, request, phases, phases.note, thorough=True, check=check)
        kept = before.get(folder) == folder.stat().st_mtime_ns  # else it is another folder, under its old name perhaps
        if kept and receipt.key != store.key_of(store.conditions(bundle, request)):
            phases.note(f"{folder} takes all that and more; delete it for an engine of just these limits")
        verdict = None if check is None else self_test.verdict_on(folder, receipt, check)
    lines = _build_lines(folder, receipt, kept=kept)
    lines += [f"  equal to PyTorch on {counted(verdict['images'], 'image')}"] if verdict else []
    return Report(receipt_data(folder, receipt) | {"built": not kept, "self_test": verdict}, lines)


def engine_request(bundle: Bundle, options: argparse.Namespace) -> EngineRequest:
    """Return what `saccade.load` would ask for, with the limits of the build options where they are given."""
    _check_build_options(options)
    profile.check(bundle, options)
    dynamic = default_request(bundle, options.engine, options.precision, options.device, cls_only=options.cls_only)
    usual = requests_of(bundle, dynamic, options.static and (True if options.k is None else options.k))[-1]
    return msgspec.structs.replace(
        usual,
        max_batch=usual.max_batch if options.max_batch is None else options.max_batch,
        max_k=usual.max_k if options.max_k is None else options.max_k,
        max_size=usual.max_size if options.max_size is None else options.max_size,
        compute_capabilities=tuple(options.compute_capability or ()),
        any_limits=False,
    )


def _check_build_options(options: argparse.Namespace) -> None:
    """Refuse options that the engine would pass over, and values that no profile can have."""
    for name, engines in TAKEN_BY.items():
        if getattr(options, name) is not None and options.engine not in engines:
            flag = f"--{name.replace('_', '-')}"
            raise SaccadeError(f"{flag} means nothing to --engine {options.engine}; leave it out, or use {_choice(engines)}")
    if options.k is not None and not options.static:
        raise SaccadeError("--k is the k of static engines, others take any; give --static too")
    if options.k is not None and not 1 <= options.k <= MAX_CELLS:
        raise SaccadeError(f"--k {options.k} is out of range; give 1 to {MAX_CELLS}")
    targets = options.compute_capability or []
    for name in targets:
        if targets.count(name) > 1:
            raise SaccadeError(f"--compute-capability {name} is given twice; name each once")


def _choice(engines: tuple[str, ...]) -> str:
    return "--engine " + " or ".join(name for name in ENGINE_NAMES if name in engines)


def receipt_data(folder: Path, receipt: store.Receipt) -> dict[str, Any]:
    """Return what programs want to know of a built engine."""
    return {
        "engine": receipt.engine,
        "precision": receipt.precision,
        "key": receipt.key,
        "folder": str(folder),
        "realised": receipt.realised,
        "conditions": receipt.conditions,
        "audit": receipt.audit,
        "seconds": receipt.seconds,
    }


def _build_lines(folder: Path, receipt: store.Receipt, *, kept: bool) -> list[str]:
    state = "already built" if kept else f"built in {receipt.seconds:.1f} s"
    lines = [f"{folder}: {state}; {receipt.realised}"]
    lines += [f"  {name}  {size_text((folder / name).stat().st_size)}" for name in receipt.files.values()]
    return lines + audit_lines(receipt)


def audit_lines(receipt: store.Receipt) -> list[str]:
    """Return the audit of each graph in words."""
    if not receipt.audit:
        return []
    from saccade.engines.audit import audit_lines as in_words

    return [f"  {role}: {line}" for role, found in receipt.audit.items() for line in in_words(found)]
