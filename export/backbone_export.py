"""A backbone checkpoint -> its ONNX graph, and its bundle folder. Checking that is the caller's next step."""
from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from saccade.bundle import (
    FORMAT_VERSION,
    BackboneModel,
    DataFile,
    Defaults,
    GraphFile,
    Manifest,
    sha256_of_file,
    write_manifest,
)
from saccade.contract import GraphContract, backbone_contract, extras_of
from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone
from saccade.export.bundle_export import tool_versions
from saccade.export.onnx_export import export_graph
from saccade.export.reference import image_contract


def write_backbone_bundle(
    checkpoint: BackboneCheckpoint, size: int | None, folder: Path, progress: Callable[[str], None]
) -> Manifest:
    """Write graph, positions and bundle.json into an empty folder and return the manifest.

    `size` is the default pixels of a run, by default those of the position table.
    """
    model = checkpoint.model
    defaults = Defaults(size=_default_size(model, size))
    progress("backbone: trace and write")
    path = folder / "backbone.onnx"
    contract = export_backbone(checkpoint, path, extras_of(model))
    manifest = Manifest(
        format=FORMAT_VERSION,
        model=model,  # type: ignore[arg-type]  # one of BACKBONES
        task="features",
        defaults=defaults,
        image=image_contract(),
        positions=_write_positions(checkpoint, folder / "positions.npy"),
        graphs={"backbone": {"fp32": GraphFile(path.name, sha256_of_file(path), contract.inputs, contract.outputs)}},
        provenance={
            "checkpoint_sha256": checkpoint.sha256,
            "checkpoint_layout": checkpoint.describe(),
            "tools": tool_versions(),
        },
    )
    write_manifest(folder, manifest)
    return manifest


def export_backbone(checkpoint: BackboneCheckpoint, path: Path, extras: Sequence[str] = ()) -> GraphContract:
    """Write the graph to `path` and return its boundary."""
    model = checkpoint.model
    contract = backbone_contract(model, extras)
    facts = {"saccade": str(FORMAT_VERSION), "model": msgspec.json.encode(model, order="sorted").decode()}
    export_graph(load_backbone(checkpoint, extras), contract, facts, path, example_sizes(model))
    return contract


def example_sizes(model: BackboneModel) -> dict[str, int]:
    """Return the sizes that the graph is traced with: no two alike, so that none is taken for another."""
    rows, columns = 3, 7
    return {"batch": 2, "height": rows * model.patch, "width": columns * model.patch, "rows": 1 + rows * columns}


def _default_size(model: BackboneModel, size: int | None) -> tuple[int, int]:
    if size is None:
        return model.base_grid[0] * model.patch, model.base_grid[1] * model.patch
    if size < model.patch or size % model.patch:
        near = max(model.patch, round(size / model.patch) * model.patch)
        raise SaccadeError(f"--size {size} is not a multiple of the {model.patch} px patch; the nearest is {near}")
    return size, size


def _write_positions(checkpoint: BackboneCheckpoint, path: Path) -> DataFile:
    buffer = io.BytesIO()  # NumPy itself reports a full disk without saying that it is full
    np.save(buffer, np.ascontiguousarray(checkpoint.positions.numpy()))
    path.write_bytes(buffer.getvalue())
    return DataFile(path.name, sha256_of_file(path))
