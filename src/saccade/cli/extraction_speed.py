"""The command evaluate speed: images per second of an extraction, against what network and decoding take by themselves."""
from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saccade.bundle import read_bundle
from saccade.cli import options as shared
from saccade.cli.console import Report, progress_bar, table
from saccade.cli.sources import add_kept, ks_of, open_sources
from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.runtime.images import check_size
from saccade.validate.extraction_speed import MOST_BATCHES, Speed, check_enough, cores, measure
from saccade.validate.preparation import Squash
from saccade.validate.sources import outputs_of

BATCHES = (1, 4, 8, 16)


def add_command(tasks: Any) -> None:
    """Add the command beside the tasks."""
    parser = tasks.add_parser(
        "speed",
        help="how fast the features of a folder of images are extracted, and at which batch",
        description="Extract features of a folder into a temporary one, in turns with the network alone and decoding alone.",
    )
    shared.add_bundle(parser)
    parser.add_argument("images", type=Path, metavar="IMAGES", help=f"a folder; {MOST_BATCHES} batches are used")
    shared.add_running(parser)
    add_kept(parser, several=False)
    parser.add_argument("--size", type=shared.size, metavar="S|HxW", help="pixels; default: the bundle's")
    parser.add_argument("--outputs", nargs="+", default=["cls"], metavar="O", help="cls (default), tokens, attention")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, metavar="B", help="default: 1 4 8 16")
    parser.add_argument("--workers", type=int, default=cores(), metavar="W", help="decoding threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each batch (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.set_defaults(execute=speed)


def speed(options: argparse.Namespace) -> Report:
    """Measure every batch and report the best."""
    if min(*options.batch, options.workers, options.rounds) < 1:
        raise SaccadeError("--batch, --workers and --rounds are 1 or more")
    bundle = read_bundle(options.bundle)
    model = bundle.manifest.model
    size = check_size(options.size or bundle.manifest.defaults.size, model.patch)
    unknown = [name for name in options.outputs if name not in outputs_of(bundle)]
    if unknown:
        raise SaccadeError(f"--outputs {unknown[0]}: {bundle.path} gives {', '.join(outputs_of(bundle))}")
    ks = ks_of(bundle, options)
    images, prepare = shared.image_paths(options.images, "IMAGES"), Squash(size)
    for batch in options.batch:
        check_enough(len(images), batch)
    pixels = [prepare(path) for path in images[: MOST_BATCHES * max(options.batch)]]
    with ExitStack() as stack:
        (source,) = stack.enter_context(open_sources(bundle, options, options.engine, options.precision, ks))
        bar = stack.enter_context(progress_bar(len(options.batch), "batch sizes", "size"))
        found = []
        for batch in options.batch:
            found.append(
                measure(source, images, pixels, prepare, options.outputs, batch, options.workers, options.rounds)
            )
            bar.update(1)
    return _report(options, source.label, found)


def _report(options: argparse.Namespace, label: str, found: list[Speed]) -> Report:
    best = max(found, key=lambda each: each.images_per_second)
    conditions = {
        "engine": label, "images": str(options.images), "outputs": options.outputs, "workers": options.workers,
        "cores": cores(), "load": round(os.getloadavg()[0], 2), "rounds": options.rounds,
    }  # fmt: skip
    head = (label, "images/s", "ms", "network ms", "decode core-ms", "of the bound")
    rows = [
        (f"batch {each.batch}", f"{each.images_per_second:.1f}", f"{each.extract_ms:.2f}", f"{each.compute_ms:.2f}",
         f"{each.decode_core_ms:.2f}", f"{each.share:.3f}")
        for each in found
    ]  # fmt: skip
    machine = f"{counted(cores(), 'core')}, load {conditions['load']}"
    last = f"best: batch {best.batch}, {best.images_per_second:.1f} images/s on {machine}"
    data = {**conditions, "batches": [asdict(each) for each in found], "best": best.batch}
    return Report(data, [*table([head, *rows]), last])
