"""A backbone checkpoint -> its ONNX graph, and its bundle folder. Checking that is the caller's next step."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from saccade.bundle import (
    FORMAT_VERSION,
    BackboneModel,
    Defaults,
    GraphFile,
    ImageContract,
    Manifest,
    sha256_of_file,
    write_manifest,
)
from saccade.contract import GraphContract, backbone_contract, extras_of
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone
from saccade.export.bundle_export import default_size, tool_versions, write_positions
from saccade.export.onnx_export import export_graph
from saccade.export.reference import IMAGENET


def write_backbone_bundle(
    checkpoint: BackboneCheckpoint,
    size: int | None,
    folder: Path,
    progress: Callable[[str], None],
    image: ImageContract = IMAGENET,
) -> Manifest:
    """Write graph, positions and bundle.json into an empty folder and return the manifest.

    `size` is the default pixels of a run, by default those of the position table; `image` what the model was trained with.
    """
    model = checkpoint.model
    defaults = Defaults(size=default_size(model, size))
    progress("backbone: trace and write")
    path = folder / "backbone.onnx"
    contract = export_backbone(checkpoint, path, extras_of(model))
    manifest = Manifest(
        format=FORMAT_VERSION,
        model=model,  # type: ignore[arg-type]  # one of BACKBONES
        task="features",
        defaults=defaults,
        image=image,
        positions=write_positions(checkpoint.positions, folder / "positions.npy"),
        graphs={"backbone": {"fp32": GraphFile(path.name, sha256_of_file(path), contract.inputs, contract.outputs)}},
        provenance={
            "checkpoint_sha256": checkpoint.sha256,
            "checkpoint_layout": checkpoint.describe(),
            "checkpoint_key": checkpoint.key,
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
