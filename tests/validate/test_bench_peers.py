"""Peers run for real and run the same model; what they cannot do is one line before anything starts."""
from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from saccade.bundle import read_bundle
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.export.checkpoint import read_checkpoint
from saccade.export.reference import Reference
from saccade.validate import bench_plan, bench_plots, bench_results, bench_table, bench_torch
from saccade.validate.bench_one_graph import _onnxruntime, normalise, open_one_graph
from saccade.validate.bench_plan import ONE_GRAPH, PEERS, Side, images_of, pairs_of, plan_from

Bundles = Callable[[str], Path]
QUICK = ["eager", "eager-bf16", "autocast-bf16", "one-graph", "full-backbone"]


@pytest.fixture(scope="module")
def outputs(small_bundle: Bundles, small_checkpoint: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the JSON, the Markdown and the plots of one run with all peers but torch.compile."""
    folder = tmp_path_factory.mktemp("peers")
    command = ["bench", str(small_bundle("dinov2")), "--engine", "openvino", "onnxruntime", "--k", "4", "8"]
    command += ["--checkpoint", str(small_checkpoint("dinov2")), "--peers", *QUICK, "--roof"]
    command += ["--rounds", "1", "--frames", "2", "--threads", "1", "-o", str(folder / "bench.json")]
    assert main([*command, "--markdown", str(folder / "bench.md"), "--plots", str(folder / "plots")]) == 0
    return folder


@pytest.fixture(scope="module")
def data(outputs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outputs / "bench.json").read_text())
    return found


def test_every_peer_runs_beside_the_chain(data: dict[str, Any]) -> None:
    found = {(side["kind"], side["engine"], side["precision"], side["k"]) for side in data["sides"]}
    assert {
        ("pytorch", "pytorch-eager", "fp32", 4), ("pytorch", "pytorch-eager", "bf16", 8),
        ("pytorch", "pytorch-autocast", "bf16", 4), ("one-graph", "onnxruntime", "fp32", 8),
        ("one-graph", "openvino", "fp32", 4), ("chain", "openvino", "fp32", 8), ("chain", "onnxruntime", "fp32", 4),
        ("full-backbone", "openvino", "fp32", 81), ("full-backbone", "onnxruntime", "fp32", 81),
    } <= found  # fmt: skip
    assert len([side for side in data["sides"] if side["kind"] == "full-backbone"]) == 2  # not one for each k


def test_ratios_and_shares_stand_beside_the_sides_that_have_them(data: dict[str, Any]) -> None:
    for side in data["sides"]:
        assert ("of_pytorch_eager" in side) == (side["kind"] != "full-backbone")
        assert ("of_full_backbone" in side) == (side["kind"] in ("chain", "full-backbone"))
        assert ("parity" in side) == (side["kind"] == "chain")
        if side["kind"] == "chain":
            assert side["networks"].keys() == {"selector", "extractor"}
            for network in side["networks"].values():
                assert network.keys() == {"gflop", "gflop_per_s", "of_cold_roof", "of_hot_roof"}
            assert side["parity"] < 1e-9
        if side["kind"] == "one-graph":
            assert list(side["stage_ms"]) == ["normalise", "network"]
    assert [(roof["precision"], roof["k"]) for roof in data["roofs"]] == [("fp32", 4), ("fp32", 8)]
    assert all(list(roof["gflop_per_s"]) == ["selector", "extractor", "hot"] for roof in data["roofs"])


def test_the_page_has_a_row_for_every_side_and_says_how_it_was_measured(data: dict[str, Any], outputs: Path) -> None:
    page = (outputs / "bench.md").read_text()
    for side in data["sides"]:
        assert f"| {side['name']} |" in page
    for words in ("Threads: 1 for every side", "pinning: none", "5 frames of warm-up", "## Stages", "## Roofs", "cosine"):
        assert words in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[: len(data["sides"])]} == {tables[0].count("|")}
    assert page == bench_table.markdown(data)


def test_plots_are_pictures_in_both_formats(outputs: Path) -> None:
    names = sorted(path.name for path in (outputs / "plots").iterdir())
    assert names == ["latency.png", "latency.svg", "parity.png", "parity.svg"]
    for name in names:
        content = (outputs / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_the_latency_plot_has_titles_units_and_a_line_for_every_engine(data: dict[str, Any]) -> None:
    figure = bench_plots.latency_figure(data)
    (panel,) = figure.axes
    assert panel.get_title() == "126 x 126 px, batch 1"
    assert "ms per call" in panel.get_ylabel()
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "pytorch-eager fp32"
    assert {"openvino fp32", "onnxruntime fp32 one graph", "openvino fp32 full backbone"} <= set(labels)
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0)], [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]),
        ([(1.0, 5.0), (1.0, 4.0)], [(1.0, 4.0)]),
        ([(2.0, 2.0)], [(2.0, 2.0)]),
        ([], []),
    ],
    ids=["mixed", "same distance", "one", "none"],
)
def test_the_pareto_front_holds_what_nothing_beats(points: list[Any], front: list[Any]) -> None:
    assert bench_plots.pareto(points) == front


# ---- the one graph


@pytest.mark.parametrize("kind", ["dinov2", "classify", "segment"])
@pytest.mark.parametrize("size", [126, 70])
def test_the_one_graph_is_the_reference(kind: str, size: int, small_checkpoint: Bundles) -> None:
    checkpoint = read_checkpoint(small_checkpoint(kind))
    task = "features" if kind == "dinov2" else kind
    side = Side("s", "", "onnxruntime", "fp32", None, (size, size), 6, 2, 1)
    images = images_of(side)
    truth = Reference(checkpoint, task)(images, 6)
    module = bench_torch.OneGraph(checkpoint, task, (size // 14, size // 14), 6)
    image = torch.from_numpy(normalise(images, read_contract()))
    with torch.no_grad():
        *pooled, tokens = module(image)
    np.testing.assert_allclose(tokens.numpy(), truth.tokens, atol=2e-4)
    if pooled:
        np.testing.assert_allclose(pooled[0].numpy(), truth.pooled, atol=2e-4)


def read_contract() -> Any:
    from saccade.export.reference import IMAGENET

    return IMAGENET


def test_the_exported_one_graph_computes_what_its_module_does(
    small_bundle: Bundles, small_checkpoint: Bundles, tmp_path: Path
) -> None:
    path, kept = tmp_path / "one.onnx", 5
    side = Side(
        "s", str(small_bundle("dinov2")), "onnxruntime", "fp32", None, (70, 98), kept, 1, 1, str(small_checkpoint("dinov2")),
        ONE_GRAPH, str(path),
    )  # fmt: skip
    bench_torch.export_one_graph(side, path)
    cls, tokens = _onnxruntime(side)[0](normalise(images_of(side), read_contract()))  # type: ignore[misc]
    truth = Reference(read_checkpoint(small_checkpoint("dinov2")), "features")(images_of(side), kept)
    np.testing.assert_allclose(cls, truth.pooled, atol=2e-4)
    np.testing.assert_allclose(tokens, truth.tokens, atol=2e-4)
    for engine in ("onnxruntime", "openvino"):
        with open_one_graph(msgspec.structs.replace(side, engine=engine)) as (frame, versions, _):
            times = frame()
        assert times["frame"] >= times["network"] + times["normalise"] - 1e-6
        assert list(versions) == [engine]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_one_graph_that_cannot_be_opened_is_one_line(engine: str, small_bundle: Bundles, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    bundle, graph = str(small_bundle("dinov2")), str(tmp_path / "bad.onnx")
    side = Side("s", bundle, engine, "fp32", None, (70, 70), 5, 1, 1, None, ONE_GRAPH, graph)
    with pytest.raises(SaccadeError, match=r"the one graph: .*leave one-graph out of --peers"), open_one_graph(side):
        pass


# ---- torch.compile


def test_torch_compile_takes_lookwhere_as_one_graph(
    small_bundle: Bundles, small_checkpoint: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, and run by torch's operators: compiling three blocks to C++ takes most of a minute.

    test_bench_backbone has one block compiled, which is of the same modules.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, fullgraph=True, backend="aot_eager"))
    bundle, checkpoint = str(small_bundle("dinov2")), str(small_checkpoint("dinov2"))
    side = Side("s", bundle, bench_plan.COMPILE, "fp32", None, (70, 70), 5, 1, 1, checkpoint, bench_plan.PYTORCH)
    with bench_torch.open_pytorch(side) as (frame, versions, _):
        assert frame()["frame"] > 0
        assert versions == {"torch": torch.__version__}


def test_a_compiler_that_fails_is_one_line() -> None:
    def frame() -> dict[str, float]:
        raise RuntimeError("no g++\nand a long story")

    with pytest.raises(SaccadeError, match=r"torch.compile does not work here \(RuntimeError: no g\+\+\); install a C\+\+"):
        bench_torch._compile(frame)


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--side", "openvino:fp32", "--precision", "bf16"], "give it alone, without --engine and --precision"),
        (["--side", "openvino"], "--side 'openvino' is no ENGINE:PRECISION; engines are openvino, onnxruntime"),
        (["--side", "tvm:fp32"], "--side 'tvm:fp32' is no ENGINE:PRECISION"),
        (["--side", "onnxruntime:bf16"], "on a GPU, not bf16"),
        (["--side", "openvino:fp32", "onnxruntime:fp16"], "and fp32, fp16 on a GPU, not fp16 on the CPU"),
        (["--side", "openvino:fp8"], "openvino offers fp32, bf16, fp16, int8, not fp8"),
        (["--peers", "compile"], "--peers compile runs the checkpoint itself; give --checkpoint too"),
        (["--peers", "one-graph"], "--peers one-graph runs the checkpoint itself; give --checkpoint too"),
        (["--roof", "--engine", "tensorrt"], "--roof measures the CPU, and no side runs on it; leave it out"),
        (["--markdown", "out.txt"], "--markdown out.txt: it is written as .md; end the name so"),
        (["--plots", "{bundle}/plots"], "that is inside a bundle; choose a place outside"),
        (["--plots", "no-such-folder/plots"], "cannot write no-such-folder/plots: its folder does not exist"),
        (["--plots", __file__], f"cannot write {__file__}: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_before_anything_starts(
    arguments: list[str],
    message: str,
    small_bundle: Bundles,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr("saccade.validate.bench.subprocess.Popen", start)
    bundle = str(small_bundle("dinov2"))
    assert main(["bench", bundle, *(argument.format(bundle=bundle) for argument in arguments)]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "building" not in said


def test_missing_matplotlib_is_one_line_before_anything_starts(
    small_bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", str(small_bundle("dinov2")), "--plots", str(tmp_path / "plots")]) == 1
    assert re.search(r"plots need matplotlib .*; pip install '\.\[bench\]' in the clone", capsys.readouterr().err)


def test_missing_torch_is_one_line_for_a_peer_that_needs_it(
    small_bundle: Bundles, small_checkpoint: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    options: dict[str, Any] = {"sizes": None, "ks": None, "batches": [1], "device": None, "threads": 1}
    with pytest.raises(SaccadeError, match=r"--peers eager needs torch; pip install '\.\[export\]' in the clone"):
        plan_from(
            read_bundle(small_bundle("dinov2")), [("openvino", "fp32")], checkpoint=small_checkpoint("dinov2"), **options
        )


def test_the_help_names_every_peer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and text in said for name, text in PEERS.items())


def test_sides_are_products_or_exact_pairs() -> None:
    assert pairs_of(None, None, None) == [("openvino", "fp32")]
    assert pairs_of(["openvino", "onnxruntime"], ["fp32", "int8"], None) == [
        ("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")
    ]  # fmt: skip
    assert pairs_of(None, None, ["openvino:bf16", "onnxruntime:fp32", "openvino:bf16"]) == [
        ("openvino", "bf16"), ("onnxruntime", "fp32")
    ]  # fmt: skip


def test_the_ratio_to_bf16_is_to_the_faster_of_both() -> None:
    def result(kind: str, engine: str, precision: str, p50: float) -> dict[str, Any]:
        return {
            "kind": kind, "engine": engine, "precision": precision, "size": [70, 70], "k": 5, "batch": 1,
            "frame_ms": {"p50": p50},
        }  # fmt: skip

    results = [
        result("pytorch", bench_plan.EAGER, "bf16", 30.0),
        result("pytorch", bench_plan.AUTOCAST, "bf16", 20.0),
        result("chain", "openvino", "bf16", 5.0),
    ]
    bench_results._add_ratios(results)
    assert [each["of_pytorch_bf16"] for each in results] == [1.5, 1.0, 0.25]
    assert all("of_pytorch_eager" not in each for each in results)
