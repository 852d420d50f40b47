"""Everything a user can get wrong ends with exit 1, one line that says what to do, and nothing half-written."""
from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import saccade
from saccade import locks
from saccade.cli import create, npz_rows
from saccade.cli.main import main
from saccade.engines import openvino as openvino_engine
from saccade.engines.cuda import find_gpus

CLI = [sys.executable, "-m", "saccade"]
SMALL = ["--dim", "64", "--depth", "1", "--selector-depth", "1", "--grid", "3"]
ERROR = "saccade: error: "

Refused = Callable[..., str]


def tree(folder: Path) -> list[str]:
    """Return every path below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def stock(
    tmp_path_factory: pytest.TempPathFactory, small_bundle: Callable[[str], Path], small_checkpoint: Callable[[str], Path],
    photographs: list[np.ndarray],
) -> Path:  # fmt: skip
    """Return a folder with `bundle` and its OpenVINO engine, `model.pt`, `photo.png` and `small.png`. Read only."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(small_bundle("dinov2"), folder / "bundle", ignore=shutil.ignore_patterns("engines"))
    saccade.load(folder / "bundle", note=lambda line: None).close()
    shutil.copy(small_checkpoint("dinov2"), folder / "model.pt")
    Image.fromarray(photographs[0]).save(folder / "photo.png")
    Image.fromarray(photographs[1][:100, :120]).save(folder / "small.png")
    return folder


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, a copy of `stock`."""
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that runs a command, checks all that holds for every fault, and returns the error's text.

    `leaves` names what may be new afterwards, if anything.
    """

    def run(*arguments: object, leaves: tuple[str, ...] = ()) -> str:
        before = tree(place)
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capfd.readouterr()
        *others, line, end = err.split("\n")  # and not at "\r": a log file has no moving bars
        assert line.startswith(ERROR), err
        assert end == ""
        assert not any("error" in other or "Traceback" in other for other in others), err
        message = line.removeprefix(ERROR)
        assert (json.loads(out) == {"error": message}) if "--json" in arguments else (out == "")
        assert tree(place) == sorted([*before, *leaves])
        return message

    return run


# ---- options


class Fault(NamedTuple):
    """A command line and a part of what it must say."""

    arguments: str
    message: str


OPTIONS = {
    "no bundle": Fault(
        "run gone photo.png", "gone is not a bundle folder; make one with 'saccade export CHECKPOINT -o gone'"
    ),
    "file for a bundle": Fault("verify model.pt", "model.pt is not a bundle folder"),
    "image for a checkpoint": Fault("inspect photo.png", "photo.png is not a PyTorch checkpoint"),
    "family of a bundle": Fault("inspect bundle --family neco", "bundle is no checkpoint file; leave out --family"),
    "folder for a bundle": Fault("verify bundle/engines", "bundle/engines/bundle.json is missing"),
    "size not divisible": Fault(
        "run bundle photo.png --size 520",
        "size 520x520 is not a multiple of the 14 px patch; the nearest is 518x518",
    ),
    "size of zero": Fault("run bundle photo.png --size 0", "size 0x0 is not a multiple of the 14 px patch"),
    "size too large": Fault("run bundle photo.png --size 2100", "at most 21904 are supported"),
    "mixed grids": Fault(
        "run bundle photo.png small.png --fit native", "images of one run share a grid: image 0 is 630 x 420"
    ),
    "native with a size": Fault("run bundle photo.png --fit native --size 126", "size and fit native exclude each other"),
    "k of zero": Fault("run bundle photo.png --k 0", "k 0 is not to be had: this grid has 81 patches, so give 1 to 81"),
    "k negative": Fault("run bundle photo.png --k -4", "k -4 is not to be had"),
    "k too large": Fault("run bundle photo.png --k 82", "k 82 is not to be had"),
    "k below the fill": Fault("run bundle photo.png --k 4 --dense", "k 4 is too small for dense output, which blends the 5"),
    "ratio of zero": Fault("run bundle photo.png --k-ratio 0", "k_ratio 0.0 is not a share of the patches"),
    "ratio above one": Fault("run bundle photo.png --k-ratio 1.5", "k_ratio 1.5 is not a share of the patches"),
    "ratio not a number": Fault("run bundle photo.png --k-ratio nan", "k_ratio nan is not a share of the patches"),
    "ratio of nothing": Fault("run bundle photo.png --k-ratio 0.01", "k_ratio 0.01 keeps none of this grid's 81 patches"),
    "look and dense": Fault(
        "run bundle photo.png --look --dense",
        "--look gives the selector's map alone; leave out --dense, --k, --k-ratio, --static and --cls-only",
    ),
    "look and k": Fault("run bundle photo.png --look --k 5", "--look gives the selector's map alone"),
    "look and static": Fault("run bundle photo.png --look --static", "--look gives the selector's map alone"),
    "dense without tokens": Fault(
        "run bundle photo.png --dense --cls-only", "--dense is filled from the patch tokens that --cls-only leaves out"
    ),
    "static without a k": Fault(
        "run bundle photo.png --static --fit native", "--static is for one k, and with --fit native each size has its own"
    ),
    "static parity without a k": Fault(
        "parity bundle --checkpoint model.pt --images photo.png --static --fit native",
        "--static is for one k, and with --fit native each size has its own; give --k too",
    ),
    "static for onnxruntime": Fault(
        "run bundle photo.png --static --engine onnxruntime",
        "onnxruntime has no static engines; leave static out, or use openvino",
    ),
    "static for rtx": Fault(
        "build bundle --static --engine tensorrt-rtx",
        "tensorrt-rtx has no static engines; leave static out, or use openvino",
    ),
    "no static build": Fault(
        "run bundle photo.png --static --k 7 --cls-only --no-build",
        "no openvino fp32 cls-only engine is built yet; 'saccade build bundle --engine openvino --cls-only' builds it",
    ),
    "k without static": Fault("build bundle --k 7", "--k is the k of static engines, others take any; give --static too"),
    "static k out of range": Fault("build bundle --static --k 0", "--k 0 is out of range; give 1 to 21904"),
    "threads": Fault("run bundle photo.png --threads -1", "threads -1 is out of range"),
    "threads of verify": Fault("verify bundle --threads -1", "threads -1 is out of range"),
    "openvino on a gpu": Fault("run bundle photo.png --device 0", "openvino runs on --device cpu here, not '0'"),
    "device unknown": Fault(
        "run bundle photo.png --engine onnxruntime --device gpu",
        "onnxruntime runs on --device cpu or the index of a GPU, not 'gpu'",
    ),
    "precision without graphs": Fault(
        "run bundle photo.png --precision int8",
        "bundle: no int8 graphs (it has: fp32); "
        "make them with 'saccade convert bundle --precision int8 --calibration IMAGES'",
    ),
    "build without graphs": Fault(
        "build bundle --engine tensorrt-rtx --precision fp16", "bundle: no fp16 graphs (it has: fp32); make them with"
    ),
    "no build": Fault(
        "run bundle photo.png --engine onnxruntime --no-build",
        "no onnxruntime fp32 engine is built yet; 'saccade build bundle --engine onnxruntime' builds it",
    ),
    "profile": Fault("build bundle --engine tensorrt-rtx --max-batch 0", "--max-batch 0 is out of range; give 1 to 4096"),
    "batch for openvino": Fault(
        "build bundle --max-batch 4",
        "--max-batch means nothing to --engine openvino; leave it out, or use --engine tensorrt or tensorrt-rtx",
    ),
    "k for onnxruntime": Fault(
        "build bundle --engine onnxruntime --max-k 40",
        "--max-k means nothing to --engine onnxruntime; leave it out, or use --engine tensorrt or tensorrt-rtx",
    ),
    "targets for tensorrt": Fault(
        "build bundle --engine tensorrt --compute-capability SM89",
        "--compute-capability means nothing to --engine tensorrt; leave it out, or use --engine tensorrt-rtx",
    ),
    "device for rtx": Fault(
        "build bundle --engine tensorrt-rtx --device abc",
        "--device means nothing to --engine tensorrt-rtx; leave it out, or use --engine openvino or onnxruntime or tensorrt",
    ),
    "target twice": Fault(
        "build bundle --engine tensorrt-rtx --compute-capability SM89 SM120 SM89",
        "--compute-capability SM89 is given twice; name each once",
    ),
    "bench rounds": Fault("bench bundle --rounds 0", "--rounds 0 and --frames 10 must be at least 1"),
    "bench frames": Fault("bench bundle --frames -1", "--rounds 5 and --frames -1 must be at least 1"),
    "bench size": Fault("bench bundle --size 100", "the nearest is 98x98"),
    "bench k": Fault("bench bundle --k 100", "k 100 is not to be had"),
    "bench precision": Fault(
        "bench bundle --precision int8 --rounds 1 --frames 1", "no int8 graphs (it has: fp32); make them with"
    ),
    "bench without images": Fault("bench bundle --images gone", "--images gone: no such file or folder"),
    "bench on no images": Fault("bench bundle --images bundle/engines", "--images bundle/engines: holds no images (.bmp"),
    "bench on what is no image": Fault("bench bundle --images model.pt", "model.pt is not an image that Pillow can read"),
    "bench batch": Fault("bench bundle --batch 0 --rounds 1 --frames 1", "batch"),
    "bench checkpoint": Fault("bench bundle --checkpoint gone.pt --rounds 1 --frames 1", "gone.pt: no such checkpoint file"),
    "parity without images": Fault(
        "parity bundle --checkpoint model.pt --images gone", "--images gone: no such file or folder"
    ),
    "parity on an empty folder": Fault(
        "parity bundle --checkpoint model.pt --images bundle/engines", "--images bundle/engines: holds no images (.bmp"
    ),
    "parity k": Fault("parity bundle --checkpoint model.pt --images photo.png --k 100", "k 100 is not to be had"),
    "family": Fault("make-checkpoint lookwhere-beit -o new.pt", "unknown family 'lookwhere-beit'; choose from:"),
    "seed": Fault(
        "make-checkpoint lookwhere-dinov2 -o new.pt --seed -1", "--seed -1 is out of range; give 0 to 4294967295"
    ),
    "seed too large": Fault("make-checkpoint lookwhere-dinov2 -o new.pt --seed 4294967296", "--seed 4294967296 is out of"),
    "width": Fault("make-checkpoint lookwhere-dinov2 -o new.pt --dim 100", "dim 100 is not a multiple of 64"),
    "depth": Fault("make-checkpoint lookwhere-dinov2 -o new.pt --depth 0", "--depth 0 is out of range; give 1 to 16384"),
    "classes of a backbone": Fault(
        "make-checkpoint dino-vits16 -o new.pt --classes 10", "--classes means nothing to a plain backbone: it has no"
    ),
    "classes": Fault("make-checkpoint lookwhere-dinov2 -o new.pt --classes -3", "classes -3 is out of range"),
    "export size": Fault(
        "export model.pt -o new --size 100", "--size 100 is not a multiple of the 14 px patch; the nearest is 98"
    ),
    "export k": Fault("export model.pt -o new --k 82", "--k 82 is not to be had: 126 px has 81 patches, so give 1 to 81"),
    "export ratio": Fault("export model.pt -o new --k-ratio 2", "--k-ratio 2.0 keeps no patch or more than all of 81"),
    "export task": Fault(
        "export model.pt -o new --task segment", "model.pt has no head, so --task segment is not to be had"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_is_one_line(case: str, refused: Refused) -> None:
    assert OPTIONS[case].message in refused(*OPTIONS[case].arguments.split())


@pytest.mark.parametrize("case", ["no bundle", "k of zero", "export size", "bench k", "parity without images", "width"])
def test_with_json_the_error_is_on_stdout_too(case: str, refused: Refused) -> None:
    assert OPTIONS[case].message in refused(*OPTIONS[case].arguments.split(), "--json")


def test_a_size_of_half_a_pair_is_refused_by_argparse(place: Path) -> None:
    for text in ("x126", "126x", "126x126x126", "1e3"):
        with pytest.raises(SystemExit) as error:
            main(["run", "bundle", "photo.png", "--size", text])
        assert error.value.code == 2


# ---- engines that are not to be had


@pytest.mark.skipif(not find_gpus()[1] or bool(find_gpus()[0]), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["run bundle photo.png", "verify bundle", "parity bundle --checkpoint model.pt"])
def test_tensorrt_rtx_without_a_gpu_is_refused_before_it_builds(command: str, refused: Refused) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")
    message = refused(*command.split(), "--engine", "tensorrt-rtx")
    assert "tensorrt-rtx: no NVIDIA GPU here" in message
    assert "use --engine openvino" in message


@pytest.mark.parametrize(
    ("engine", "module"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("tensorrt", "tensorrt")]
)
@pytest.mark.parametrize("command", ["run bundle photo.png", "build bundle", "verify bundle"])
def test_an_engine_that_is_not_installed_names_its_extra(
    engine: str, module: str, command: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install '.[{engine}]' in the clone" in refused(*command.split(), "--engine", engine)


def test_onnxruntime_without_cuda_is_not_replaced_by_the_cpu(refused: Refused) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    message = refused("run", "bundle", "photo.png", "--engine", "onnxruntime", "--device", "0")
    assert "no CUDA execution provider for --device 0; pip uninstall onnxruntime, then pip install" in message


@pytest.mark.parametrize("command", ["export model.pt -o new", "make-checkpoint lookwhere-dinov2 -o new.pt"])
def test_export_without_its_tools_names_the_extra(command: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused(*command.split()) == "torch cannot be imported; pip install '.[export]' in the clone"


# ---- images


def png(width: int, height: int, *, depth: int = 8, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(array: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
GLASS = np.dstack([COLOURS, np.full((40, 50), 128, np.uint8)])
IMAGES = {
    "empty": (b"", "image is empty"),
    "text": (b"hello", "image is not an image that Pillow can read"),
    "cut jpeg": (encoded(COLOURS, "JPEG")[:-300], "image: damaged or truncated image"),
    "cut png": (encoded(COLOURS, "PNG")[:-300], "image: damaged or truncated image"),
    "16 bits": (encoded(COLOURS[..., 0].astype(np.uint16), "PNG"), "image: I;16 images are not accepted"),
    "16 bits of colour": (png(2, 1, depth=16, data=bytes(13)), "image: 16-bit RGB images are not accepted"),
    "cmyk": (encoded(COLOURS, "JPEG", "CMYK"), "image: CMYK images are not accepted"),
    "float": (encoded(COLOURS[..., 0].astype(np.float32), "TIFF"), "image: F images are not accepted"),
    "translucent": (encoded(GLASS, "PNG"), "image is translucent; put it on a background first"),
    "bomb": (png(20_000, 20_000), "image: more than 178 megapixels; make it smaller first"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_cannot_be_used_is_one_line(case: str, refused: Refused, place: Path) -> None:
    content, message = IMAGES[case]
    (place / "image").write_bytes(content)
    assert refused("run", "bundle", "photo.png", "image", "-o", "out.npz", "--overlay", "out.png").startswith(message)


def test_a_missing_image_and_a_folder_are_one_line(refused: Refused) -> None:
    assert refused("run", "bundle", "gone.png") == "gone.png: no such image file"
    assert refused("run", "bundle", "photos.png", "--skip-unreadable") == "photos.png: no such image file"
    assert refused("run", "bundle", "bundle").startswith("IMAGE bundle: holds no images (.bmp, .jpeg, ")
    message = refused("parity", "bundle", "--checkpoint", "model.pt", "--images", "model.pt")
    assert message.startswith("model.pt is not an image")


# ---- bundles


def edit_manifest(bundle: Path, old: str, new: str) -> None:
    text = (bundle / "bundle.json").read_text()
    assert old in text
    (bundle / "bundle.json").write_text(text.replace(old, new))


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda b: (b / "bundle.json").unlink(), "bundle/bundle.json is missing: bundle is not a bundle, or its"),
    "cut manifest": (lambda b: os.truncate(b / "bundle.json", 900), "bundle/bundle.json: not a manifest (Input data was tr"),
    "empty manifest": (lambda b: os.truncate(b / "bundle.json", 0), "bundle/bundle.json: not a manifest"),
    "newer format": (
        lambda b: edit_manifest(b, '"format": 1', '"format": 2'),
        "bundle/bundle.json: bundle format 2, but this saccade reads format 1; upgrade saccade",
    ),
    "older format": (lambda b: edit_manifest(b, '"format": 1', '"format": 0'), "format 1; export the bundle again"),
    "unknown field": (lambda b: edit_manifest(b, '"format": 1', '"format": 1, "x": 1'), "contains unknown field `x`"),
    "path outside": (lambda b: edit_manifest(b, '"selector.onnx"', '"../photo.png"'), "matching regex"),
    "other task": (lambda b: edit_manifest(b, '"features"', '"segment"'), "task segment with 0 classes; export the bundle"),
    "graph missing": (lambda b: (b / "selector.onnx").unlink(), "bundle/selector.onnx is missing, but bundle/bundle.json"),
    "graph cut": (lambda b: os.truncate(b / "extractor.onnx", 5000), "bundle/extractor.onnx was changed or cut short"),
    "positions cut": (lambda b: os.truncate(b / "positions.npy", 500), "bundle/positions.npy was changed or cut short"),
    "positions missing": (lambda b: (b / "positions.npy").unlink(), "bundle/positions.npy is missing"),
}


@pytest.mark.parametrize("command", ["run bundle photo.png -o out.npz", "verify bundle", "inspect bundle"])
@pytest.mark.parametrize("case", EDITS)
def test_a_damaged_bundle_is_one_line(case: str, command: str, refused: Refused, place: Path) -> None:
    edit, message = EDITS[case]
    edit(place / "bundle")
    assert message in refused(*command.split())


@pytest.mark.parametrize(
    "command", ["build bundle", "bench bundle --rounds 1 --frames 1", "parity bundle --checkpoint model.pt"]
)
def test_a_truncated_graph_is_one_line_for_every_command(command: str, refused: Refused, place: Path) -> None:
    os.truncate(place / "bundle/extractor.onnx", 5000)
    assert "bundle/extractor.onnx was changed or cut short" in refused(*command.split())


def test_golden_images_that_are_damaged_or_missing_are_one_line(refused: Refused, place: Path) -> None:
    os.truncate(place / "bundle/golden.npz", 5000)
    assert "bundle/golden.npz was changed or cut short" in refused("verify", "bundle")
    (place / "bundle/golden.npz").unlink()
    assert "bundle/golden.npz is missing" in refused("verify", "bundle")
    assert "bundle/golden.npz is missing" in refused("parity", "bundle", "--checkpoint", "model.pt")


def test_a_damaged_engine_is_one_line(refused: Refused, place: Path) -> None:
    (engine,) = (place / "bundle/engines").iterdir()
    os.truncate(engine / "selector.blob", 1000)
    message = refused("run", "bundle", "photo.png")
    assert "selector.blob was changed or cut short" in message
    assert message.endswith(f"delete bundle/engines/{engine.name} and build again")
    (engine / "receipt.json").write_text("{}")
    assert "receipt.json: Object missing required field" in refused("verify", "bundle")


# ---- checkpoints


class Code:
    """Something that would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def torch_file(content: object) -> bytes:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def tensor(*shape: int) -> object:
    return pytest.importorskip("torch").zeros(shape)


CHECKPOINTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda good: b"hello", "bad.pt is not a PyTorch checkpoint; give a .pt file of tensors"),
    "image": (lambda good: encoded(COLOURS, "PNG"), "bad.pt is not a PyTorch checkpoint"),
    "empty": (lambda good: b"", "bad.pt is empty; copy it again"),
    "cut": (lambda good: good[: len(good) // 2], "bad.pt is truncated or not a PyTorch checkpoint"),
    "code": (lambda good: torch_file({"selector": Code()}), "bad.pt holds objects other than tensors, which could run code"),
    "list": (lambda good: torch_file([tensor(2)]), "bad.pt holds a list, not a dict of tensors"),
    "another model": (lambda good: torch_file({"fc.weight": tensor(2, 2)}), "no 'selector' weights, so not a LookWhere"),
    "numbers": (lambda good: torch_file({"selector": {"epoch": 3}}), "not a floating-point tensor"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_one_line(case: str, refused: Refused, place: Path) -> None:
    change, message = CHECKPOINTS[case]
    (place / "bad.pt").write_bytes(change((place / "model.pt").read_bytes()))
    assert message in refused("export", "bad.pt", "-o", "new")
    # Only what the bundle was made of is opened there, so that nothing else is read at all.
    assert "bad.pt is not the checkpoint that bundle was made of" in refused("parity", "bundle", "--checkpoint", "bad.pt")


def test_a_missing_checkpoint_names_the_way_to_one(refused: Refused) -> None:
    message = "gone.pt: no such checkpoint file; 'saccade make-checkpoint' writes one to try things with"
    assert refused("export", "gone.pt", "-o", "new") == message
    assert refused("parity", "bundle", "--checkpoint", "gone.pt") == message


def test_a_head_needs_its_task_named(refused: Refused, place: Path, small_checkpoint: Callable[[str], Path]) -> None:
    shutil.copy(small_checkpoint("segment"), place / "head.pt")
    message = refused("export", "head.pt", "-o", "new")
    assert "head.pt has a head of 7 classes" in message
    assert "say --task classify or --task segment" in message


@pytest.mark.parametrize("kept", [["--k", 4], ["--k-ratio", 0.05], ["--size", 84]])
def test_too_few_patches_for_segmentation_are_refused_before_anything_is_traced(
    kept: list[object], refused: Refused, place: Path, small_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copy(small_checkpoint("segment"), place / "head.pt")
    monkeypatch.setattr("saccade.export.bundle_export.write_bundle", lambda *_: pytest.fail("traced for nothing"))
    message = refused("export", "head.pt", "-o", "new", "--task", "segment", *kept)
    assert "is too small for dense output, which blends the 5 nearest patches; give at least 5" in message


def test_an_unknown_target_of_tensorrt_rtx_names_the_known_ones(refused: Refused) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")
    message = refused("build", "bundle", "--engine", "tensorrt-rtx", "--compute-capability", "SM12")
    assert message.startswith("tensorrt-rtx: no compute capability 'SM12'; choose from SM75, ")


def test_paths_that_are_not_utf8_are_one_line(refused: Refused, place: Path) -> None:
    odd = os.fsdecode(b"b\xff")
    remedy = "its path is not UTF-8, which engines cannot open; rename its folder"
    assert refused("export", "model.pt", "-o", odd) == f"b\\udcff: {remedy}"
    (place / "bundle").rename(place / odd)
    for command in (["run", odd, "photo.png"], ["build", odd, "--engine", "onnxruntime"], ["verify", odd]):
        assert refused(*command) == f"b\\udcff: {remedy}"


@pytest.mark.parametrize("shared", [True, False], ids=["builds", "exports"])
def test_an_export_stops_where_another_process_works(refused: Refused, shared: bool) -> None:
    with locks.reserved(Path("bundle"), "busy", shared=shared):
        message = refused("export", "model.pt", "-o", "bundle")
    assert message == (
        "bundle is being exported or built by another process; repeat when it is done, or choose another place"
    )


def test_a_build_stops_where_an_export_is_under_way(refused: Refused) -> None:
    with locks.reserved(Path("bundle"), "busy"):
        message = refused("build", "bundle", "--engine", "onnxruntime")
    assert message == "bundle is being exported or converted by another process; repeat when it is done"


def test_parity_with_another_checkpoint_is_refused(
    refused: Refused, place: Path, small_checkpoint: Callable[[str], Path]
) -> None:
    shutil.copy(small_checkpoint("franca"), place / "other.pt")
    before = (place / "bundle/bundle.json").read_bytes()
    message = refused("parity", "bundle", "--checkpoint", "other.pt", "--report", "report.html")
    assert message == "other.pt is not the checkpoint that bundle was made of; give that file, or export again"
    assert (place / "bundle/bundle.json").read_bytes() == before


NOTHING_LOADED = {
    "no torch": Fault("--checkpoint model.pt", "the checkpoint is run in torch; pip install '.[export]' in the clone"),
    "no polygraphy": Fault("--checkpoint model.pt", "polygraphy cannot be imported; pip install '.[polygraphy]'"),
    "no checkpoint": Fault("--checkpoint gone.pt", "gone.pt: no such checkpoint file"),
    "damaged checkpoint": Fault("--checkpoint text.png", "text.png is not the checkpoint that bundle was made of"),
    "other checkpoint": Fault("--checkpoint other.pt", "other.pt is not the checkpoint that bundle was made of"),
    "no images": Fault("--checkpoint model.pt --images gone", "--images gone: no such file or folder"),
    "no image": Fault("--checkpoint model.pt --images mixed", "mixed/text.png is not an image that Pillow can read"),
    "size without images": Fault("--checkpoint model.pt --size 70", "are for images of your own; give --images DIR too"),
    "no golden": Fault("--checkpoint model.pt", "bundle/golden.npz is missing"),
}


@pytest.mark.parametrize("case", NOTHING_LOADED)
def test_what_parity_is_given_is_checked_before_an_engine_is_built(
    case: str, refused: Refused, place: Path, small_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.cli.options.load", lambda *_, **__: pytest.fail("loaded for nothing"))
    shutil.copy(small_checkpoint("franca"), place / "other.pt")
    (place / "mixed").mkdir()
    shutil.copy(place / "small.png", place / "mixed/a.png")
    for name in ("text.png", "mixed/text.png"):
        (place / name).write_text("hello")
    if case.startswith("no ") and (module := case.removeprefix("no ")) in ("torch", "polygraphy"):
        monkeypatch.delitem(sys.modules, "saccade.validate.tensors", raising=False)
        for name in [name for name in sys.modules if name.split(".")[0] == module]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, module, None)
    if case == "no golden":
        (place / "bundle/golden.npz").unlink()
    assert NOTHING_LOADED[case].message in refused("parity", "bundle", *NOTHING_LOADED[case].arguments.split())


# ---- places that cannot be written


WRITERS = {
    "run -o": "run bundle photo.png -o {}/out.npz",
    "run --overlay": "run bundle photo.png --overlay {}/out.png",
    "export": "export model.pt -o {}/new",
    "make-checkpoint": f"make-checkpoint lookwhere-dinov2 -o {{}}/new.pt {' '.join(SMALL)}",
    "parity --report": "parity bundle --checkpoint model.pt --images small.png --size 28 --k 4 --report {}/report.html",
    "parity --results": "parity bundle --checkpoint model.pt --images small.png --size 28 --k 4 --results {}/results",
    "bench": "bench bundle --rounds 1 --frames 1 -o {}/bench.json",
}


@pytest.mark.parametrize("writer", sorted(set(WRITERS) - {"parity --results"}))
def test_an_output_in_a_missing_folder_is_one_line(writer: str, refused: Refused) -> None:
    message = refused(*WRITERS[writer].format("gone").split())
    assert message.startswith("cannot write gone/")
    assert message.endswith("its folder does not exist; create it first")


@pytest.mark.parametrize("writer", WRITERS)
def test_an_output_below_a_file_is_one_line(writer: str, refused: Refused) -> None:
    assert refused(*WRITERS[writer].format("model.pt").split()).startswith("cannot write model.pt/")


def test_an_output_that_is_a_folder_is_one_line(refused: Refused, place: Path) -> None:
    for name in ("folder.npz", "folder.png", "folder.pt"):
        (place / name).mkdir()
    folder = "it is a folder; name a file"
    assert refused("run", "bundle", "photo.png", "-o", "folder.npz") == f"cannot write folder.npz: {folder}"
    assert refused("run", "bundle", "photo.png", "--overlay", "folder.png") == f"cannot write folder.png: {folder}"
    assert refused("make-checkpoint", "lookwhere-dinov2", "-o", "folder.pt", *SMALL) == f"cannot write folder.pt: {folder}"


@pytest.mark.parametrize(("option", "suffix"), [("-o", ".npz"), ("--overlay", ".png")])
def test_an_output_named_as_something_else_is_one_line(option: str, suffix: str, refused: Refused) -> None:
    message = f"{option} out.txt: it is written as {suffix}; end the name so"
    assert refused("run", "bundle", "photo.png", option, "out.txt") == message


def test_outputs_of_run_are_checked_before_anything_is_loaded(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.cli.options.load", lambda *_, **__: pytest.fail("loaded for nothing"))
    for arguments in (["-o", "gone/out.npz"], ["--overlay", "gone/out.png"], ["-o", "out.txt"], ["--look", "--dense"]):
        refused("run", "bundle", "photo.png", *arguments)


@pytest.mark.parametrize("option", ["-o disk/b.json", "--markdown disk/b.md", "--plots disk", "--plots disk/new"])
def test_places_that_cannot_be_written_are_known_before_anything_is_timed(
    option: str, refused: Refused, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of turns would end in one line otherwise."""
    monkeypatch.setattr("saccade.validate.bench.build_missing", lambda *_: pytest.fail("built for nothing"))
    read_only(disk)
    assert "the file system is read-only; choose a place" in refused("bench", "bundle", *option.split())


@pytest.mark.parametrize("target", ["photo.png", "full"], ids=["a file", "a folder of something else"])
def test_export_never_replaces_what_is_no_bundle(target: str, refused: Refused, place: Path) -> None:
    (place / "full").mkdir()
    (place / "full/thesis.tex").write_text("years of work")
    message = refused("export", "model.pt", "-o", target)
    assert message == f"{target} exists and is not a bundle; choose another place or remove it"


def mounted(*arguments: str) -> None:
    """Run mount, or skip where a test may not mount (it needs root and the capability for it)."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no one mount")


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """Return `disk`, a mounted file system of 20 kB, which none of the outputs fit on."""
    (place / "disk").mkdir()
    mounted("-t", "tmpfs", "-o", "size=20k", "tmpfs", str(place / "disk"))
    yield place / "disk"
    subprocess.run(["umount", place / "disk"], check=True)


def read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def size_of(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_output_on_a_read_only_disk_is_one_line(writer: str, refused: Refused, disk: Path) -> None:
    read_only(disk)
    message = refused(*WRITERS[writer].format("disk").split())
    assert message.startswith("cannot write disk/")
    assert message.endswith("the file system is read-only; choose a place that can be written")


def test_a_bundle_on_a_read_only_disk_is_one_line(refused: Refused, disk: Path) -> None:
    size_of(disk, "8m")
    shutil.copytree("bundle", disk / "bundle", ignore=shutil.ignore_patterns("engines"))
    read_only(disk)
    for command in ("build disk/bundle", "run disk/bundle photo.png", "build disk/bundle --engine onnxruntime"):
        message = refused(*command.split())
        assert message == (
            "cannot write disk/bundle/engines: the file system is read-only; copy the bundle to a place that can be written"
        )


@pytest.mark.parametrize("has_engines", [False, True])
def test_a_bundle_that_belongs_to_somebody_else_is_one_line_with_what_to_do(
    has_engines: bool, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that root has installed: with the engines of others, or with none."""
    shutil.copytree("bundle", "theirs", ignore=shutil.ignore_patterns("engines"))
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def deny(*_: object, **__: object) -> object:
        raise denied

    if has_engines:
        (place / "theirs/engines").mkdir()
        monkeypatch.setattr("saccade.atomic.tempfile.TemporaryFile", deny)
    else:
        monkeypatch.setattr(Path, "mkdir", deny)
    for command in ("build theirs --engine onnxruntime", "run theirs photo.png --engine onnxruntime"):
        message = refused(*command.split())
        assert message == (
            "cannot write theirs/engines: permission denied; run it as a user who may write there, or copy the bundle"
        )


def test_parity_on_a_read_only_bundle_still_gives_its_verdict(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    size_of(disk, "16m")
    shutil.copytree("bundle", disk / "bundle")
    read_only(disk)
    assert main(["parity", "disk/bundle", "--checkpoint", "model.pt", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["passed"] is True
    assert "the verdict was not kept in the bundle: cannot write disk/bundle: the file system is read-only; copy" in err


@pytest.mark.parametrize("writer", sorted(set(WRITERS) - {"bench"}))  # which writes less than the smallest disk holds
def test_an_output_on_a_full_disk_is_one_line(writer: str, refused: Refused, disk: Path) -> None:
    larger = ["--size", "518", "--dense"] if writer.startswith("run") else []
    leaves = ("disk/results",) if writer == "parity --results" else ()  # a folder, empty until a file is whole
    message = refused(*WRITERS[writer].format("disk").split(), *larger, leaves=leaves)
    assert message.startswith("cannot write disk/")
    assert message.endswith("the disk is full; free some space and repeat")


@pytest.mark.parametrize("size", ["300k", "1m"])
def test_a_checkpoint_that_only_begins_to_fit_is_one_line(size: str, refused: Refused, disk: Path) -> None:
    """The disk fills up in the middle of the archive and not at its first byte."""
    size_of(disk, size)
    message = refused("make-checkpoint", "lookwhere-dinov2", "-o", "disk/new.pt", "--dim", 128, "--depth", 1, "--grid", 3)
    assert message == "cannot write disk/new.pt: the disk is full; free some space and repeat"


def test_an_output_that_fails_keeps_the_older_one(refused: Refused, disk: Path) -> None:
    (disk / "out.npz").write_bytes(b"older")
    refused("run", "bundle", "photo.png", "--size", 518, "--dense", "-o", "disk/out.npz")
    assert (disk / "out.npz").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("writer", "code", "reason"),
    [(writer, errno.EROFS, "the file system is read-only") for writer in WRITERS]
    + [("run -o", errno.ENOSPC, "the disk is full"), ("export", errno.EDQUOT, "the disk quota is used up")],
)
def test_any_output_that_cannot_be_opened_is_one_line(
    writer: str, code: int, reason: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a mounted disk, so that it is tested everywhere."""
    open_, mkdir = Path.open, Path.mkdir
    problem = OSError(code, os.strerror(code))

    def refuse_writing(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if "w" in mode:
            raise problem
        return open_(path, mode, *rest, **options)

    def refuse_making(path: Path, *rest: object, **options: object) -> None:
        if not path.exists():
            raise problem
        mkdir(path, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse_writing)
    monkeypatch.setattr(Path, "mkdir", refuse_making)
    message = refused(*WRITERS[writer].format(".").split())
    assert message.startswith("cannot write ")
    assert reason in message


# ---- stdout and interrupts


def test_a_full_disk_behind_stdout_is_one_line(place: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*CLI, "inspect", "bundle"], check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_stops_early_is_no_error(place: Path) -> None:
    """As `saccade inspect bundle | head -1` does."""
    process = subprocess.Popen([*CLI, "inspect", "bundle"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.wait()
    assert "Traceback" not in err
    assert "BrokenPipeError" not in err


def test_ctrl_c_is_one_line_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.rmtree("bundle/engines")
    before = tree(place)
    monkeypatch.setattr(openvino_engine, "_bytes", interrupt)
    for command in ("build bundle", "run bundle photo.png -o out.npz"):
        assert main(command.split()) == 130
        out, err = capfd.readouterr()
        assert out == ""
        assert err.splitlines()[-1] == "saccade: interrupted; nothing half-written was left behind"
    shutil.rmtree("bundle/engines")
    assert tree(place) == before


def test_ctrl_c_in_the_middle_of_an_output_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(rows: io.IOBase, member: io.IOBase) -> None:
        member.write(rows.read(4))
        raise KeyboardInterrupt

    before = tree(place)
    monkeypatch.setattr(npz_rows.shutil, "copyfileobj", interrupt)
    assert main(["run", "bundle", "photo.png", "-o", "out.npz"]) == 130
    assert tree(place) == before


@pytest.mark.parametrize("error", [RuntimeError("a bug of ours"), MemoryError()])
def test_a_bug_shows_its_traceback(error: Exception, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only SaccadeError is a user's problem: anything else must not be dressed up as one."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(create.store, "ensure", fail)
    with pytest.raises(type(error)):
        main(["build", "bundle"])
