"""A backbone checkpoint -> its ONNX graph."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from saccade.bundle import FORMAT_VERSION, BackboneModel
from saccade.contract import GraphContract, backbone_contract
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone
from saccade.export.onnx_export import export_graph


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
