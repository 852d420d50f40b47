"""Plain backbones on the bench: their sides and peers run, the best batch is marked, and no k is spoken of."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from saccade.bundle import BackboneModel, read_bundle
from saccade.cli.main import main
from saccade.export.anatomy import block_products
from saccade.export.backbone_checkpoint import read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.export.seeded import seeded_weights
from saccade.export.seeded_backbones import BackboneSizes, backbone_shapes
from saccade.validate import bench_plan, bench_plots, bench_results, bench_table, bench_torch, roof, work
from saccade.validate.bench_plan import images_of

Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def outputs(small_backbone: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the JSON, the Markdown and the plots of one run over two sizes and two batches."""
    folder, bundle = tmp_path_factory.mktemp("bench"), small_backbone("neco")
    command = ["bench", str(bundle), "--engine", "openvino", "--size", "84x126", "126", "--batch", "1", "2", "--roof"]
    command += ["--checkpoint", str(bundle.with_suffix(".pt")), "--peers", "eager", "--streams", "1"]
    command += ["--rounds", "1", "--frames", "2", "--threads", "1", "-o", str(folder / "bench.json")]
    assert main([*command, "--markdown", str(folder / "bench.md"), "--plots", str(folder / "plots")]) == 0
    return folder


@pytest.fixture(scope="module")
def data(outputs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outputs / "bench.json").read_text())
    return found


def test_sides_are_timed_by_stage_and_compared_at_their_size_and_batch(data: dict[str, Any]) -> None:
    assert [side["name"] for side in data["sides"][:2]] == [
        "pytorch-eager fp32 84x126 batch=1", "openvino fp32 84x126 batch=1"
    ]  # fmt: skip
    assert len(data["sides"]) == 2 * 2 * 2
    for side in data["sides"]:
        assert side["k"] is None
        assert side["of_pytorch_eager"] > 0
        if side["kind"] == "chain":
            assert list(side["stage_ms"]) == ["decode", "fit", "normalize", "backbone"]
            assert 0 < side["outside_networks_share"] < 1
            assert side["networks"]["backbone"].keys() == {"gflop", "gflop_per_s", "of_cold_roof", "of_hot_roof"}
            assert side["parity"] < 1e-9


def test_the_best_batch_of_each_side_and_size_is_marked(data: dict[str, Any]) -> None:
    marked = [side for side in data["sides"] if side["best_batch"]]
    assert len(marked) == 4
    for best in marked:
        (other,) = (
            side for side in data["sides"]
            if (side["engine"], side["size"]) == (best["engine"], best["size"]) and side["batch"] != best["batch"]
        )  # fmt: skip
        assert best["images_per_s"] >= other["images_per_s"]
        row = next(row for row in bench_table.rows(data) if row[0] == best["name"])
        assert f"{best['images_per_s']:.1f} (best)" in row


def test_no_batch_is_marked_where_there_is_one() -> None:
    alone = {"kind": "chain", "engine": "openvino", "precision": "fp32", "size": [70, 70], "k": None, "batch": 2}
    result: dict[str, Any] = alone | {"static": False, "cls_only": False, "streams": 1, "images_per_s": 5.0}
    results = [result, result | {"size": [84, 84], "batch": 4}]
    bench_results._mark_best_batches(results)
    assert not any("best_batch" in each for each in results)


def test_the_page_speaks_of_the_backbone_and_of_no_k(data: dict[str, Any], outputs: Path) -> None:
    page = (outputs / "bench.md").read_text()
    assert "| precision | shapes | hot | cold, backbone |" in page
    assert "| fp32 | 126x126 batch=2 |" in page
    assert "k=" not in page
    assert "(best)" in page


def test_latency_is_drawn_against_size_and_throughput_against_batch(data: dict[str, Any], outputs: Path) -> None:
    names = sorted(path.name for path in (outputs / "plots").glob("*.png"))
    assert names == ["latency.png", "parity.png", "throughput.png"]
    latency = bench_plots.size_figure(data)
    assert [panel.get_title() for panel in latency.axes] == ["batch 1", "batch 2"]
    assert [tick.get_text() for tick in latency.axes[0].get_xticklabels()] == ["84x126", "126x126"]
    throughput = bench_plots.throughput_figure(data)
    assert [panel.get_title() for panel in throughput.axes] == ["84 x 126 px", "126 x 126 px"]
    labels = [text.get_text() for text in throughput.legends[0].get_texts()]
    assert labels == ["pytorch-eager fp32", "openvino fp32"]
    lines = {line.get_label(): line.get_ydata() for line in throughput.axes[1].get_lines()}
    speeds = {side["batch"]: side["images_per_s"] for side in data["sides"][4:] if side["engine"] == "openvino"}
    np.testing.assert_allclose(lines["openvino fp32"], [speeds[1], speeds[2]])


def plan(bundle: Path, **changes: Any) -> list[bench_plan.Side]:
    asked: dict[str, Any] = {"sizes": None, "ks": None, "batches": [1], "device": None, "threads": 1}
    return bench_plan.plan_from(read_bundle(bundle), [("openvino", "fp32")], **(asked | changes))


def test_a_plan_takes_the_bundles_size_and_every_patch(small_backbone: Bundles) -> None:
    (only,) = plan(small_backbone("neco"))
    assert (only.name, only.size, only.k, only.selects) == ("openvino fp32 126x126 batch=1", (126, 126), 81, False)


@pytest.mark.parametrize("peer", ["eager", "eager-bf16", "autocast-bf16"])
def test_pytorch_peers_run_the_checkpoints_own_model(peer: str, small_backbone: Bundles) -> None:
    checkpoint = small_backbone("neco").with_suffix(".pt")
    side = plan(small_backbone("neco"), checkpoint=checkpoint, peers=[peer], sizes=[(84, 126)], batches=[2])[0]
    truth = BackboneReference(read_backbone(checkpoint, "neco"))(images_of(side))
    seen: list[Any] = []
    step = bench_torch._step

    def remembered(*arguments: Any) -> Any:
        run = step(*arguments)
        return lambda image: seen.append(run(image))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_torch, "_step", remembered)
        with bench_torch.open_pytorch(side) as opened:
            assert opened.frame()["frame"] > 0
    for found, name in zip(seen[0], ("cls", "tokens"), strict=True):
        np.testing.assert_allclose(found.float().numpy(), truth[name], atol=2e-5 if peer == "eager" else 0.2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++, and there is none here")
def test_the_compiled_peer_runs_the_checkpoints_own_model(small_backbone: Bundles, tmp_path: Path) -> None:
    """One block on 12 patches, since every further one is compiled too; the bundle tells it the family and the pixels."""
    sizes = BackboneSizes(dim=64, patch=8, grid=6, depth=1, layer_scale=False, mask_token=False)
    weights = seeded_weights(backbone_shapes(sizes), 1)
    checkpoint = tmp_path / "dino.pt"
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, checkpoint)
    side = plan(small_backbone("dino"), checkpoint=checkpoint, peers=["compile"], sizes=[(24, 32)])[0]
    truth = BackboneReference(read_backbone(checkpoint, "dino"))(images_of(side))
    seen: list[Any] = []
    compiled = torch.compile

    def remembered(step: Any, **options: Any) -> Any:
        run = compiled(step, **options)
        return lambda image: seen.append(run(image))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", remembered)
        with bench_torch.open_pytorch(side) as opened:
            assert opened.frame()["frame"] > 0
    assert len(seen) == 2  # compiled in the first, timed in the second
    for found, name in zip(seen[1], ("cls", "tokens"), strict=True):
        np.testing.assert_allclose(found.numpy(), truth[name], atol=2e-5)


REFUSED = {
    "--k 8": "--k means nothing to a plain backbone, which sees every patch; leave it out",
    "--static": "--static means nothing to a plain backbone, which sees every patch; leave it out",
    "--cls-only": "--cls-only means nothing to a plain backbone, which sees every patch; leave it out",
    "--peers full-backbone": "--peers full-backbone means nothing to a plain backbone, which is that itself; leave it out",
    "--peers one-graph": "--peers one-graph means nothing to a plain backbone, which is that itself; leave it out",
    "--size 100": "size 100x100 is not a multiple of the 14 px patch; the nearest is 98x98",
    "--precision int8": "no int8 graphs (it has: fp32); make them with",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_only_lookwhere_has_is_one_line_before_anything_starts(
    options: str, small_backbone: Bundles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.validate.bench.subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert main(["bench", str(small_backbone("neco")), *options.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[options] in line


# ---- the arithmetic of a frame


def test_the_count_of_operations_is_that_of_the_graphs_weights(small_backbone: Bundles) -> None:
    bundle = read_bundle(small_backbone("neco"))
    model, cells, batch = bundle.manifest.model, 54, 3
    assert isinstance(model, BackboneModel)
    graph = ir.load(bundle.path / "backbone.onnx").graph
    weights = sum(int(node.inputs[1].const_value.size) for node in block_products(graph))
    embedding = int(graph.initializers["patch_embed.proj.weight"].const_value.size)
    rows = cells + 5
    attention = 2 * model.depth * rows * rows * model.dim
    by_hand = 2 * batch * (cells * embedding + rows * weights + attention)
    assert work.backbone_gflop(model, cells, batch)["backbone"] * 1e9 == pytest.approx(by_hand)
    rows_and_products = roof.stacks(model, cells, batch)
    assert rows_and_products["backbone"][0] == batch * rows
    assert sum(inputs * outputs for inputs, outputs in rows_and_products["backbone"][1]) == weights
