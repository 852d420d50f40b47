"""How large TensorRT engines take their inputs, as options of the command build: its optimization profile."""
from __future__ import annotations

import argparse

from saccade.bundle import Bundle, Model
from saccade.cli import options as shared
from saccade.engines.engine import DEFAULT_MAX_BATCH, MAX_BATCH
from saccade.errors import SaccadeError
from saccade.runtime.kept import MAX_CELLS
from saccade.runtime.pipeline import checked_target


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the limits."""
    parser.add_argument("--max-batch", type=int, metavar="B", help=f"TensorRT profile (default: {DEFAULT_MAX_BATCH})")
    parser.add_argument("--max-k", type=int, metavar="K", help="TensorRT profile (default: every patch of the base grid)")
    parser.add_argument(
        "--max-size", type=shared.size, metavar="S|HxW",
        help="TensorRT profile of a plain backbone, pixels (default: the base grid's, or the bundle's if larger)",
    )  # fmt: skip


def check(bundle: Bundle, options: argparse.Namespace) -> None:
    """Refuse limits that no profile can have, and those of the other kind of bundle."""
    for flag, value, most in (("--max-batch", options.max_batch, MAX_BATCH), ("--max-k", options.max_k, MAX_CELLS)):
        if value is not None and not 1 <= value <= most:
            raise SaccadeError(f"{flag} {value} is out of range; give 1 to {most}")
    model = bundle.manifest.model
    if isinstance(model, Model) and options.max_size is not None:
        raise SaccadeError("--max-size means nothing to LookWhere, whose engines take any size; give --max-k")
    if not isinstance(model, Model) and options.max_k is not None:
        raise SaccadeError("--max-k means nothing to a plain backbone, which keeps every patch; give --max-size")
    if options.max_size is not None:
        checked_target(options.max_size, model.patch)
