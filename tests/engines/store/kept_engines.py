"""What the tests of the store share: requests, and how engines on disk are made, listed and changed."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

import saccade
from saccade import Bundle, read_bundle
from saccade.bundle import sha256_of_file, write_manifest
from saccade.engines import store
from saccade.engines.engine import EngineRequest
from saccade.engines.store import RECEIPT

OPENVINO = EngineRequest(engine="openvino", device="cpu")
ONNXRUNTIME = EngineRequest(engine="onnxruntime", device="cpu")
STATIC = EngineRequest(engine="openvino", device="cpu", static_k=9)
BOTH = pytest.mark.parametrize("request_", [OPENVINO, ONNXRUNTIME], ids=["openvino", "onnxruntime"])


def quiet(line: str) -> None:
    """Take a note or a phase."""


def ensure(bundle: Bundle, request: EngineRequest, note: Callable[[str], None] = quiet, **options: bool) -> Path:
    return store.ensure(bundle, request, quiet, note, **options)[0]


def load(bundle: Bundle, **options: bool) -> saccade.Pipeline:
    return saccade.load(bundle, note=quiet, **options)


def engines_in(bundle: Bundle) -> list[str]:
    """Return every name in the folder of engines, hidden ones included."""
    return sorted(path.name for path in bundle.engines_path.iterdir()) if bundle.engines_path.exists() else []


def edit_receipt(folder: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads((folder / RECEIPT).read_text())
    edit(content)
    (folder / RECEIPT).write_text(json.dumps(content))


def change_graph(bundle: Bundle, role: str) -> Bundle:
    """Give one graph other bytes, as another export would, and return the bundle read again."""
    graph = bundle.graph(role, "fp32")
    path = bundle.path / graph.file
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, path)
    changed = msgspec.structs.replace(graph, sha256=sha256_of_file(path))
    graphs = bundle.manifest.graphs | {role: bundle.manifest.graphs[role] | {"fp32": changed}}
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    return read_bundle(bundle.path)
