"""What an export onto an existing bundle replaces: nothing without a word, and nothing costly unasked."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.bundle import ENGINES_FOLDER, MANIFEST, read_bundle
from saccade.engines import store
from saccade.errors import SaccadeError

REBUILT = ("openvino", "onnxruntime")  # engines that the next run makes again in seconds; TensorRT's take minutes and a GPU


@dataclass(frozen=True)
class Losses:
    """What was made from a bundle since its export, which goes with it."""

    graphs: tuple[str, ...] = ()  # converted precisions
    engines: tuple[str, ...] = ()  # as "openvino-int8"
    verdicts: int = 0  # of parity and verify

    def refuse_costly(self, target: Path) -> None:
        """Raise where something is among them that takes minutes, a GPU or images to make again."""
        costly = [engine for engine in self.engines if not engine.startswith(REBUILT)]
        what = [f"converted graphs ({', '.join(self.graphs)})"] if self.graphs else []
        what += [f"TensorRT engines ({', '.join(costly)})"] if costly else []
        if what:
            raise SaccadeError(f"{target} holds {' and '.join(what)}; choose another place, or --force it")

    def lines(self) -> list[str]:
        """Return what was lost and how to have it again, nothing where nothing was."""
        parts = {
            "convert": f"converted graphs ({', '.join(self.graphs)})" if self.graphs else "",
            "build": f"built engines ({', '.join(self.engines)})" if self.engines else "",
            "verify": f"{self.verdicts} of parity's and verify's verdicts" if self.verdicts else "",
        }
        lost = {command: what for command, what in parts.items() if what}
        if not lost:
            return []
        return [f"gone with the bundle that was there: {', '.join(lost.values())}; again by 'saccade {' | '.join(lost)}'"]

    def data(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {"graphs": list(self.graphs), "engines": list(self.engines), "verdicts": self.verdicts}


def losses_of(target: Path) -> Losses:
    """Return what an export onto `target` loses; where its manifest cannot be read, what can be told of its engines."""
    if not (target / MANIFEST).is_file():
        return Losses()
    engines = _engines_in(target / ENGINES_FOLDER)
    try:
        manifest = read_bundle(target).manifest
    except SaccadeError:
        return Losses(engines=engines)
    graphs = {variant for variants in manifest.graphs.values() for variant in variants} - {"fp32"}
    verdicts = [each for each in manifest.parity if "checkpoint_sha256" in each]  # the export's own says none
    return Losses(tuple(sorted(graphs)), engines, len(verdicts))


def _engines_in(folder: Path) -> tuple[str, ...]:
    """Return what the receipts of built engines say; without one that can be read no run takes an engine: it is no loss."""
    found = set()
    for each in folder.glob("[!.]*"):
        with contextlib.suppress(SaccadeError):
            receipt = store.read_receipt(each)
            found.add(f"{receipt.engine}-{receipt.precision}")
    return tuple(sorted(found))


def check_target(target: Path) -> None:
    """Refuse to write over anything but a bundle: what else lies in its folder would be lost with it."""
    if not target.exists():
        return
    held = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    if held and MANIFEST not in held:
        raise SaccadeError(f"{target} exists and is not a bundle; choose another place or remove it")
    foreign = sorted(name for name in held - _bundle_names(target) if not name.startswith(atomic.PENDING_PREFIX))
    if foreign:
        raise SaccadeError(f"{target} also holds {foreign[0]!r}, which is no part of a bundle; move it away first")


def _bundle_names(folder: Path) -> set[str]:
    """Return the names that a bundle's folder may hold: those its manifest names, where that can be read."""
    names = {MANIFEST, ENGINES_FOLDER, "positions.npy", "golden.npz", "selector.onnx", "extractor.onnx", "backbone.onnx"}
    with contextlib.suppress(SaccadeError):
        manifest = read_bundle(folder).manifest
        names |= {graph.file for variants in manifest.graphs.values() for graph in variants.values()}
    return names
