"""The command evaluate: what features of an engine are worth, by the tasks that official projects judge them by."""
from __future__ import annotations

import argparse
import errno
import functools
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade import atomic
from saccade.bundle import Bundle, Model, read_bundle
from saccade.cli import extraction_speed, patch_match
from saccade.cli import options as shared
from saccade.cli.console import Report, json_text, printable, progress_bar, table
from saccade.cli.pictures import write_png
from saccade.cli.references import matching_checkpoint, use_threads
from saccade.cli.settings import add_options, settings_from
from saccade.cli.sources import add_kept, ks_of, open_sources
from saccade.errors import SaccadeError
from saccade.validate import evaluation_table
from saccade.validate.bench_plan import pair_of
from saccade.validate.bench_plots import require_matplotlib
from saccade.validate.evaluation import Evaluated, compare, evaluate_sources, few_units_note
from saccade.validate.evaluation_conditions import conditions_of
from saccade.validate.evaluation_plot import write_plot
from saccade.validate.evaluations import TASKS
from saccade.validate.evaluations.task import Task
from saccade.validate.extraction import Extractor
from saccade.validate.extraction_speed import cores
from saccade.validate.metrics.libraries import library
from saccade.validate.sources import Kept, Source, outputs_of

if TYPE_CHECKING:
    from saccade.export.backbone_checkpoint import BackboneCheckpoint
    from saccade.export.checkpoint import Checkpoint

REFERENCE = "reference"
Sides = list[list[Source]]  # the engine's and those it is compared with, each with a source for every k


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add a command for every task."""
    parser.description = "Extract features of a data set on any engine and score them as the official projects do."
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task in TASKS:
        _add_task(tasks, task)
    patch_match.add_command(tasks)
    extraction_speed.add_command(tasks)


def _add_task(tasks: Any, task: Task) -> None:
    parser = tasks.add_parser(
        task.name,
        help=task.summary,
        description=f"{task.summary}.\nFeatures stay on disk: an interrupted extraction goes on where it stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"the data folder holds:\n  {task.layout}",
    )
    shared.add_bundle(parser)
    parser.add_argument("data", type=Path, metavar="DATA", help="the data set's folder, see below")
    shared.add_running(parser)
    if task.on_lookwhere:
        add_kept(parser, several=True)
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="E:P",
        help=f"also run these engines and precisions, or '{REFERENCE}' (PyTorch)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="CHECKPOINT", help=f"what '{REFERENCE}' runs: the bundle's own")
    parser.add_argument(
        "--max-drop", type=float, metavar="X",
        help="with --compare: fail unless the 95 %% interval of every difference lies above -X percentage points",
    )  # fmt: skip
    add_options(parser.add_argument_group("the task's own"), task.settings)
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="images of a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), metavar="W", help="decoding threads (default: %(default)s)")
    parser.add_argument("--features", type=Path, metavar="DIR", help="where features are kept (default: BUNDLE.features)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.json", help="write the result")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md", help="write the tables")
    parser.set_defaults(execute=lambda options: evaluate(task, options), plot=None, pictures=None)
    if task.on_lookwhere:
        parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the sweep: the score against k and latency")
    if task.has_pictures:
        parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the task's pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def evaluate(task: Task, options: argparse.Namespace) -> Report:
    """Run one task on every source and report scores, latencies and differences."""
    settings = settings_from(options, task.settings)
    _check_options(options)
    for module in task.requires:
        library(module)
    bundle = read_bundle(options.bundle)
    outputs_of(bundle)  # refuses a bundle without features
    ks = _ks(task, bundle, options)
    data = task.read(options.data, settings)
    root = options.features or bundle.path.with_name(f"{bundle.path.name}.features")
    checkpoint = matching_checkpoint(bundle, options.checkpoint) if options.checkpoint else None
    with ExitStack() as stack:
        sides = _open_sides(bundle, options, ks, checkpoint, stack)
        extractors = [
            [Extractor(source, root, progress_bar, options.batch, options.workers) for source in side] for side in sides
        ]
        found = evaluate_sources(task, data, settings, *extractors)
    main, others = found[: len(ks)], found[len(ks) :]
    differences = [_difference(main[place % len(ks)], other, options.max_drop) for place, other in enumerate(others)]
    conditions = conditions_of(
        bundle, device=options.device, threads=options.threads, batch=options.batch, workers=options.workers
    )
    report = {**_result(task, options, settings, found, differences), "conditions": conditions}
    written, failed = _write(report, options, found)
    data = {**report, "not_written": failed} if failed else report
    lines = [*_lines(report), *written, *(f"not written: {why}" for why in failed)]
    return Report(data, lines, report["passed"] and not failed)


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what can be known before anything slow."""
    for flag in ("batch", "workers"):
        if not 1 <= getattr(options, flag) <= 1024:
            raise SaccadeError(f"--{flag} {getattr(options, flag)} is out of range; give 1 to 1024")
    _check_compare(options)
    if options.plot and len(getattr(options, "k", None) or getattr(options, "k_ratio", None) or []) < 2:
        raise SaccadeError("--plot draws a sweep; give two or more with --k or --k-ratio")
    shared.check_output("-o", options.output, ".json")
    shared.check_output("--markdown", options.markdown, ".md")
    shared.check_output("--plot", options.plot, ".png")
    if options.plot:
        require_matplotlib()
    for flag in ("features", "pictures"):
        if (path := getattr(options, flag)) is not None:
            shared.refuse_inside_bundle(f"--{flag}", path)
            if path.is_file():
                raise atomic.write_error(path, OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))


def _check_compare(options: argparse.Namespace) -> None:
    """Refuse other sides that are none, or a gate without one."""
    if options.max_drop is not None and not (options.compare and 0 <= options.max_drop < math.inf):
        raise SaccadeError("--max-drop is how far a side of --compare may fall behind; give --compare too, and 0 or more")
    if (REFERENCE in options.compare) != (options.checkpoint is not None):
        raise SaccadeError(f"--compare {REFERENCE} and --checkpoint belong together; give both or neither")
    if len(set(options.compare)) < len(options.compare):
        raise SaccadeError(f"--compare {' '.join(options.compare)}: give each once")
    for side in options.compare:
        if side != REFERENCE:
            pair_of(side, "--compare")


def _ks(task: Task, bundle: Bundle, options: argparse.Namespace) -> list[Kept | None]:
    """Return what every run keeps; refuse a LookWhere model where its outputs do not suffice."""
    if not task.on_lookwhere and isinstance(bundle.manifest.model, Model):
        raise SaccadeError(f"{task.name} needs what only a plain backbone gives, and {bundle.path} is a LookWhere model")
    return ks_of(bundle, options)


def _open_sides(
    bundle: Bundle,
    options: argparse.Namespace,
    ks: list[Kept | None],
    checkpoint: Checkpoint | BackboneCheckpoint | None,
    stack: ExitStack,
) -> Sides:
    """Open what the options name: one engine, and those that it is compared with."""
    sides = [stack.enter_context(open_sources(bundle, options, options.engine, options.precision, ks))]
    for other in options.compare:
        if other == REFERENCE:
            sides.append(_reference(bundle, options, ks, checkpoint))
        else:
            sides.append(stack.enter_context(open_sources(bundle, options, *pair_of(other, "--compare"), ks)))
    return sides


def _reference(
    bundle: Bundle,
    options: argparse.Namespace,
    ks: list[Kept | None],
    checkpoint: Checkpoint | BackboneCheckpoint | None,
) -> list[Source]:
    from saccade.validate.reference_source import reference_sources

    assert checkpoint is not None
    use_threads(options.threads)
    return reference_sources(bundle, checkpoint, ks)


def _difference(main: Evaluated, other: Evaluated, max_drop: float | None) -> dict[str, Any]:
    """Return what JSON holds of a pair, with its verdict where one is asked for."""
    found = compare(main, other)
    gate = {} if max_drop is None else {"passed": found.low >= -max_drop}
    sides = {"first_side": main.label, "second_side": other.label}
    return {**sides, **asdict(found), "significant": found.is_significant, **gate}


def _result(
    task: Task, options: argparse.Namespace, settings: Any, found: Sequence[Evaluated], differences: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what JSON and the tables hold."""
    headline = found[0].outcome.scores[found[0].outcome.headline]
    notes = [note for each in found for note in each.outcome.notes]
    notes += few_units_note([each["units"] for each in differences])
    return {
        "task": task.name,
        "bundle": str(options.bundle),
        "data": str(options.data),
        "settings": msgspec.to_builtins(settings),
        "metric": headline.name,
        "unit": headline.unit,
        "sides": [each.data() for each in found],
        "differences": differences,
        "max_drop": options.max_drop,
        "notes": list(dict.fromkeys(notes)),
        "passed": options.max_drop is None or all(each["passed"] for each in differences),
    }


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [line for each in evaluation_table.tables(report) for line in (*table(each), "")]
    if report["max_drop"] is not None:
        lines.append(evaluation_table.verdict(report))
    return [*lines, *(f"note: {note}" for note in report["notes"]), *evaluation_table.condition_lines(report)]


def _write(report: dict[str, Any], options: argparse.Namespace, found: Sequence[Evaluated]) -> tuple[list[str], list[str]]:
    """Write what was asked for: a line for each, and what failed, since the numbers have taken long and are shown anyway."""

    def write_json(path: Path) -> None:
        atomic.write_bytes(path, json_text(report, indent=2).encode() + b"\n")

    def write_markdown(path: Path) -> None:
        atomic.write_bytes(path, printable(evaluation_table.markdown(report)).encode())

    writers: list[tuple[Path | None, Callable[[Path], None]]] = [
        (options.output, write_json),
        (options.markdown, write_markdown),
        (options.plot, functools.partial(write_plot, report)),
        (options.pictures, functools.partial(_write_pictures, found[0])),
    ]
    written, failed = [], []
    for path, write in writers:
        if path is None:
            continue
        try:
            write(path)
            written.append(f"wrote {path}")
        except SaccadeError as error:
            failed.append(str(error))
    return written, failed


def _write_pictures(found: Evaluated, folder: Path) -> None:
    """Write a side's pictures below a folder."""
    for name, picture in found.outcome.pictures():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.write_error(path.parent, error) from error
        write_png(path, picture)
