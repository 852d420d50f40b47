"""The command evaluate as a function, and a bundle whose int8 graph is damaged."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from saccade.bundle import read_bundle, sha256_of_file, write_manifest
from saccade.cli.main import main

Evaluated = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluated(capsys: pytest.CaptureFixture[str]) -> Evaluated:
    """Return a function that runs `saccade evaluate` and returns its JSON; `code` is the exit code it must have."""

    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()  # what making a bundle has said
        assert main(["evaluate", *map(str, arguments), "--json"]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a backbone's bundle and adds an int8 graph: the fp32 one, blind.

    Its patch embedding is lost, so that every image gives the same features. It is int8 in name alone: OpenVINO's audit
    refuses it, since nothing in it runs in int8, so it is for ONNX Runtime.
    """

    def make(bundle: Path) -> Path:
        import onnx
        from onnx import numpy_helper

        folder = tmp_path / "damaged"
        shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("engines"))
        manifest = read_bundle(folder).manifest
        entry = manifest.graphs["backbone"]["fp32"]
        model = onnx.load(folder / entry.file)
        (embedding,) = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        embedding.CopyFrom(numpy_helper.from_array(np.zeros(embedding.dims, np.float32), embedding.name))
        onnx.save(model, folder / "backbone.int8.onnx")
        sha256 = sha256_of_file(folder / "backbone.int8.onnx")
        variant = msgspec.structs.replace(entry, file="backbone.int8.onnx", sha256=sha256)
        graphs = {"backbone": {**manifest.graphs["backbone"], "int8": variant}}
        write_manifest(folder, msgspec.structs.replace(manifest, graphs=graphs))
        return folder

    return make
