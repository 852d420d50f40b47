"""OpenVINO engines: what they are compiled for, what they compute, and what they refuse."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import saccade
from saccade import Bundle, SaccadeError, read_bundle
from saccade.engines.engine import Built, Engine, EngineRequest
from saccade.engines.openvino import KERNEL_TYPES, OpenVINOBackend

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]' in the clone")

BACKEND = OpenVINOBackend()
REQUEST = EngineRequest(engine="openvino", device="cpu")
DIM = 128
Feeds = Callable[..., dict[str, np.ndarray]]


def quiet(phase: str) -> None:
    """Take a phase."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def built(bundle: Bundle, folder: Path) -> Built:
    return BACKEND.build(bundle, REQUEST, folder, quiet)


@pytest.fixture(scope="module")
def engines(bundle: Bundle, folder: Path, built: Built) -> dict[str, Engine]:
    return BACKEND.load(bundle, REQUEST, folder, built)


ROLES = pytest.mark.parametrize("role", ["selector", "extractor"])


# ---- building


def test_a_precision_that_no_product_runs_in_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KERNEL_TYPES, "fp32", ("f64",))
    with pytest.raises(SaccadeError, match=r"openvino runs the selector in f32 here, not in fp32; use another --precision"):
        BACKEND.build(bundle, REQUEST, tmp_path, quiet)


def test_capabilities_name_the_cpu_and_fp32() -> None:
    found = BACKEND.capabilities()
    assert found.can_build
    assert found.can_run
    assert found.devices == ("cpu",)
    assert "fp32" in found.precisions
    assert found.missing is None
    assert found.version in openvino.__version__


def test_conditions_name_version_cpu_and_hint() -> None:
    conditions = BACKEND.conditions(REQUEST)
    assert conditions["version"] == openvino.__version__
    assert conditions["precision_hint"] == "f32"
    assert conditions["cpu"] == openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    assert "FP32" in conditions["cpu_capabilities"].split()


def test_a_build_leaves_one_blob_for_each_graph(built: Built, folder: Path) -> None:
    assert built.files == {"selector": "selector.blob", "extractor": "extractor.blob"}
    assert sorted(path.name for path in folder.iterdir()) == ["extractor.blob", "selector.blob"]
    assert built.realised.startswith("INFERENCE_PRECISION_HINT f32 on the fp32 graph; matrix products: ")
    # One block and two, of four products each; with them the patch embedding and the head's two, or the embedding alone.
    assert built.realised.endswith(": selector 7 f32; extractor 9 f32")


def test_a_build_says_what_it_does(bundle: Bundle, tmp_path: Path) -> None:
    phases: list[str] = []
    BACKEND.build(bundle, REQUEST, tmp_path, phases.append)
    assert phases == ["selector: compile", "selector: write", "extractor: compile", "extractor: write"]


@ROLES
def test_fp32_is_asked_for_and_realised(engines: dict[str, Engine], role: str) -> None:
    """Without the hint a CPU with bf16 instructions computes fp32 graphs in bf16."""
    compiled = engines[role]._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_threads_are_taken_at_load(bundle: Bundle, folder: Path, built: Built) -> None:
    loaded = BACKEND.load(bundle, msgspec.structs.replace(REQUEST, threads=1), folder, built)
    for engine in loaded.values():
        assert engine._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_graph_that_is_no_onnx_is_refused_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    (copy / "selector.onnx").write_bytes(b"not a graph")
    with pytest.raises(SaccadeError, match=r"openvino cannot compile .*selector\.onnx: ") as error:
        BACKEND.build(read_bundle(copy), REQUEST, tmp_path, quiet)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["0", "gpu"])
def test_another_device_is_refused(device: str) -> None:
    with pytest.raises(SaccadeError, match=f"openvino runs on --device cpu here, not '{device}'"):
        BACKEND.conditions(msgspec.structs.replace(REQUEST, device=device))


def test_a_precision_it_does_not_have_is_refused() -> None:
    with pytest.raises(SaccadeError, match=r"openvino offers .*, not fp8"):
        BACKEND.conditions(msgspec.structs.replace(REQUEST, precision="fp8"))


def test_where_it_is_not_installed_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = BACKEND.capabilities()
    assert not found.can_build
    assert not found.can_run
    assert found.missing is not None
    assert "pip install '.[openvino]' in the clone" in found.missing
    with pytest.raises(SaccadeError, match=r"openvino cannot be imported .*; pip install '\.\[openvino\]' in the clone"):
        BACKEND.conditions(REQUEST)


# ---- running


@ROLES
def test_outputs_equal_onnx_runtimes(engines: dict[str, Engine], bundle: Bundle, role: str, feed_of: Feeds) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = bundle.path / bundle.graph(role, "fp32").file
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = feed_of(role)
    expected = dict(zip(engines[role].outputs, session.run(list(engines[role].outputs), feed), strict=True))
    for name, array in engines[role].run(feed).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (1, 300), (3, 7), (9, 2)])
def test_batch_and_k_are_dynamic(engines: dict[str, Engine], batch: int, k: int, feed_of: Feeds) -> None:
    found = engines["extractor"].run(feed_of("extractor", batch, k))
    assert (found["cls"].shape, found["tokens"].shape) == ((batch, DIM), (batch, k, DIM))


@pytest.mark.parametrize(
    "layout",
    [lambda a: a.repeat(2, axis=0)[::2], lambda a: a[::-1].copy()[::-1], np.asfortranarray],
    ids=["every other", "backwards", "fortran"],
)
@ROLES
def test_inputs_need_not_lie_in_one_piece(
    engines: dict[str, Engine], role: str, layout: Callable[[np.ndarray], np.ndarray], feed_of: Feeds
) -> None:
    feed = feed_of(role)
    expected = {name: array.copy() for name, array in engines[role].run(feed).items()}
    for name, array in engines[role].run({name: layout(array) for name, array in feed.items()}).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_inputs_may_be_locked_and_are_not_written_to(engines: dict[str, Engine], feed_of: Feeds) -> None:
    feed = feed_of("extractor")
    kept = {name: array.copy() for name, array in feed.items()}
    for array in feed.values():
        array.setflags(write=False)
    engines["extractor"].run(feed)
    for name, array in feed.items():
        np.testing.assert_array_equal(array, kept[name])


WRONG = {
    "name": (
        lambda feed: {"image": feed["patches"]},
        r"extractor: expected inputs \['patches', 'positions', 'prefix'\], got \['image'\]",
    ),
    "missing": (lambda feed: {"patches": feed["patches"]}, r"expected inputs .* got \['patches'\]"),
    "float64": (
        lambda feed: feed | {"patches": feed["patches"].astype(np.float64)},
        r"extractor: input 'patches' must be float32 \['batch', 'k', 588\], got float64 \[2, 6, 588\]",
    ),
    "byte order": (lambda feed: feed | {"patches": feed["patches"].astype(">f4")}, r"'patches' must be float32 .*, got >f4"),
    "rank": (lambda feed: feed | {"patches": feed["patches"][0]}, r"'patches' must be .*, got float32 \[6, 588\]"),
    "width": (lambda feed: feed | {"patches": feed["patches"][..., 1:]}, r"got float32 \[2, 6, 587\]"),
    "another k": (
        lambda feed: feed | {"positions": feed["positions"][:, 1:]}, r"'positions' must be .*, got float32 \[2, 5, 128\]"
    ),
    "another batch": (lambda feed: feed | {"prefix": feed["prefix"][1:]}, r"'prefix' must be .*, got float32 \[1, 5, 128\]"),
    "empty": (lambda feed: {name: array[:0] for name, array in feed.items()}, r"got float32 \[0, 6, 588\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_inputs_that_do_not_fit_are_refused_by_name(engines: dict[str, Engine], case: str, feed_of: Feeds) -> None:
    change, message = WRONG[case]
    with pytest.raises(SaccadeError, match=message):
        engines["extractor"].run(change(feed_of("extractor")))


def test_an_engine_outlives_its_files(bundle: Bundle, tmp_path: Path, feed_of: Feeds) -> None:
    """The weights are read from the mapped blob: deleting it while it is used must not matter."""
    made = BACKEND.build(bundle, REQUEST, tmp_path, quiet)
    loaded = BACKEND.load(bundle, REQUEST, tmp_path, made)
    before = {name: array.copy() for name, array in loaded["selector"].run(feed_of("selector")).items()}
    for file in made.files.values():
        (tmp_path / file).unlink()
    for name, array in loaded["selector"].run(feed_of("selector", 5)).items():
        assert np.isfinite(array).all(), name
    for name, array in loaded["selector"].run(feed_of("selector")).items():
        np.testing.assert_array_equal(array, before[name])


def test_running_never_writes_to_the_blob(
    bundle: Bundle, folder: Path, built: Built, engines: dict[str, Engine], feed_of: Feeds
) -> None:
    before = [(folder / file).read_bytes() for file in built.files.values()]
    for role, engine in engines.items():
        engine.run(feed_of(role))
    assert [(folder / file).read_bytes() for file in built.files.values()] == before


def test_two_pipelines_do_not_disturb_each_other(bundle: Bundle, photographs: list[np.ndarray]) -> None:
    with saccade.load(bundle, note=quiet) as one, saccade.load(bundle, note=quiet) as other:
        first = one(photographs[0], k=9)
        other(photographs[1], k=20)
        np.testing.assert_array_equal(one(photographs[0], k=9).tokens, first.tokens)


TELLTALE = """
import os, sys
open(os.environ["TOLD"], "a").write(" ".join(sys.argv))
class Telemetry:
    def __getattr__(self, name): return lambda *_, **__: None
    def __init__(self, *_, **__): pass
"""
RUNS = {
    "load": "import saccade; saccade.load('BUNDLE', note=lambda _: None).close()",
    "doctor": "from saccade.cli.main import main; main(['doctor'])",
    "convert": "from saccade.cli.main import main; main(['convert', 'BUNDLE', '--precision', 'bf16'])",
    "roof": "from saccade.validate import roof; roof.product_model(2, [(4, 4)], 'fp32')",
    "afterwards": "from saccade.engines import openvino; openvino.module(); import sys; "
    "assert 'openvino_telemetry' not in sys.modules; import openvino_telemetry",
}


@pytest.mark.parametrize("what", RUNS)
def test_openvino_tells_nobody_that_it_was_imported(what: str, bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    package = tmp_path / "path/openvino_telemetry"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").write_text(TELLTALE)
    (package / "backend/__init__.py").touch()
    (package / "backend/backend_ga4.py").touch()
    path = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "TOLD": str(tmp_path / "told")}
    code = RUNS[what].replace("BUNDLE", str(copy))
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "told").exists() == (what == "afterwards")  # the application's own use of it is its own
