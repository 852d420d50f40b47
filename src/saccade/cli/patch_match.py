"""The command evaluate patch-match: which patches of two crops show the same place. Geometry alone: no bundle, no engine."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.cli import options as shared
from saccade.cli.console import Report, json_text
from saccade.cli.pictures import write_png
from saccade.errors import SaccadeError
from saccade.runtime.images import read_rgb
from saccade.validate.metrics.patch_match import Crop, match_patches
from saccade.validate.patch_match_picture import check_inside, match_picture

MAX_CELLS = 64  # of a side; the picture of such a crop is 2560 px wide
CROP = "TOP,LEFT,HEIGHT,WIDTH,CELLS[,flip]"


def add_command(tasks: Any) -> None:
    """Add the command beside the tasks that need features."""
    parser = tasks.add_parser(
        "patch-match",
        help="which patches of two crops of an image show the same place (needs no bundle)",
        description="Pair up the patches of two crops of one image by geometry, as PW-Self's training does. A crop is "
        "resized to a square of CELLS x CELLS patches and, with flip, mirrored. 0 is cls; patches count row by row from 1.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--first", type=crop, required=True, metavar=CROP, help="one crop, in pixels and patches a side")
    parser.add_argument("--second", type=crop, required=True, metavar=CROP, help="the other")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.json", help="write the two index lists")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw both crops, their patches numbered")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.set_defaults(execute=patch_match)


def crop(text: str) -> Crop:
    """Read a crop as the options give it."""
    *numbers, last = text.split(",")
    flip = last == "flip"
    try:
        top, left, height, width, cells = (int(each) for each in (numbers if flip else [*numbers, last]))
        if cells > MAX_CELLS:
            raise argparse.ArgumentTypeError(f"{cells} patches a side; at most {MAX_CELLS} are supported")
        return Crop(top, left, height, width, cells, flip)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {CROP}") from None
    except SaccadeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def patch_match(options: argparse.Namespace) -> Report:
    """Match, write what was asked for and report the lists."""
    shared.check_output("-o", options.output, ".json")
    shared.check_output("--picture", options.picture, ".png")
    image = read_rgb(options.image)
    for each in (options.first, options.second):
        check_inside(image, each)
    first, second = match_patches(options.first, options.second)
    data = {"image": str(options.image), "first": first.tolist(), "second": second.tolist()}
    written = []
    if options.output:
        atomic.write_bytes(options.output, json_text(data).encode() + b"\n")
        written.append(options.output)
    if options.picture:
        write_png(options.picture, match_picture(image, options.first, options.second))
        written.append(options.picture)
    lines = [f"{name}: {' '.join(map(str, data[name]))}" for name in ("first", "second")]
    return Report(data, [*lines, *(f"wrote {path}" for path in written)])
