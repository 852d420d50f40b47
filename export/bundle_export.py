"""Checkpoint -> bundle folder: both graphs, the position table and the manifest. Checking it is the caller's next step."""
from __future__ import annotations

import io
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from torch import Tensor

from saccade._version import VERSION
from saccade.bundle import (
    FORMAT_VERSION,
    BackboneModel,
    DataFile,
    Defaults,
    GraphFile,
    Manifest,
    Model,
    Variant,
    sha256_of_file,
    write_manifest,
)
from saccade.contract import GraphContract, extractor_contract, selector_contract
from saccade.errors import SaccadeError
from saccade.export.checkpoint import Checkpoint, load_modules
from saccade.export.onnx_export import export_graph
from saccade.export.reference import IMAGENET

DEFAULT_K_RATIO = 0.1  # upstream's README
TOOLS = ("torch", "onnx", "onnxscript", "numpy")


def resolve_defaults(
    checkpoint: Checkpoint, size: int | None, k: int | None, k_ratio: float | None
) -> Defaults:
    """Return the bundle's defaults for `run`, checked against the model: an explicit k stays k, a ratio stays a ratio."""
    pixels = default_size(checkpoint.model, size)
    cells = pixels[0] * pixels[1] // checkpoint.model.patch**2
    if k is not None:
        if not 1 <= k <= cells:
            raise SaccadeError(f"--k {k} is not to be had: {pixels[0]} px has {cells} patches, so give 1 to {cells}")
        return Defaults(size=pixels, k=k)
    ratio = DEFAULT_K_RATIO if k_ratio is None else k_ratio
    if not 0 < ratio <= 1 or int(ratio * cells) < 1:
        raise SaccadeError(f"--k-ratio {ratio} keeps no patch or more than all of {cells}; give more than 0, at most 1")
    return Defaults(size=pixels, k_ratio=ratio)


def default_size(model: Model | BackboneModel, size: int | None) -> tuple[int, int]:
    """Return a bundle's default pixels as (height, width): `size` if the patch divides it, else the position table's."""
    patch, (rows, columns) = model.patch, model.base_grid
    if size is None:
        return rows * patch, columns * patch
    if size < patch or size % patch:
        near = max(patch, round(size / patch) * patch)
        raise SaccadeError(f"--size {size} is not a multiple of the {patch} px patch; the nearest is {near}")
    return size, size


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
        image=IMAGENET,
        positions=write_positions(checkpoint.base_positions, folder / "positions.npy"),
        graphs=graphs,
        provenance=_provenance(checkpoint),
    )
    write_manifest(folder, manifest)
    return manifest


def _graph_files(contract: GraphContract, path: Path) -> dict[Variant, GraphFile]:
    return {"fp32": GraphFile(path.name, sha256_of_file(path), contract.inputs, contract.outputs)}


def write_positions(table: Tensor, path: Path) -> DataFile:
    """Write a position table and return its entry."""
    buffer = io.BytesIO()  # NumPy itself reports a full disk without saying that it is full
    np.save(buffer, np.ascontiguousarray(table.numpy()))
    path.write_bytes(buffer.getvalue())
    return DataFile(path.name, sha256_of_file(path))


def _provenance(checkpoint: Checkpoint) -> dict[str, object]:
    """Say where the bundle comes from; the checkpoint's path is left out, since bundles travel."""
    facts = {"checkpoint_sha256": checkpoint.sha256, "checkpoint_layout": checkpoint.layout}
    return facts | {"tools": tool_versions()}


def tool_versions() -> dict[str, str]:
    """Return the versions of what writes a bundle."""
    return {"saccade": VERSION, **{name: version(name) for name in TOOLS}}
