"""Checkpoint -> bundle folder: both graphs, the position table and the manifest. Checking it is the caller's next step."""
from __future__ import annotations

import io
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from saccade._version import VERSION
from saccade.bundle import FORMAT_VERSION, DataFile, Defaults, GraphFile, Manifest, Variant, sha256_of_file, write_manifest
from saccade.contract import GraphContract, extractor_contract, selector_contract
from saccade.errors import SaccadeError
from saccade.export.checkpoint import Checkpoint, load_modules
from saccade.export.onnx_export import export_graph
from saccade.export.reference import image_contract

DEFAULT_K_RATIO = 0.1  # upstream's README
TOOLS = ("torch", "onnx", "onnxscript", "numpy")


def resolve_defaults(
    checkpoint: Checkpoint, size: int | None, k: int | None, k_ratio: float | None
) -> Defaults:
    """Return the bundle's defaults for `run`, checked against the model: an explicit k stays k, a ratio stays a ratio."""
    patch, (rows, columns) = checkpoint.model.patch, checkpoint.model.base_grid
    pixels = (rows * patch, columns * patch) if size is None else (size, size)
    if size is not None and (size < patch or size % patch):
        near = max(patch, round(size / patch) * patch)
        raise SaccadeError(f"--size {size} is not a multiple of the {patch} px patch; the nearest is {near}")
    cells = pixels[0] * pixels[1] // patch**2
    if k is not None:
        if not 1 <= k <= cells:
            raise SaccadeError(f"--k {k} is not to be had: {pixels[0]} px has {cells} patches, so give 1 to {cells}")
        return Defaults(size=pixels, k=k)
    ratio = DEFAULT_K_RATIO if k_ratio is None else k_ratio
    if not 0 < ratio <= 1 or int(ratio * cells) < 1:
        raise SaccadeError(f"--k-ratio {ratio} keeps no patch or more than all of {cells}; give more than 0, at most 1")
    return Defaults(size=pixels, k_ratio=ratio)


def write_bundle(
    checkpoint: Checkpoint, task: str, defaults: Defaults, folder: Path, progress: Callable[[str], None]
) -> Manifest:
    """Write graphs, positions and bundle.json into an empty folder and return the manifest."""
    model = checkpoint.model if task != "features" else msgspec.structs.replace(checkpoint.model, classes=0)
    selector, extractor = load_modules(checkpoint, task)
    facts = {"saccade": str(FORMAT_VERSION), "task": task, "model": msgspec.json.encode(model, order="sorted").decode()}
    graphs = {}
    for module, contract in ((selector, selector_contract(model)), (extractor, extractor_contract(model, task))):
        progress(f"{contract.role}: trace and write")
        path = folder / f"{contract.role}.onnx"
        export_graph(module, contract, facts, path)
        graphs[contract.role] = _graph_files(contract, path)
    manifest = Manifest(
        format=FORMAT_VERSION,
        model=model,
        task=task,  # type: ignore[arg-type]  # resolve_task has checked it
        defaults=defaults,
        image=image_contract(),
        positions=_write_positions(checkpoint, folder / "positions.npy"),
        graphs=graphs,
        provenance=_provenance(checkpoint),
    )
    write_manifest(folder, manifest)
    return manifest


def _graph_files(contract: GraphContract, path: Path) -> dict[Variant, GraphFile]:
    return {"fp32": GraphFile(path.name, sha256_of_file(path), contract.inputs, contract.outputs)}


def _write_positions(checkpoint: Checkpoint, path: Path) -> DataFile:
    buffer = io.BytesIO()  # NumPy itself reports a full disk without saying that it is full
    np.save(buffer, np.ascontiguousarray(checkpoint.base_positions.numpy()))
    path.write_bytes(buffer.getvalue())
    return DataFile(path.name, sha256_of_file(path))


def _provenance(checkpoint: Checkpoint) -> dict[str, object]:
    """Say where the bundle comes from; the checkpoint's path is left out, since bundles travel."""
    facts = {"checkpoint_sha256": checkpoint.sha256, "checkpoint_layout": checkpoint.layout}
    return facts | {"tools": tool_versions()}


def tool_versions() -> dict[str, str]:
    """Return the versions of what writes a bundle."""
    return {"saccade": VERSION, **{name: version(name) for name in TOOLS}}
