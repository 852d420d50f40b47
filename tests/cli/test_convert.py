"""The command convert: what it adds, what it refuses, and that a bundle is otherwise left exactly as it was."""
from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from saccade import locks, read_bundle
from saccade.bundle import sha256_of_file, write_manifest
from saccade.cli import convert as module
from saccade.cli.calibrate import Images, find_images, split
from saccade.cli.console import Phases
from saccade.cli.convert import next_step
from saccade.cli.main import main
from saccade.contract import LOOKWHERE_ROLES as ROLES
from saccade.engines.store import backend
from saccade.export import variants
from saccade.validate.gate import Judge
from saccade.validate.tolerances import TOLERANCES, Tolerance

VARIANTS_OF = {"fp16": ["fp16"], "bf16": ["bf16"], "int8": ["int8", "int8-fp16"], "fp8": ["fp8"]}
NUMBERS = ("score_error", "unexplained_swaps", "regret", "cls", "prefix", "patches", "patches_p1", "free_running")
ERROR = "saccade: error: "

Say = Callable[..., str]
Refused = Callable[..., str]


def times(tolerance: Tolerance, factor: float) -> Tolerance:
    return Tolerance(**{name: factor * value for name, value in msgspec.structs.asdict(tolerance).items()})


@pytest.fixture
def copy(small_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the small bundle, without engines."""
    return shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the bounds, which are a ViT-B's, three times: in a narrow model each rounding error weighs more."""
    for precision in ("int8", "fp8"):
        monkeypatch.setitem(TOLERANCES, precision, times(TOLERANCES[precision], 3))


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask of every precision what none can give."""
    for precision in VARIANTS_OF:
        monkeypatch.setitem(TOLERANCES, precision, times(TOLERANCES[precision], 1e-9))


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a command, checks its exit code, and returns its stdout."""

    def run(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capfd.readouterr().out

    return run


def content(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, hidden ones included, with a file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that runs a command which must end with one line and leave every byte as it was."""

    def run(*arguments: object) -> str:
        before = content(tmp_path)
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capfd.readouterr()
        lines = err.splitlines()
        assert out == ""
        assert lines[-1].startswith(ERROR), err
        assert not any("error: " in line or "Traceback" in line for line in lines[:-1]), err
        assert content(tmp_path) == before
        return lines[-1].removeprefix(ERROR)

    return run


# ---- what it adds


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "classify"), ("bf16", "segment"), ("int8", "franca")])
def test_a_precision_is_added_to_every_kind(
    precision: str, kind: str, small_bundle: Callable[[str], Path], photo_folder: Path, say: Say, tmp_path: Path,
    lenient: None,
) -> None:  # fmt: skip
    path = shutil.copytree(small_bundle(kind), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    before, files = read_bundle(path).manifest, content(path)
    calibration = ["--calibration", photo_folder] if precision == "int8" else []
    data = json.loads(say("convert", path, "--precision", precision, *calibration, "--json"))
    names = [f"{role}.{variant}.onnx" for variant in VARIANTS_OF[precision] for role in ROLES]
    bundle = read_bundle(path)
    assert data["files"] == {name: (path / name).stat().st_size for name in names}
    assert {name: held for name, held in content(path).items() if name in files and name != "bundle.json"} == {
        name: held for name, held in files.items() if name != "bundle.json"
    }
    assert content(path).keys() - files.keys() == set(names)
    for role in ROLES:
        assert list(bundle.manifest.graphs[role]) == ["fp32", *VARIANTS_OF[precision]]
        for variant in VARIANTS_OF[precision]:
            graph = bundle.graph(role, variant)
            assert (graph.file, graph.sha256) == (f"{role}.{variant}.onnx", sha256_of_file(path / graph.file))
            assert (graph.inputs, graph.outputs) == (bundle.graph(role, "fp32").inputs, bundle.graph(role, "fp32").outputs)
    told = {name: data[name] for name in data if name != "files"}
    assert bundle.manifest.provenance.pop("variants") == dict.fromkeys(VARIANTS_OF[precision], told)
    graphs = {role: {"fp32": bundle.manifest.graphs[role]["fp32"]} for role in ROLES}
    assert msgspec.structs.replace(bundle.manifest, graphs=graphs) == before
    assert all(judged["passed"] for judged in data["judged"].values())


def test_every_precision_is_kept_beside_the_others_and_inspect_shows_them(converted_bundle: Path, say: Say) -> None:
    text, data = say("inspect", converted_bundle), json.loads(say("inspect", converted_bundle, "--json"))
    names = [f"{role}.{variant}.onnx" for variants in VARIANTS_OF.values() for variant in variants for role in ROLES]
    assert set(names) <= data["files"].keys()
    for name in names:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert line.endswith("hash checked")
        assert f"  {name.removesuffix('.onnx').replace('.', ' ')}: " in text
    assert data["provenance"]["variants"].keys() == {v for found in VARIANTS_OF.values() for v in found}


def test_the_report_names_the_methods_the_numbers_and_the_files(
    copy: Path, photo_folder: Path, say: Say, lenient: None
) -> None:
    lines = say("convert", copy, "--precision", "int8", "--calibration", photo_folder).splitlines()
    assert lines[0] == f"{copy}: int8 added"
    for role in ROLES:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{role}, worst image not calibrated on"))
        rows = [line.split() for line in lines[start + 1 : start + 4]]
        assert [row[0] for row in rows] == ["minmax", "percentile", "mse"]
        best = min(rows, key=lambda row: float(row[1 if role == "selector" else 3]))
        assert [row[0] for row in rows if row[-1] == "chosen"] == [best[0]]
    head = next(line for line in lines if line.startswith("variant, worst image"))
    assert head.split()[3:] == list(NUMBERS)
    assert not any("FAIL" in line for line in lines)
    assert lines[-1].split()[0] == "extractor.int8-fp16.onnx"


@pytest.mark.parametrize("method", ["percentile"])
def test_a_method_that_is_named_is_the_only_one_tried(
    method: str, copy: Path, photo_folder: Path, say: Say, lenient: None
) -> None:
    command = ["convert", copy, "--precision", "int8", "--calibration", photo_folder, "--method", method, "--json"]
    calibration = json.loads(say(*command))["calibration"]
    assert calibration["methods"] == dict.fromkeys(ROLES, method)
    assert [trial["name"] for trial in calibration["trials"]] == [method, method]
    assert (calibration["images"], calibration["held_out"]) == (14, 2)


def test_the_manifest_names_no_file_before_it_is_there(
    copy: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def write(folder: Path, manifest: Any) -> None:
        for graphs in manifest.graphs.values():
            for graph in graphs.values():
                assert sha256_of_file(folder / graph.file) == graph.sha256
        write_manifest(folder, manifest)
        seen.append(list(manifest.graphs["selector"]))

    monkeypatch.setattr(module, "write_manifest", write)
    say("convert", copy, "--precision", "fp16")
    say("convert", copy, "--precision", "fp16")  # in between the files are neither these nor those
    assert seen == [["fp32", "fp16"], ["fp32"], ["fp32", "fp16"]]


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "bf16")])
def test_engines_are_built_run_and_verified_from_the_variants(
    engine: str, precision: str, converted_bundle: Path, photo_folder: Path, say: Say, lenient: None, tmp_path: Path
) -> None:
    if precision not in backend(engine).capabilities().precisions:
        pytest.skip(f"{engine} has no {precision} on this CPU")
    bundle = shutil.copytree(converted_bundle, tmp_path / "bundle")
    options = ["--engine", engine, "--precision", precision, "--json"]
    assert json.loads(say("build", bundle, *options))["precision"] == precision
    run = json.loads(say("run", bundle, photo_folder / "00.png", *options))
    assert (run["engine"], run["precision"]) == (engine, precision)
    verdict = json.loads(say("verify", bundle, *options))
    assert (verdict["passed"], verdict["precision"]) == (True, precision)
    if engine == "onnxruntime":  # computed and not passed through: the graph is another one
        assert verdict["measures"]["patches"]["value"] > 1e-7


def test_converting_again_with_other_images_makes_the_old_engines_stale(
    converted_bundle: Path, photo_folder: Path, say: Say, tmp_path: Path, lenient: None
) -> None:
    copy = shutil.copytree(converted_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    build = ["build", copy, "--engine", "onnxruntime", "--precision", "int8", "--json"]

    def state() -> str:
        (engine,) = json.loads(say("inspect", copy, "--json"))["engines"]
        return str(engine["state"])

    say(*build)
    assert state() == "whole"
    few = photos(photo_folder, tmp_path / "few", 9)
    say("convert", copy, "--precision", "int8", "--calibration", few, "--method", "minmax")
    assert state() == "stale: extractor and selector changed since; build again"
    assert json.loads(say(*build))["built"] is True
    assert state() == "whole"


# ---- what it refuses


@pytest.mark.parametrize("precision", ["fp16"])
def test_graphs_without_parity_are_not_kept_and_the_blocks_to_blame_are_named(
    precision: str, copy: Path, say: Say, strict: None
) -> None:
    before = content(copy.parent)
    command = ["convert", copy, "--precision", precision]
    lines = say(*command, code=1).splitlines()
    assert content(copy.parent) == before
    assert lines[0] == f"{precision} is refused: its graphs do not hold parity; {copy} is as it was"
    assert lines[1] == "  next: --precision bf16, which has float32's range"
    assert any(line.startswith(f"  {precision} ") and "FAIL" in line for line in lines)
    data = json.loads(say(*command, "--json", code=1))
    assert content(copy.parent) == before
    assert "files" not in data
    assert data["judged"][precision]["passed"] is False
    trials = data["sensitivity"]
    assert sorted((trial["graph"], trial["name"]) for trial in trials) == [
        ("extractor", "block 0"), ("extractor", "block 1"), ("selector", "block 0")
    ]  # fmt: skip
    errors = [trial["measures"]["patches_p1"] for trial in trials if trial["graph"] == "extractor"]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0]
    head = next(i for i, line in enumerate(lines) if line.startswith("extractor, one block at a time"))
    named = [trial["name"] for trial in trials if trial["graph"] == "extractor"]
    assert [line.strip().split("  ")[0] for line in lines[head + 1 : head + 3]] == named


@pytest.mark.parametrize(("images", "method", "advice"), [
    (16, "auto", "more images, 64 or more instead of 16, like those it will see, or --precision fp16 or bf16"),
    (64, "auto", "other images, like those it will see, or --precision fp16 or bf16"),
    (64, "mse", "--method auto, or other images, like those it will see, or --precision fp16 or bf16"),
])  # fmt: skip
def test_what_may_help_is_what_has_not_been_tried(images: int, method: str, advice: str) -> None:
    assert next_step("int8", images, method) == f"{advice}, which need none"


def test_a_refused_variant_leaves_the_one_that_was_there(
    copy: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("convert", copy, "--precision", "fp16")
    before = content(copy.parent)
    monkeypatch.setitem(TOLERANCES, "fp16", times(TOLERANCES["fp16"], 1e-9))
    say("convert", copy, "--precision", "fp16", code=1)
    assert content(copy.parent) == before


def test_a_weight_that_does_not_fit_is_refused(copy: Path, refused: Refused) -> None:
    bundle = read_bundle(copy)
    model = ir.load(copy / "extractor.onnx")
    name = "backbone.blocks.0.ls1.gamma"
    model.graph.initializers[name].const_value = ir.tensor(np.full(128, 7e4, np.float32), name=name)
    ir.save(model, copy / "extractor.onnx")
    changed = msgspec.structs.replace(bundle.graph("extractor", "fp32"), sha256=sha256_of_file(copy / "extractor.onnx"))
    graphs = bundle.manifest.graphs | {"extractor": {"fp32": changed}}
    write_manifest(copy, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    assert "is beyond what fp16 can hold (65504); use --precision bf16" in refused("convert", copy, "--precision", "fp16")


OPTIONS = {
    "no calibration": (["--precision", "int8"], "int8 needs the ranges of activations; give --calibration IMAGES"),
    "calibration for nothing": (
        ["--precision", "fp16", "--calibration", "PHOTOS"],
        "--precision fp16 has nothing to calibrate; leave --calibration and --method out",
    ),
    "method for nothing": (["--precision", "bf16", "--method", "mse"], "--precision bf16 has nothing to calibrate; leave"),
    "too few asked for": (
        ["--precision", "int8", "--calibration", "PHOTOS", "--max-images", "7"],
        "--max-images 7 is too few to calibrate on; give at least 8",
    ),
    "no folder": (["--precision", "int8", "--calibration", "gone"], "--calibration gone: no such file or folder"),
    "no images": (["--precision", "fp8", "--calibration", "EMPTY"], "holds no images (.bmp"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_are_one_line_before_anything_is_opened(
    case: str, copy: Path, photo_folder: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "__init__", lambda *_: pytest.fail("graphs were compiled for nothing"))
    (tmp_path / "empty").mkdir()
    places = {"PHOTOS": str(photo_folder), "EMPTY": str(tmp_path / "empty")}
    arguments, message = OPTIONS[case]
    assert message in refused("convert", copy, *(places.get(word, word) for word in arguments))


def test_what_is_missing_is_named_with_its_extra(
    copy: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = refused("convert", copy, "--precision", "fp16")
    assert message == "openvino cannot be imported; pip install '.[convert]' in the clone"


def test_what_is_no_bundle_or_damaged_is_one_line(copy: Path, refused: Refused, tmp_path: Path) -> None:
    assert "gone is not a bundle folder" in refused("convert", tmp_path / "gone", "--precision", "fp16")
    os.truncate(copy / "extractor.onnx", 5000)
    assert "extractor.onnx was changed or cut short" in refused("convert", copy, "--precision", "fp16")
    odd = tmp_path / os.fsdecode(b"b\xff")
    copy.rename(odd)
    assert "its path is not UTF-8, which engines cannot open" in refused("convert", odd, "--precision", "fp16")


# ---- images


def photos(photo_folder: Path, folder: Path, count: int, unreadable: int = 0) -> Path:
    """Return a folder with some of the photographs, over and over, and files that only look like images."""
    folder.mkdir()
    sources = sorted(photo_folder.iterdir())
    for index in range(count):
        shutil.copy(sources[index % len(sources)], folder / f"{index:03}.png")
    for index in range(unreadable):
        (folder / f"x{index}.png").write_text("hello")
    (folder / "notes.txt").write_text("no image, and not counted")
    return folder


@pytest.fixture
def found(small_bundle: Callable[[str], Path]) -> Callable[..., Images]:
    """Return a function from a folder and a number of images to what is calibrated on and held out."""

    def find(folder: Path, most: int) -> Images:
        with Judge(read_bundle(small_bundle("dinov2"))) as judge, Phases() as phases:
            return find_images(judge, folder, most, phases)

    return find


@pytest.mark.parametrize(("count", "unreadable"), [(7, 0), (7, 3)])
def test_fewer_than_eight_readable_images_are_an_error(
    count: int, unreadable: int, copy: Path, photo_folder: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = photos(photo_folder, tmp_path / "photos", count, unreadable)
    assert refused("convert", copy, "--precision", "int8", "--calibration", folder) == (
        f"--calibration {folder}: {count} readable images of {count + unreadable}; give at least 8, better 64"
    )


def test_few_images_and_unreadable_ones_are_warnings(
    found: Callable[..., Images], photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = photos(photo_folder, tmp_path / "photos", 8, unreadable=2)
    images = found(folder, 512)
    assert sorted((*images.calibrating, *images.held_out)) == [folder / f"{index:03}.png" for index in range(8)]
    err = capfd.readouterr().err
    assert f"saccade: warning: left out {folder}/x0.png is not an image that Pillow can read" in err
    assert "saccade: warning: 2 of 10 images cannot be used\n" in err
    assert "saccade: warning: 8 images are few; ranges settle from about 64\n" in err


def test_enough_images_are_no_warning_and_no_more_are_used_than_asked_for(
    found: Callable[..., Images], photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = photos(photo_folder, tmp_path / "photos", 66)
    assert len(found(folder, 64).calibrating) == 56
    err = capfd.readouterr().err
    assert "saccade: using 64 of 66 images; --max-images takes more\n" in err
    assert "warning" not in err
    assert len(found(folder, 66).held_out) == 8
    assert "saccade: " not in capfd.readouterr().err


@pytest.mark.parametrize(("count", "held_out"), [(8, 2), (16, 2), (24, 3), (100, 12), (512, 16)])
def test_every_eighth_image_judges_and_is_not_calibrated_on(count: int, held_out: int) -> None:
    paths = [Path(f"{index:04}.png") for index in range(count)]
    images = split(paths)
    assert len(images.held_out) == held_out
    assert sorted((*images.calibrating, *images.held_out)) == paths
    gaps = np.diff([paths.index(path) for path in images.held_out])
    assert gaps.max() - gaps.min() <= 1


# ---- what goes wrong on the way


def fail_at(stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one stage of the command raise, the last of several where there are several."""
    calls: list[object] = []

    def failing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(arguments)
            if len(calls) == at:
                raise error
            return function(*arguments, **options)

        return call

    if stage == "write":
        monkeypatch.setattr(variants, "write_variant", failing(variants.write_variant, 2))
    elif stage == "judge":
        monkeypatch.setattr(Judge, "judge", failing(Judge.judge, 1))
    elif stage == "move":
        monkeypatch.setattr(module, "_move_in", failing(module._move_in, 2))
    else:
        monkeypatch.setattr(module, "write_manifest", failing(write_manifest, 1 if stage == "first manifest" else 2))


STAGES = ("write", "judge", "first manifest", "move", "last manifest")
ERRORS = {
    "interrupt": (KeyboardInterrupt(), 130),
    "full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
    "bug": (RuntimeError("a bug of ours"), None),
}


@pytest.mark.parametrize(
    ("stage", "case", "again"),
    [*((stage, case, True) for stage in STAGES for case in ERRORS), *((stage, "interrupt", False) for stage in STAGES[:4])],
)
def test_whatever_ends_it_the_bundle_is_as_it_was(
    stage: str, case: str, again: bool, copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    error, code = ERRORS[case]
    if again:
        bundle = read_bundle(copy)  # a variant of other bytes, since the same ones would hide that they were replaced
        graphs = {
            role: bundle.manifest.graphs[role]
            | {"fp16": msgspec.structs.replace(bundle.graph(role, "fp32"), file=f"{role}.fp16.onnx")}
            for role in ROLES
        }
        for role in ROLES:
            shutil.copy(copy / f"{role}.onnx", copy / f"{role}.fp16.onnx")
        write_manifest(copy, msgspec.structs.replace(bundle.manifest, graphs=graphs))
    before = content(copy.parent)
    fail_at(stage, error, monkeypatch)
    if code is None:
        with pytest.raises(RuntimeError, match="a bug of ours"):
            main(["convert", str(copy), "--precision", "fp16"])
    else:
        assert main(["convert", str(copy), "--precision", "fp16"]) == code
        err = capfd.readouterr().err.splitlines()
        assert "Traceback" not in "".join(err)
        assert err[-1] == "saccade: interrupted; nothing half-written was left behind" if code == 130 else (
            "the disk is full; free some space and repeat" in err[-1]
        )
    assert content(copy.parent) == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a mounted file system of its own; skips where a test may not mount."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no one mount")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def test_a_bundle_on_a_read_only_disk_is_one_line(copy: Path, disk: Path, refused: Refused) -> None:
    bundle = shutil.copytree(copy, disk / "bundle")
    remount(disk, "ro")
    message = refused("convert", bundle, "--precision", "fp16")
    assert message.startswith(f"cannot write {bundle}: the file system is read-only; copy the bundle")


@pytest.mark.parametrize("room", [8, 1200], ids=lambda room: f"{room} kB")
def test_a_disk_that_fills_up_is_one_line(room: int, copy: Path, disk: Path, refused: Refused) -> None:
    bundle = shutil.copytree(copy, disk / "bundle")
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in bundle.iterdir())
    remount(disk, f"size={used // 1024 + room}k")
    message = refused("convert", bundle, "--precision", "fp16")
    assert message == f"cannot write {bundle}/convert: the disk is full; free some space and repeat"


def test_a_bundle_that_cannot_be_written_is_one_line(
    copy: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a mounted disk, so that it is tested everywhere."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "the file system is read-only; copy the bundle" in refused("convert", copy, "--precision", "fp16")


# ---- with others at work


@pytest.mark.parametrize("shared", [True, False], ids=["a build", "an export"])
def test_it_stops_at_once_where_another_process_works(
    shared: bool, copy: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "__init__", lambda *_: pytest.fail("graphs were compiled for nothing"))
    with locks.reserved(copy, "busy", shared=shared):
        message = refused("convert", copy, "--precision", "fp16")
    assert message == f"{copy} is being exported, converted or built by another process; repeat when it is done"


def meanwhile(what: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen while the graphs are judged, once."""
    judge, happened = Judge.judge, list[object]()

    def judged(*arguments: Any) -> Any:
        if not happened:
            happened.append(None)
            what()
        return judge(*arguments)

    monkeypatch.setattr(Judge, "judge", judged)


def test_exports_builds_and_conversions_wait_for_their_turn(
    copy: Path, small_checkpoint: Callable[[str], Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others() -> None:
        for command in (
            ["export", small_checkpoint("franca"), "-o", copy],
            ["build", copy, "--engine", "onnxruntime"],
            ["convert", copy, "--precision", "bf16"],
        ):
            assert main([str(word) for word in command]) == 1

    meanwhile(others, monkeypatch)
    say("convert", copy, "--precision", "fp16")
    say("convert", copy, "--precision", "bf16")
    assert list(read_bundle(copy).manifest.graphs["extractor"]) == ["fp32", "fp16", "bf16"]
    say("inspect", copy)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_what_the_manifest_gains_meanwhile_is_not_lost(copy: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the disk has no locks, and by parity, which keeps its verdict without one."""

    def others() -> None:
        manifest = read_bundle(copy).manifest
        shutil.copy(copy / "selector.onnx", copy / "selector.fp8.onnx")
        graphs = dict(manifest.graphs)
        fp8 = msgspec.structs.replace(graphs["selector"]["fp32"], file="selector.fp8.onnx")
        graphs["selector"] = graphs["selector"] | {"fp8": fp8}
        write_manifest(copy, msgspec.structs.replace(manifest, graphs=graphs, parity=({"engine": "of somebody else"},)))

    meanwhile(others, monkeypatch)
    say("convert", copy, "--precision", "fp16")
    manifest = read_bundle(copy).manifest
    assert list(manifest.graphs["selector"]) == ["fp32", "fp8", "fp16"]
    assert manifest.parity == ({"engine": "of somebody else"},)


def test_graphs_of_a_bundle_that_is_another_one_by_now_are_not_added(
    copy: Path, say: Say, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def others() -> None:
        manifest = read_bundle(copy).manifest
        graphs = dict(manifest.graphs)
        other = msgspec.structs.replace(graphs["selector"]["fp32"], sha256="0" * 64)
        graphs["selector"] = {"fp32": other}
        write_manifest(copy, msgspec.structs.replace(manifest, graphs=graphs))

    meanwhile(others, monkeypatch)
    assert main(["convert", str(copy), "--precision", "fp16"]) == 1
    assert f"{ERROR}{copy} was exported again meanwhile; repeat the command\n" in capfd.readouterr().err
    assert list(read_bundle(copy).manifest.graphs["selector"]) == ["fp32"]


# ---- without torch


NO_TORCH = """
import sys
for name in ("torch", "onnxscript", "polygraphy", "sklearn"):
    sys.modules[name] = None
from saccade.cli.main import main
from saccade.validate.parity import ParityResult
ParityResult.passed = True
sys.exit(main(sys.argv[1:]))
"""


def test_it_works_without_torch(copy: Path, photo_folder: Path) -> None:
    calibration = ["--calibration", photo_folder, "--method", "minmax"]
    arguments = [str(word) for word in ("convert", copy, "--precision", "int8", *calibration)]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_bundle(copy).graph("extractor", "int8").file == "extractor.int8.onnx"
    steps = [line.split(":")[0].split() for line in done.stderr.splitlines() if "done in" in line]
    assert steps == [[str(number), "of", str(len(steps))] for number in range(1, len(steps) + 1)]
    assert re.search(r"^saccade: about \d+ (s|min) from here$", done.stderr, re.MULTILINE)


def test_an_export_over_converted_graphs_needs_force(
    converted_bundle: Path, small_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shutil.copytree(converted_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    command = ["export", str(small_checkpoint("dinov2")), "-o", str(target)]
    before = (target / "bundle.json").read_bytes()
    assert main(command) == 1
    assert "holds converted graphs (bf16, fp16, fp8, int8, int8-fp16); choose another place, or --force it" in (
        capsys.readouterr().err
    )
    assert (target / "bundle.json").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert list(read_bundle(target).manifest.graphs["selector"]) == ["fp32"]
