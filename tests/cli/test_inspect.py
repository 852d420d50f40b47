"""inspect tells of every engine and every kept verdict whether it still fits the bundle, and fails where one is damaged."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

import saccade
from saccade import read_bundle
from saccade.bundle import Manifest, write_manifest
from saccade.cli import check, verdicts
from saccade.cli.main import main

Inspect = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def bundle(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the small bundle with an OpenVINO engine alone."""
    path = tmp_path / "bundle"
    shutil.copytree(small_bundle("dinov2"), path, ignore=shutil.ignore_patterns("engines"))
    saccade.load(path, note=lambda line: None).close()
    return path


@pytest.fixture
def inspect(bundle: Path, capfd: pytest.CaptureFixture[str]) -> Inspect:
    """Return a function that inspects the bundle, checks the exit code of both forms, and returns data and text."""

    def run(code: int = 0) -> tuple[dict[str, Any], str]:
        capfd.readouterr()
        assert main(["inspect", str(bundle), "--json"]) == code
        data = json.loads(capfd.readouterr().out)
        assert main(["inspect", str(bundle)]) == code
        return data, capfd.readouterr().out

    return run


def engine_folder(bundle: Path) -> Path:
    (folder,) = (bundle / "engines").iterdir()
    return folder


def keep(bundle: Path, **verdict: Any) -> None:
    """Make `verdict` the only one of the bundle."""
    write_manifest(bundle, msgspec.structs.replace(read_bundle(bundle).manifest, parity=(verdict,)))


def change_graph(bundle: Path, role: str) -> None:
    """Give a bundle another graph of the same tensors, hash and all."""
    path = bundle / f"{role}.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    text = (bundle / "bundle.json").read_text()
    old = read_bundle(bundle).graph(role, "fp32").sha256
    graphs_end = text.index('"golden"')  # what verdicts recorded stands behind it
    head = text[:graphs_end].replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    (bundle / "bundle.json").write_text(head + text[graphs_end:])


# ---- engines


def test_an_engine_as_it_was_built_is_whole(inspect: Inspect, bundle: Path) -> None:
    data, text = inspect()
    (engine,) = data["engines"]
    assert (engine["engine"], engine["state"]) == ("openvino", "whole")
    assert f"  engine {engine_folder(bundle).name}: whole; INFERENCE_PRECISION_HINT f32 on the fp32 graph; " in text


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file cut": (lambda f: os.truncate(f / "extractor.blob", 1000), "extractor.blob was changed or cut short"),
    "file missing": (lambda f: (f / "selector.blob").unlink(), "selector.blob is missing"),
    "receipt missing": (lambda f: (f / "receipt.json").unlink(), "receipt.json is missing"),
    "receipt empty": (lambda f: os.truncate(f / "receipt.json", 0), "receipt.json: Input data was truncated"),
    "renamed": (lambda f: f.rename(f.with_name("openvino-fp32-0123456789abcdef")), "is not this engine's receipt"),
    "no folder": (lambda f: (shutil.rmtree(f), f.write_text("")), "cannot read"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_engine_is_listed_with_the_reason_and_fails(case: str, inspect: Inspect, bundle: Path) -> None:
    change, reason = DAMAGES[case]
    change(engine_folder(bundle))
    folder = engine_folder(bundle)
    data, text = inspect(code=1)
    (engine,) = data["engines"]
    assert engine["folder"] == str(folder)
    assert engine["state"].startswith("damaged: ")
    assert reason in engine["state"]
    assert engine["state"].endswith(f"delete {folder} and build again")
    assert f"  engine {folder.name}: {engine['state']}" in text


def test_a_whole_engine_beside_a_damaged_one_is_told_apart(inspect: Inspect, bundle: Path) -> None:
    (bundle / "engines/tensorrt-fp16-0123456789abcdef").mkdir()
    data, _ = inspect(code=1)
    assert [each["state"].split(":")[0] for each in data["engines"]] == ["whole", "damaged"]


def test_an_interrupted_build_is_no_engine(inspect: Inspect, bundle: Path) -> None:
    (bundle / "engines/.pending-openvino").mkdir()
    assert len(inspect()[0]["engines"]) == 1


def test_an_engine_of_another_graph_is_stale_and_no_failure(inspect: Inspect, bundle: Path) -> None:
    change_graph(bundle, "selector")
    data, text = inspect()
    assert data["engines"][0]["state"] == "stale: selector changed since; build again"
    assert "stale: selector changed since; build again; INFERENCE_PRECISION_HINT" in text


def test_an_engine_of_a_precision_that_is_gone_is_stale(bundle: Path) -> None:
    recorded = {"selector": "0" * 64, "extractor": "1" * 64}
    assert verdicts.changed_graphs(read_bundle(bundle), recorded) == "extractor and selector changed since"


# ---- verdicts


def graphs(bundle: Path) -> dict[str, str]:
    return {role: hashlib.sha256((bundle / f"{role}.onnx").read_bytes()).hexdigest() for role in ("selector", "extractor")}


def test_parity_records_what_it_was_measured_on(
    bundle: Path, small_checkpoint: Callable[[str], Path], inspect: Inspect
) -> None:
    assert main(["parity", str(bundle), "--checkpoint", str(small_checkpoint("dinov2"))]) == 0
    kept = read_bundle(bundle).manifest.parity[-1]
    receipt = json.loads((engine_folder(bundle) / "receipt.json").read_text())
    found = {name: kept[name] for name in ("engine", "engine_version", "precision", "device", "key", "graphs")}
    assert found == {
        "engine": "openvino", "engine_version": receipt["conditions"]["version"], "precision": "fp32", "device": "cpu",
        "key": receipt["key"], "graphs": graphs(bundle),
    }  # fmt: skip
    data, text = inspect()
    assert data["parity"][-1]["state"] == "current"
    version = receipt["conditions"]["version"]
    when = kept["when"].replace("T", " ").replace("+00:00", " UTC")
    assert f"parity: openvino fp32 equal to PyTorch on 4 images ({version}, device cpu, {when}); current\n" in text


@pytest.mark.parametrize("role", ["selector", "extractor"])
def test_a_verdict_of_a_graph_that_changed_is_stale(role: str, inspect: Inspect, bundle: Path) -> None:
    keep(bundle, engine="openvino", precision="fp32", device="cpu", passed=True, images=4, graphs=graphs(bundle))
    assert inspect()[0]["parity"][0]["state"] == "current"
    change_graph(bundle, role)
    data, text = inspect()
    assert data["parity"][0]["state"] == f"stale: {role} changed since; run 'saccade parity' again"
    assert f"on 4 images (of unknown version, device cpu, at an unknown time); stale: {role} changed since" in text


@pytest.mark.parametrize("extra", [{}, {"graphs": None}, {"graphs": "abc"}], ids=["none", "null", "text"])
def test_a_verdict_of_an_older_saccade_is_unknown(extra: dict[str, Any], inspect: Inspect, bundle: Path) -> None:
    keep(bundle, engine="openvino", precision="fp32", passed=False, images=1, **extra)
    data, text = inspect()
    assert data["parity"][0]["state"].startswith("unknown: it does not say which graphs")
    assert "DIFFERENT from PyTorch on 1 image (of unknown version, device unknown, at an unknown time); unknown: " in text


def test_a_verdict_replaces_the_one_of_the_same_engine_precision_and_device(bundle: Path) -> None:
    def kept() -> list[tuple[Any, ...]]:
        found: Manifest = read_bundle(bundle).manifest
        return [(old["engine"], old["precision"], old.get("device"), old["run"]) for old in found.parity]

    keep(bundle, engine="onnxruntime", precision="fp32", run=0)  # by an older saccade: of no device
    new = {"engine": "onnxruntime", "precision": "fp32", "graphs": graphs(bundle)}
    check._keep_receipt(read_bundle(bundle), new | {"device": "cpu", "run": 1})
    assert kept() == [("onnxruntime", "fp32", "cpu", 1)]
    check._keep_receipt(read_bundle(bundle), new | {"device": "0", "run": 2})
    check._keep_receipt(read_bundle(bundle), new | {"device": "cpu", "run": 3})
    assert kept() == [("onnxruntime", "fp32", "0", 2), ("onnxruntime", "fp32", "cpu", 3)]


def test_verify_leaves_its_verdict_beside_paritys_and_says_when(bundle: Path, inspect: Inspect) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    for _ in range(2):
        assert main(["verify", str(bundle)]) == 0
    of_export, kept = read_bundle(bundle).manifest.parity  # the second has replaced the first
    assert "command" not in of_export
    assert (kept["command"], kept["engine"], kept["precision"], kept["graphs"]) == (
        "verify", "openvino", "fp32", graphs(bundle)
    )  # fmt: skip
    assert before <= datetime.fromisoformat(kept["when"]) <= datetime.now(timezone.utc)
    assert str(bundle) not in (bundle / "bundle.json").read_text()  # a bundle travels
    assert re.search(r"^  verify: openvino fp32 equal to PyTorch on 4 images \(\S+, device cpu, .* UTC\); current$",
                     inspect()[1], re.MULTILINE)  # fmt: skip


def test_verify_of_what_cannot_be_written_says_that_it_kept_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("saccade.atomic.tempfile.TemporaryFile", refuse)
    assert main(["verify", str(bundle)]) == 0
    reason = f"cannot write {bundle}: the file system is read-only; copy the bundle to a place that can be written"
    assert f"saccade: the verdict was not kept in the bundle: {reason}\n" in capsys.readouterr().err


CHANGES: dict[str, tuple[Callable[[Manifest], Manifest], str]] = {
    "positions": (lambda m: replace(m, positions=replace(m.positions, sha256="0" * 64)), "the position table"),
    "image": (lambda m: replace(m, image=replace(m.image, mean=(0.5, 0.5, 0.5))), "the normalisation"),
    "golden": (lambda m: replace(m, golden=None), "golden.npz"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_verdict_is_stale_once_what_it_judged_is_another(case: str, bundle: Path) -> None:
    assert main(["verify", str(bundle)]) == 0
    changed = CHANGES[case][0](read_bundle(bundle).manifest)
    write_manifest(bundle, changed)
    of_export, kept = changed.parity
    state = f"stale: {CHANGES[case][1]} changed since; run 'saccade verify' again"
    assert verdicts.state_of(read_bundle(bundle), kept) == state
    of_parity = verdicts.state_of(read_bundle(bundle), of_export)
    assert of_parity.startswith("current" if case == "golden" else "stale: ")  # parity may have had other images


def test_inspect_names_converted_precisions_that_no_engine_was_judged_in(bundle: Path, inspect: Inspect) -> None:
    manifest = read_bundle(bundle).manifest
    graphs_of = {role: each | {"int8": each["fp32"], "int8-fp16": each["fp32"]} for role, each in manifest.graphs.items()}
    write_manifest(bundle, replace(manifest, graphs=graphs_of))
    data, text = inspect()
    assert data["unjudged"] == ["int8"]
    assert f"  int8: judged on no engine; run 'saccade verify {bundle} --precision int8'\n" in text
    keep(bundle, engine="onnxruntime", precision="int8", device="cpu", passed=True, images=4, graphs=graphs(bundle))
    data, text = inspect()
    assert data["unjudged"] == []
    assert "parity: onnxruntime int8 within the int8 bounds of PyTorch on 4 images" in text


@pytest.mark.parametrize("name", ["graphs", "precision", "command", "engine", "device", "data", "images", "when", "passed"])
@pytest.mark.parametrize("value", [["x"], {"selector": ["x"]}, None, "\x1b[2J\ncurrent", 7])
def test_a_verdict_of_any_content_is_shown_in_one_line(
    name: str, value: Any, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {"engine": "openvino", "precision": "fp32", "images": 1, "graphs": graphs(bundle), "data": {}}
    keep(bundle, **known)
    assert main(["inspect", str(bundle)]) == 0
    usual = capfd.readouterr().out
    keep(bundle, **{**known, name: value})
    assert main(["inspect", str(bundle)]) == 0
    text = capfd.readouterr().out
    assert text.count("\n") == usual.count("\n")
    assert "\x1b" not in text
    verdicts.unjudged(read_bundle(bundle))


def test_a_number_that_json_cannot_hold_is_kept_as_null(bundle: Path) -> None:
    identity = {"engine": "openvino", "precision": "fp32", "device": "cpu", "graphs": graphs(bundle)}
    check._keep_receipt(read_bundle(bundle), identity | {"swap_effect": float("nan"), "bound": float("inf")})
    kept = read_bundle(bundle).manifest.parity[-1]
    assert (kept["swap_effect"], kept["bound"]) == (None, None)


def test_a_verdict_is_not_kept_where_the_bundle_was_exported_again(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    measured, judged = read_bundle(bundle), graphs(bundle)
    change_graph(bundle, "extractor")
    before = (bundle / "bundle.json").read_bytes()
    check._keep_receipt(measured, {"engine": "openvino", "precision": "fp32", "device": "cpu", "graphs": judged})
    assert (bundle / "bundle.json").read_bytes() == before
    assert "the verdict was not kept in the bundle: the bundle was exported again meanwhile; repeat the command" in (
        capfd.readouterr().err
    )
