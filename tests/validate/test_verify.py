"""The self-test runs where torch is not, passes what it should, and fails on anything that was altered."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from saccade.bundle import read_bundle, sha256_of_file, write_manifest
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.golden import ReferenceOutput, read_cases, write_cases
from saccade.runtime.loading import load
from saccade.validate.verify import verify

# Runs the command line with the named packages as if they were not installed.
BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from saccade.cli.main import main
sys.exit(main({arguments!r}))
"""
ABSENT = ("torch", "onnx", "onnxscript", "onnx_ir", "polygraphy", "sklearn", "matplotlib")


@pytest.fixture
def copied(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """A small bundle to spoil."""
    return Path(shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))


def verdict(bundle: Path, capsys: pytest.CaptureFixture[str], engine: str = "onnxruntime") -> tuple[int, dict[str, object]]:
    """Return the exit status of `saccade verify` and what it said."""
    status = main(["verify", str(bundle), "--engine", engine, "--json"])
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return status, said


def with_hashes_mended(bundle: Path) -> None:
    """Make the manifest name the files as they are now."""
    manifest = read_bundle(bundle).manifest
    graphs = {
        role: {
            precision: msgspec.structs.replace(graph, sha256=sha256_of_file(bundle / graph.file))
            for precision, graph in variants.items()
        }
        for role, variants in manifest.graphs.items()
    }
    golden = msgspec.structs.replace(manifest.golden, sha256=sha256_of_file(bundle / "golden.npz"))  # type: ignore[type-var]
    write_manifest(bundle, msgspec.structs.replace(manifest, graphs=graphs, golden=golden))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_verify_passes_where_torch_is_not_installed(engine: str, copied: Path) -> None:
    script = BLOCKED.format(absent=ABSENT, arguments=["verify", str(copied), "--engine", engine, "--json"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"] is True
    assert said["images"] == 4
    assert said["engine"] == engine


def test_verify_of_python_says_what_the_command_says(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(copied, engine="onnxruntime", note=lambda line: None) as pipeline:
        result = verify(pipeline)
    status, said = verdict(copied, capsys)
    assert status == 0
    assert result.passed
    assert said["measures"] == result.summary()["measures"]


@pytest.mark.parametrize("name", [name for name in ReferenceOutput.__dataclass_fields__ if name != "indices"])
def test_an_altered_golden_output_fails(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = read_cases(copied / "golden.npz")
    array = getattr(cases[1].output, name)
    array[(-1,) * array.ndim] += 0.01 * np.abs(array).max()
    write_cases(copied / "golden.npz", [cases[0], replace(cases[1], output=replace(cases[1].output, **{name: array}))])
    with_hashes_mended(copied)
    status, said = verdict(copied, capsys)
    assert (status, said["passed"]) == (1, False)


def test_altered_golden_indices_fail(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = read_cases(copied / "golden.npz")
    kept = cases[0].output.indices
    kept[0, -1] = np.setdiff1d(np.arange(81), kept)[0]
    write_cases(copied / "golden.npz", cases)
    with_hashes_mended(copied)
    status, said = verdict(copied, capsys)
    assert (status, said["passed"]) == (1, False)


def test_an_altered_golden_file_is_refused_by_its_hash(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(copied / "golden.npz", read_cases(copied / "golden.npz")[:1])
    status, said = verdict(copied, capsys)
    assert status == 1
    assert "golden.npz was changed or cut short" in str(said["error"])


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_an_altered_graph_fails_although_its_hash_is_mended(
    role: str, engine: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / f"{role}.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weights = onnx.numpy_helper.to_array(largest) * np.float32(1.001)
    largest.CopyFrom(onnx.numpy_helper.from_array(weights, largest.name))
    onnx.save(model, path)
    status, said = verdict(copied, capsys)
    assert status == 1
    assert f"{role}.onnx was changed or cut short" in str(said["error"])
    with_hashes_mended(copied)
    status, said = verdict(copied, capsys, engine)
    assert (status, said["passed"]) == (1, False)


def test_a_position_table_of_another_checkpoint_fails(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, manifest = copied / "positions.npy", read_bundle(copied).manifest
    np.save(path, np.load(path)[::-1])
    entry = msgspec.structs.replace(manifest.positions, sha256=sha256_of_file(path))
    write_manifest(copied, msgspec.structs.replace(manifest, positions=entry))
    status, said = verdict(copied, capsys)
    assert (status, said["passed"]) == (1, False)


def test_other_image_statistics_fail(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_bundle(copied).manifest
    image = msgspec.structs.replace(manifest.image, mean=(0.5, 0.5, 0.5))
    write_manifest(copied, msgspec.structs.replace(manifest, image=image))
    status, said = verdict(copied, capsys)
    assert (status, said["passed"]) == (1, False)


def test_a_bundle_without_golden_outputs_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(copied, msgspec.structs.replace(read_bundle(copied).manifest, golden=None))
    status, said = verdict(copied, capsys)
    assert status == 1
    assert "has no golden.npz to verify against; export the bundle again" in str(said["error"])
    with load(copied, engine="onnxruntime", note=lambda line: None) as pipeline, pytest.raises(SaccadeError):
        verify(pipeline)
