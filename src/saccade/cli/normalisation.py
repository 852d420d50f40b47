"""How a checkpoint's pixels become numbers, as options of the command export: no checkpoint file says it."""
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from saccade.bundle import ImageContract
from saccade.errors import SaccadeError

if TYPE_CHECKING:
    from saccade.export.backbone_checkpoint import BackboneCheckpoint

SMALLEST_STD = 1e-3  # as a bundle may have it
CHANNELS = ("R", "G", "B")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add mean and deviation."""
    text = "of a plain backbone's training: {} of pixels/255 (default: ImageNet's; timm's augreg models have 0.5 0.5 0.5)"
    parser.add_argument("--mean", nargs=3, type=float, metavar=CHANNELS, help=text.format("mean"))
    parser.add_argument("--std", nargs=3, type=float, metavar=CHANNELS, help=text.format("deviation"))


def refuse_for_lookwhere(options: argparse.Namespace) -> None:
    """Refuse statistics for LookWhere, which has no other than its own."""
    for flag, values in (("--mean", options.mean), ("--std", options.std)):
        if values is not None:
            raise SaccadeError(f"{flag} is for plain backbones: LookWhere has ImageNet's statistics; leave it out")


def given_contract(options: argparse.Namespace) -> ImageContract | None:
    """Return the contract that the options state; None where they state none."""
    mean, std = options.mean, options.std
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise SaccadeError("--mean and --std belong together; give both")
    _check("--mean", mean, 0.0)
    _check("--std", std, SMALLEST_STD)
    return ImageContract(mean=tuple(mean), std=tuple(std))


def _check(flag: str, values: list[float], least: float) -> None:
    for value in values:
        if not least <= value <= 1:
            hint = "; pixels are divided by 255 before, so divide it too" if 1 < value <= 255 else ""
            raise SaccadeError(f"{flag} {value:g} is out of range; give {least:g} to 1{hint}")


def assumption_of(checkpoint: BackboneCheckpoint, given: ImageContract | None) -> str | None:
    """Say what was assumed of a file whose like were trained with several statistics; None where nothing was."""
    if given is not None or "timm" not in (checkpoint.spelling, checkpoint.model.family):
        return None
    return (
        "the file does not say how pixels were normalised; ImageNet's statistics are assumed. Compare with the model's "
        "pretrained_cfg: timm's augreg models, for one, have --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
    )
