"""The command convert on plain backbones: what it adds, that engines run it, and how it refuses."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import saccade
from saccade import read_bundle
from saccade.bundle import sha256_of_file
from saccade.cli.main import main
from saccade.validate.parity import cosine_distances
from saccade.validate.tolerances import BACKBONE_TOLERANCES

VARIANTS = ("fp16", "bf16", "int8", "int8-fp16", "fp8")


@pytest.fixture
def copy(small_backbone: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the small backbone, without engines."""
    return shutil.copytree(small_backbone("neco"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_precision_is_one_graph_beside_the_fp32_one(
    converted_backbone: Path, small_backbone: Callable[[str], Path]
) -> None:
    bundle, before = read_bundle(converted_backbone), read_bundle(small_backbone("neco"))
    graphs = bundle.manifest.graphs["backbone"]
    assert list(graphs) == ["fp32", *VARIANTS]
    for variant in VARIANTS:
        graph = graphs[variant]
        assert (graph.file, graph.sha256) == (f"backbone.{variant}.onnx", sha256_of_file(converted_backbone / graph.file))
        assert (graph.inputs, graph.outputs) == (graphs["fp32"].inputs, graphs["fp32"].outputs)
    assert graphs["fp32"] == before.graph("backbone", "fp32")


def test_the_bundle_keeps_how_each_variant_was_made_and_judged(converted_backbone: Path) -> None:
    made = read_bundle(converted_backbone).manifest.provenance["variants"]
    assert made.keys() == set(VARIANTS)
    assert made["int8"]["calibration"]["methods"] == {"backbone": "minmax"}
    assert (made["int8"]["calibration"]["images"], made["int8"]["calibration"]["held_out"]) == (14, 2)
    for variant in VARIANTS:
        judged = made[variant]["judged"][variant]
        assert judged["images"] == (5 if variant in ("int8", "int8-fp16", "fp8") else 3)  # golden ones, and held out
        assert {"cls", "patches", "patches_p1", "cls_last4", "attention"} <= judged["measures"].keys()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_runs_with_every_output_near_fp32_at_another_size(
    engine: str, converted_backbone: Path, photographs: list[np.ndarray]
) -> None:
    found = []
    for precision in ("fp32", "int8"):
        with saccade.load(converted_backbone, engine=engine, precision=precision, note=lambda line: None) as pipeline:
            found.append(pipeline(photographs, size=(84, 168)).arrays())
    exact, rounded = found
    assert list(rounded) == list(exact) == ["cls", "tokens", "attention", "cls_last4"]
    for name, array in exact.items():
        distance = cosine_distances(rounded[name], array)
        assert 1e-6 < distance.max() < 1e-2, name  # computed, and not passed through


def test_what_does_not_hold_is_refused_and_the_blocks_to_blame_are_named(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = dict.fromkeys(msgspec.structs.asdict(BACKBONE_TOLERANCES["fp16"]), 1e-30)
    monkeypatch.setitem(BACKBONE_TOLERANCES, "fp16", type(BACKBONE_TOLERANCES["fp16"])(**none))
    before = content(copy)
    assert main(["convert", str(copy), "--precision", "fp16", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert content(copy) == before
    assert sorted(trial["name"] for trial in data["sensitivity"]) == [f"block {index}" for index in range(4)]
    errors = [trial["measures"]["patches_p1"] for trial in data["sensitivity"]]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0]


def test_a_bundle_without_golden_outputs_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | {"golden": None}))
    assert main(["convert", str(copy), "--precision", "fp16"]) == 1
    assert "has no golden.npz to verify against; export the bundle again" in capsys.readouterr().err


def test_it_works_without_torch(copy: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        f"from saccade.cli.main import main\nsys.exit(main(['convert', {str(copy)!r}, '--precision', 'bf16']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{copy}: bf16 added")
