"""The command make-checkpoint: seeded weights in the layout of a real file."""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.cli import options as shared
from saccade.cli.console import Report, progress_bar
from saccade.errors import SaccadeError
from saccade.export.seeded import FAMILIES
from saccade.export.seeded_backbones import BACKBONES

MAX_SEED = 2**32 - 1  # beyond it the same weights come again
MAX_EXTENT = 1 << 14
SIZES = ("dim", "depth", "selector_depth", "grid")


def add_make_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Write seeded weights in a real checkpoint layout. Sizes that are not given are the published file's."
    )
    parser.epilog = f"families: {', '.join((*FAMILIES, *BACKBONES))}"
    parser.add_argument("family", metavar="FAMILY", help="whose layout, see below")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dim", type=int, help="width, a multiple of 64")
    parser.add_argument("--depth", type=int, help="blocks of the backbone, or of LookWhere's extractor")
    parser.add_argument("--selector-depth", type=int, help="blocks of LookWhere's selector")
    parser.add_argument("--grid", type=int, help="side of the position table")
    parser.add_argument("--classes", type=int, help="write LookWhere's fine-tuned layout with this many classes")
    parser.add_argument(
        "--outliers", type=float, metavar="X",
        help="make a few channels of each norm X times as large, as trained models have them, in the same function",
    )  # fmt: skip
    parser.set_defaults(execute=make_checkpoint)


def make_checkpoint(options: argparse.Namespace) -> Report:
    """Write a seeded checkpoint and report its crc, by which others can tell that they have the same weights."""
    shared.require_modules(shared.EXPORT_MODULES, "export")
    import torch

    from saccade.export import seeded
    from saccade.export.outliers import with_outliers

    sizes = {name: _positive(options, name) for name in SIZES if getattr(options, name) is not None}
    if not 0 <= options.seed <= MAX_SEED:
        raise SaccadeError(f"--seed {options.seed} is out of range; give 0 to {MAX_SEED}")
    shared.refuse_inside_bundle("-o", options.output)
    shapes, is_nested = _shapes(options, sizes)
    with progress_bar(len(shapes), "weights", "tensor") as bar:
        weights = seeded.seeded_weights(shapes, options.seed, lambda name: bar.update(1))
    if options.outliers is not None:
        weights = with_outliers(weights, options.outliers, options.seed)
    crc = seeded.weights_crc32(weights)

    def tensors(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: tensors(v) if isinstance(v, dict) else torch.from_numpy(v) for key, v in tree.items()}

    with atomic.pending_file(options.output) as pending, pending.open("wb") as file:
        try:
            torch.save(tensors(seeded.nested(weights) if is_nested else weights), file)
        except RuntimeError as error:  # torch's zip writer wraps what the disk said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    parameters = sum(array.size for array in weights.values())
    data = {"file": str(options.output), "family": options.family, "seed": options.seed, "crc32": crc}
    line = f"{options.output}: {options.family}, {parameters / 1e6:.1f} M parameters, seed {options.seed}, crc32 {crc}"
    return Report(data | {"parameters": parameters}, [line])


def _shapes(options: argparse.Namespace, sizes: dict[str, int]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return the names and shapes of a family's file, and whether LookWhere's nesting is put on them."""
    from saccade.export import seeded
    from saccade.export.seeded_backbones import backbone_shapes

    if options.family in BACKBONES:
        for name in ("selector_depth", "classes"):
            if getattr(options, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise SaccadeError(f"{flag} means nothing to a plain backbone: it has no selector and no head; leave it out")
        published: Any = BACKBONES[options.family]
        return backbone_shapes(dataclasses.replace(published, **sizes)), False
    if options.family not in FAMILIES:
        known = ", ".join((*FAMILIES, *BACKBONES))
        raise SaccadeError(f"unknown family {options.family!r}; choose from: {known}")
    found = seeded.checkpoint_shapes(options.family, seeded.Sizes(**sizes, classes=options.classes or 0))
    return found, not options.classes


def _positive(options: argparse.Namespace, name: str) -> int:
    value = int(getattr(options, name))
    if not 1 <= value <= MAX_EXTENT:
        raise SaccadeError(f"--{name.replace('_', '-')} {value} is out of range; give 1 to {MAX_EXTENT}")
    return value
