"""Commands that judge: parity, verify."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade import atomic, locks
from saccade._version import VERSION
from saccade.bundle import Bundle, read_bundle, write_manifest
from saccade.cli import options as shared
from saccade.cli.console import Phases, Report, progress_bar, table
from saccade.cli.references import Group, backbone_cases, fitted, given_images, matching_checkpoint, reference_cases
from saccade.cli.verdicts import PARITY, VERIFY, change_since, command_of, measured_on, title_of
from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.images import check_size
from saccade.runtime.kept import kept_on

if TYPE_CHECKING:
    from saccade.export.backbone_checkpoint import BackboneCheckpoint
    from saccade.export.checkpoint import Checkpoint
    from saccade.validate.backbone_parity import BackboneResult
    from saccade.validate.parity import ParityResult, Verdict

MAX_RECEIPTS = 32  # verdicts kept in a manifest


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the options of verify."""
    parser.description = (
        "Run the engine on the images in golden.npz and compare with the outputs that PyTorch gave at export. "
        "The verdict is kept in the bundle, and 'saccade inspect' shows it for as long as what it judged is there."
    )
    shared.add_bundle(parser)
    shared.add_running(parser)
    shared.add_static(parser)
    shared.add_cls_only(parser)
    parser.set_defaults(execute=verify)


def verify(options: argparse.Namespace) -> Report:
    """Judge the engine by the numbers of its kind of model on the bundle's golden cases."""
    from saccade.validate.verify import verify as run_verify

    bundle = read_bundle(options.bundle)
    shared.refuse_lookwhere_only(bundle, options)
    with shared.open_pipeline(bundle, options, static=options.static, cls_only=options.cls_only) as pipeline:
        result = run_verify(pipeline)
    data = _identity(bundle, pipeline, options, VERIFY) | result.summary()
    _keep_receipt(bundle, data)
    return Report(data, _lines(data, result), result.passed)


def add_parity(parser: argparse.ArgumentParser) -> None:
    """Add the options of parity."""
    parser.description = "Run the checkpoint in PyTorch and the engine on the same images, and compare by a few numbers."
    shared.add_bundle(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CHECKPOINT", help="what the bundle was made of")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of images (default: the bundle's golden ones)")
    shared.add_running(parser)
    shared.add_static(parser)
    shared.add_cls_only(parser)
    shared.add_selection(parser)
    parser.add_argument("--report", type=Path, metavar="OUT.html", help="write one self-contained page")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write inputs and outputs as Polygraphy files")
    parser.set_defaults(execute=parity)


def parity(options: argparse.Namespace) -> Report:
    """Judge the engine against the checkpoint's modules, write what was asked for, and leave a receipt in the bundle."""
    from saccade.validate.report import facts_of, write_report
    from saccade.validate.tensors import compare_tensors

    shared.check_output("--report", options.report, ".html")
    if options.results:
        shared.refuse_inside_bundle("--results", options.results)
    bundle = read_bundle(options.bundle)
    shared.refuse_lookwhere_only(bundle, options)
    checkpoint = matching_checkpoint(bundle, options.checkpoint)
    given = given_images(bundle, options)
    static = options.static and _static_k(bundle, options)
    with shared.open_pipeline(bundle, options, static=static, cls_only=options.cls_only) as pipeline:
        groups = [fitted(pipeline, each, options) if isinstance(each, Path) else each for each in given]
        with progress_bar(sum(len(group.images) for group in groups), "parity") as bar:
            result = _measured(
                pipeline, checkpoint, groups, options.threads, lambda done: bar.update(len(done.case.images))
            )
        tensors = compare_tensors(pipeline, result.cases, options.results)
    data = _identity(bundle, pipeline, options, PARITY) | result.summary() | {"tensors": tensors}
    if options.report:
        write_report(options.report, result, facts_of(data), tensors, bundle.manifest.model.patch)
        data["report"] = str(options.report)
    lines = _lines(data, result) + [f"wrote {path}" for path in (options.report, options.results) if path]
    _keep_receipt(bundle, data)
    return Report(data, lines, result.passed)


def _measured(
    pipeline: Pipeline | BackbonePipeline,
    checkpoint: Checkpoint | BackboneCheckpoint,
    groups: list[Group],
    threads: int,
    on_case: Callable[[Any], None],
) -> ParityResult | BackboneResult:
    """Run both sides on all images and judge the engine by the numbers of its kind of model."""
    from saccade.export.backbone_checkpoint import BackboneCheckpoint
    from saccade.validate.backbone_parity import measure_backbone
    from saccade.validate.parity import measure_parity

    if isinstance(pipeline, BackbonePipeline):
        assert isinstance(checkpoint, BackboneCheckpoint)
        image = pipeline.bundle.manifest.image
        return measure_backbone(pipeline, backbone_cases(checkpoint, image, groups, threads), on_case)
    assert not isinstance(checkpoint, BackboneCheckpoint)
    return measure_parity(pipeline, reference_cases(checkpoint, pipeline.bundle.manifest.task, groups, threads), on_case)


def _static_k(bundle: Bundle, options: argparse.Namespace) -> int:
    """Return the k that the options keep of every image."""
    if options.fit == "native" and options.k is None:
        raise SaccadeError("--static is for one k, and with --fit native each size has its own; give --k too")
    defaults, patch = bundle.manifest.defaults, bundle.manifest.model.patch
    height, width = check_size(options.size or defaults.size, patch)
    grid = (height // patch, width // patch)
    return int(options.k) if options.fit == "native" else kept_on(grid, defaults, options.k, options.k_ratio)


def _identity(
    bundle: Bundle, pipeline: Pipeline | BackbonePipeline, options: argparse.Namespace, command: str
) -> dict[str, Any]:
    form: dict[str, Any] = {}
    if isinstance(pipeline, Pipeline):
        static = pipeline.static_receipt
        form = {"static_k": pipeline.static_k, "static_key": static.key} if static else {}
        form |= {"cls_only": True} if pipeline.cls_only else {}
    return {
        "bundle": str(bundle.path),
        "saccade": VERSION,
        "checkpoint_sha256": bundle.manifest.provenance.get("checkpoint_sha256", ""),
        "command": command,
        **measured_on(bundle, pipeline.receipt, options.device),
        **form,
    }


def _lines(data: dict[str, Any], result: Verdict[Any]) -> list[str]:
    """Return the one table."""
    rows: list[tuple[str, ...]] = [("number", "value", "bound", "", "meaning")]
    for measure in result.measures:
        word = "pass" if measure.passed else "FAIL"
        rows.append((measure.name, f"{measure.value:.3g}", f"{measure.bound:.3g}", word, measure.meaning))
    same = "equals PyTorch" if data["precision"] == "fp32" else f"is within the {data['precision']} bounds of PyTorch"
    verdict = same if result.passed else "DIFFERS from PyTorch"
    head = f"{title_of(data)} {verdict} on {counted(data['images'], 'image')}"
    if "swaps" in data:
        swapped = f"{counted(data['swaps'], 'patch', 'patches')} kept by one side only"
        head += f" ({swapped})" if data["swaps"] else " (the same patches kept)"
    tensors: list[str] = []
    if "tensors" in data:
        names = list(next(iter(data["tensors"].values())))
        tensor_rows: list[tuple[str, ...]] = [("output", *names)]
        for output, values in data["tensors"].items():
            tensor_rows.append((output, *(f"{values[name]:.6g}" for name in names)))
        tensors = ["", *table(tensor_rows)]
    return [head, *table(rows), *tensors]


def _keep_receipt(bundle: Bundle, data: dict[str, Any]) -> None:
    """Add a command's verdict to the manifest in the place of its last one on this engine, or say why that is not done.

    A verdict that names no device, as an older saccade wrote it, may be of this one, and is replaced too.
    """
    receipt = {name: value for name, value in data.items() if name not in ("bundle", "tensors", "report")}
    try:
        with locks.reserved(bundle.path, "another process is writing the bundle; repeat the command"):
            _write_receipt(read_bundle(bundle.path), receipt)  # as it is now: the run took a while
    except SaccadeError as error:
        Phases().note(f"the verdict was not kept in the bundle: {error}")


def _write_receipt(bundle: Bundle, receipt: dict[str, Any]) -> None:
    atomic.prepare_in_bundle(bundle.path)  # else another place would be the remedy, and there is none
    if change_since(bundle, receipt):
        raise SaccadeError("the bundle was exported again meanwhile; repeat the command")
    manifest = bundle.manifest
    same = {name: receipt.get(name) for name in ("command", "engine", "precision", "device", "static_k", "cls_only")}
    same["command"] = command_of(receipt)
    older = {"command": PARITY, "device": same["device"], "static_k": None, "cls_only": None}
    others = [old for old in manifest.parity if not same.items() <= (older | old).items()]
    write_manifest(bundle.path, msgspec.structs.replace(manifest, parity=(*others, receipt)[-MAX_RECEIPTS:]))
