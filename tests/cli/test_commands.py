"""Every command, as a person and as a program uses it: exit codes, what stands on stdout, and what is written."""
from __future__ import annotations

import html.parser
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import saccade
from saccade import read_bundle
from saccade.atomic import PENDING_PREFIX
from saccade.bundle import DataFile, sha256_of_file, write_manifest
from saccade.cli.main import main
from saccade.cli.run import CHUNK, MOST_PICTURED
from saccade.engines import store
from saccade.engines.engine import default_request
from saccade.engines.openvino import OpenVINOEngine
from saccade.golden import read_cases, write_cases
from saccade.runtime import chain
from saccade.runtime import pipeline as images_of_pipeline
from saccade.runtime.sheet import GAP, caption_height

KINDS = ("dinov2", "franca", "classify", "segment")
SMALL = ["--dim", "64", "--depth", "1", "--selector-depth", "1", "--grid", "3"]
SIDE, GRID, DIM = 126, 9, 128
CLI = [sys.executable, "-m", "saccade"]

Bundles = Callable[[str], Path]
Say = Callable[..., str]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a command, checks its exit code, and returns its stdout."""

    def run(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capfd.readouterr().out

    return run


def parsed(out: str) -> dict[str, Any]:
    """Return the one JSON object that stdout must be, on one line and with nothing beside it."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    data = json.loads(out)
    assert isinstance(data, dict)
    return data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> list[Path]:
    """Return both photographs as files, one of them damped by JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "china.png", folder / "flower.jpg"]
    for path, image in zip(paths, photographs, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def copy(small_bundle: Bundles, tmp_path: Path) -> Path:
    """Return a copy of the small bundle, without engines."""
    return shutil.copytree(small_bundle("dinov2"), tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))


# ---- stdout and stderr


@pytest.fixture
def arguments_of(
    small_bundle: Bundles, small_checkpoint: Bundles, copy: Path, photos: list[Path], tmp_path: Path
) -> dict[str, list[object]]:
    bundle, checkpoint = small_bundle("dinov2"), small_checkpoint("dinov2")
    return {
        "make-checkpoint": ["make-checkpoint", "lookwhere-dinov2", "-o", tmp_path / "new.pt", *SMALL],
        "build": ["build", bundle],
        "run": ["run", bundle, *photos, "-o", tmp_path / "out.npz", "--overlay", tmp_path / "out.png"],
        "run --look": ["run", bundle, photos[0], "--look"],
        "verify": ["verify", copy],
        "parity": ["parity", copy, "--checkpoint", checkpoint, "--report", tmp_path / "report.html"],
        "bench": ["bench", bundle, "--rounds", 1, "--frames", 2, "-o", tmp_path / "bench.json"],
        "inspect": ["inspect", bundle],
        "doctor": ["doctor"],
    }


COMMANDS = ("make-checkpoint", "build", "run", "run --look", "verify", "parity", "bench", "inspect", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_stdout_is_one_object(command: str, arguments_of: dict[str, list[object]], say: Say) -> None:
    data = parsed(say(*arguments_of[command], "--json"))
    assert "error" not in data


@pytest.mark.parametrize("command", COMMANDS)
def test_without_json_stdout_is_lines_for_people(command: str, arguments_of: dict[str, list[object]], say: Say) -> None:
    lines = say(*arguments_of[command]).splitlines()
    assert lines
    assert all(line.strip() or line == "" for line in lines)
    assert not any(line.startswith(("{", "Traceback", "[W]", "[I]")) for line in lines)
    assert "\r" not in "".join(lines)  # progress bars live on stderr


def test_what_json_cannot_hold_becomes_null(monkeypatch: pytest.MonkeyPatch, say: Say) -> None:
    found = {"nan": float("nan"), "deep": [{"inf": float("inf")}, (1.5, np.float64("-inf"))], "word": "NaN", "yes": True}
    monkeypatch.setattr("saccade.validate.doctor.diagnose", lambda: found)
    monkeypatch.setattr("saccade.validate.doctor.lines", lambda data: [])
    expected = {"nan": None, "deep": [{"inf": None}, [1.5, None]], "word": "NaN", "yes": True}
    assert parsed(say("doctor", "--json")) == expected


def test_what_is_not_a_terminal_gets_no_moving_bar(small_bundle: Bundles, photos: list[Path]) -> None:
    done = subprocess.run([*CLI, "run", small_bundle("dinov2"), photos[0]], check=True, capture_output=True)
    assert b"\r" not in done.stderr


def test_options_that_argparse_refuses_exit_with_two(say: Say) -> None:
    with pytest.raises(SystemExit) as error:
        say("run")
    assert error.value.code == 2


def test_the_installed_command_answers_like_the_module() -> None:
    command = Path(sys.executable).with_name("saccade")
    if not command.exists():
        pytest.skip("saccade is not installed as a command beside this Python")
    done = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"saccade {saccade.__version__}\n"


NO_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript", "polygraphy", "sklearn"):
    sys.modules[name] = None
from saccade.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["build", "run", "verify", "bench", "inspect", "doctor"])
def test_what_a_device_needs_works_without_torch_and_onnx(command: str, arguments_of: dict[str, list[object]]) -> None:
    arguments = [str(argument) for argument in arguments_of[command]]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- run


def expected_arrays(kind: str, images: int, k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    prefix, width = (1 if kind == "franca" else 5), (7 if kind == "segment" else DIM)
    shapes: dict[str, tuple[int, ...]] = {"score_map": (images, GRID, GRID), "prefix": (images, prefix, DIM)}
    shapes |= {"tokens": (images, k, width), "dense": (images, width, GRID, GRID)}
    shapes |= {"classify": {"logits": (images, 10)}, "segment": {}}.get(kind, {"cls": (images, DIM)})
    return {name: ("float32", shape) for name, shape in shapes.items()} | {"indices": ("int32", (images, k))}


@pytest.mark.parametrize("kind", KINDS)
def test_run_writes_the_arrays_of_its_task(
    kind: str, small_bundle: Bundles, photos: list[Path], photographs: list[np.ndarray], say: Say, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    data = parsed(say("run", small_bundle(kind), *photos, "--k", 12, "--dense", "-o", out, "--json"))
    with np.load(out, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    assert arrays.pop("images").tolist() == [str(path) for path in photos]
    found = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    assert found == expected_arrays(kind, images=2, k=12)
    assert data["outputs"] == {name: list(array.shape) for name, array in arrays.items()}
    with saccade.load(small_bundle(kind)) as pipe:
        for name, array in pipe(photographs[0], k=12, dense=True).arrays().items():
            np.testing.assert_allclose(arrays[name][:1], array, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_run_fills_every_cell_only_on_request_but_always_for_segment(
    kind: str, small_bundle: Bundles, photos: list[Path], say: Say
) -> None:
    data = parsed(say("run", small_bundle(kind), photos[0], "--json"))
    assert ("dense" in data["outputs"]) == (kind == "segment")


def test_run_reports_what_ran_and_how_long(small_bundle: Bundles, photos: list[Path], say: Say) -> None:
    data = parsed(say("run", small_bundle("dinov2"), *photos, "--engine", "onnxruntime", "--json"))
    assert data["images"] == [str(path) for path in photos]
    assert (data["engine"], data["precision"]) == ("onnxruntime", "fp32")
    assert {"decode", "fit", "resize", "selector", "select", "gather", "extractor"} <= data["ms_per_image"].keys()
    assert data["peak_memory_mb"] > 1


def test_run_on_a_static_pair_without_tokens_gives_the_same_cls(
    small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    plain, fast = tmp_path / "plain.npz", tmp_path / "fast.npz"
    words = ["run", small_bundle("dinov2"), *photos, "--k", 12]
    data = parsed(say(*words, "-o", plain, "--json"))
    assert (data["static_k"], data["cls_only"]) == (None, False)
    data = parsed(say(*words, "--static", "--cls-only", "-o", fast, "--json"))
    assert (data["static_k"], data["cls_only"]) == (12, True)
    with np.load(plain) as expected, np.load(fast) as found:
        assert set(found.files) == set(expected.files) - {"tokens"}
        np.testing.assert_allclose(found["cls"], expected["cls"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("options", "k"), [([], 8), (["--size", "70x140"], 5), (["--k-ratio", "0.2"], 16)])
def test_the_static_k_of_a_run_is_the_runs_own(
    options: list[str], k: int, small_bundle: Bundles, photos: list[Path], say: Say
) -> None:
    assert parsed(say("run", small_bundle("dinov2"), photos[0], "--static", *options, "--json"))["static_k"] == k


def test_verify_judges_the_static_pair(copy: Path, say: Say) -> None:
    plain = parsed(say("verify", copy, "--json"))
    assert "static_k" not in plain
    data = parsed(say("verify", copy, "--static", "--json"))
    assert (data["passed"], data["static_k"], data["key"]) == (True, 8, plain["key"])
    assert data["static_key"] != data["key"]
    assert say("verify", copy, "--static").startswith("openvino fp32 static k=8 equals PyTorch on ")


def test_the_engine_without_tokens_is_judged_by_all_else(
    copy: Path, small_checkpoint: Bundles, photo_folder: Path, say: Say, tmp_path: Path
) -> None:
    photos = shutil.copytree(photo_folder, tmp_path / "photos", ignore=lambda _, names: sorted(names)[2:])
    of_tokens = {"patches", "patches_p1"}
    plain = parsed(say("verify", copy, "--json"))
    fast = parsed(say("verify", copy, "--cls-only", "--json"))
    assert (fast["passed"], fast["cls_only"]) == (True, True)
    assert plain["measures"].keys() - fast["measures"].keys() == of_tokens
    command = ["parity", copy, "--checkpoint", small_checkpoint("dinov2"), "--images", photos]
    said = say(*command, "--static", "--cls-only", "--k", 12, "--report", tmp_path / "p.html", "--results", tmp_path / "r")
    assert said.startswith("openvino fp32 static k=12 cls-only equals PyTorch on 2 images")
    assert "static k" in (tmp_path / "p.html").read_text()
    say(*command)
    say(*command, "--static", "--cls-only", "--k", 12)
    # Beside the export's verdict, which is on another engine: each replaces the last one on its own form of the engine.
    kept = [verdict for verdict in read_bundle(copy).manifest.parity if verdict["engine"] == "openvino"]
    forms = [(verdict["command"], verdict.get("static_k"), verdict.get("cls_only")) for verdict in kept]
    assert forms == [("verify", None, None), ("verify", None, True), ("parity", None, None), ("parity", 12, True)]
    assert all(verdict["passed"] for verdict in kept)
    assert of_tokens <= kept[0]["measures"].keys()
    assert "  parity: openvino fp32 static k=12 cls-only equal to PyTorch on 2 images" in say("inspect", copy)


def test_an_engine_without_tokens_that_differs_fails(copy: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OpenVINOEngine._run
    monkeypatch.setattr(
        OpenVINOEngine, "_run", lambda self, feed: {name: array + 0.05 for name, array in run(self, feed).items()}
    )
    data = parsed(say("verify", copy, "--cls-only", "--json", code=1))
    assert not data["measures"]["cls"]["passed"]
    assert not data["measures"]["free_running"]["passed"]


@pytest.mark.parametrize(("options", "k"), [((), 8), (("--k-ratio", "0.2"), 16), (("--size", "140"), 10)])
def test_the_static_k_of_parity_is_that_of_its_images(
    options: tuple[str, ...], k: int, copy: Path, small_checkpoint: Bundles, photo_folder: Path, say: Say
) -> None:
    command = ["parity", copy, "--checkpoint", small_checkpoint("dinov2"), "--images", photo_folder / "00.png"]
    assert parsed(say(*command, "--static", *options, "--json"))["static_k"] == k


@pytest.mark.parametrize("options", [["--static"], ["--static", "--k", "12"], ["--static", "--cls-only"]])
def test_a_static_build_says_its_shape(options: list[str], copy: Path, say: Say) -> None:
    data = parsed(say("build", copy, *options, "--json"))
    assert data["conditions"]["static_k"] == ("12" if "--k" in options else "8")
    assert ("cls_only" in data["conditions"]) == ("--cls-only" in options)
    assert f"static at batch 1 and k {data['conditions']['static_k']}" in data["realised"]
    assert parsed(say("build", copy, *options, "--json"))["built"] is False


def test_run_takes_more_images_than_it_runs_at_once(
    small_bundle: Bundles, photographs: list[np.ndarray], say: Say, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(CHUNK + 3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(photographs[0], 40 * i, axis=1)).save(path)
    say("run", small_bundle("dinov2"), *paths, "-o", tmp_path / "all.npz")
    say("run", small_bundle("dinov2"), paths[-1], "-o", tmp_path / "last.npz")
    with np.load(tmp_path / "all.npz") as together, np.load(tmp_path / "last.npz") as alone:
        assert together["cls"].shape == (CHUNK + 3, DIM)
        np.testing.assert_allclose(together["cls"][-1:], alone["cls"], rtol=1e-4, atol=2e-5)


def test_a_folder_stands_for_its_images_in_order_of_their_names(
    small_bundle: Bundles, photo_folder: Path, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.PNG", "a.png", "deeper/c.png"):
        shutil.copy(photo_folder / "00.png", folder / name)
    (folder / "notes.txt").write_text("no image")
    expected = [str(path) for path in (photos[1], folder / "a.png", folder / "b.PNG", photos[0])]
    out = tmp_path / "out.npz"
    command = ["run", small_bundle("classify"), photos[1], folder, photos[0]]
    data = parsed(say(*command, "-o", out, "--json"))
    assert data["images"] == expected
    assert data["unreadable"] == {}
    with np.load(out, allow_pickle=False) as stored:
        assert stored["images"].tolist() == expected
        np.testing.assert_array_equal(stored["logits"][1], stored["logits"][2])
        best = [top[0]["class"] for top in data["top"]]
        assert stored["logits"].argmax(axis=1).tolist() == best
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.npz"]


def test_what_cannot_be_read_is_left_out_on_request_alone(
    small_bundle: Bundles, photo_folder: Path, say: Say, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{i:02}.png" for i in range(CHUNK + 4)]
    for path in paths:
        shutil.copy(photo_folder / "00.png", path)
    bad = {paths[0]: b"hello", paths[CHUNK + 1]: b""}
    for path, content in bad.items():
        path.write_bytes(content)
    out = tmp_path / "out.npz"
    assert main(["run", str(small_bundle("dinov2")), str(tmp_path), "-o", str(out)]) == 1
    assert capfd.readouterr().err.endswith(f"saccade: error: {paths[0]} is not an image that Pillow can read\n")
    assert not out.exists()
    command = ["run", small_bundle("dinov2"), tmp_path, "-o", out, "--skip-unreadable"]
    data = parsed(say(*command, "--json"))
    assert data["images"] == [str(path) for path in paths if path not in bad]
    assert data["unreadable"] == {
        str(paths[0]): f"{paths[0]} is not an image that Pillow can read",
        str(paths[CHUNK + 1]): f"{paths[CHUNK + 1]} is empty",
    }
    assert data["outputs"]["cls"] == [CHUNK + 2, DIM]
    with np.load(out) as stored:
        assert stored["images"].tolist() == data["images"]
        assert {len(stored[name]) for name in stored.files} == {CHUNK + 2}
    lines = say(*command).splitlines()
    assert f"left out: {paths[CHUNK + 1]} is empty" in lines
    assert f"2 images could not be read and are left out, {CHUNK + 2} are not" in lines
    shutil.copy(photo_folder / "00.png", paths[0])
    assert f"1 image could not be read and is left out, {CHUNK + 3} are not" in say(*command).splitlines()


def test_links_that_lead_nowhere_are_left_out_as_other_bad_images_are(
    small_bundle: Bundles, photo_folder: Path, say: Say, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out.npz"
    folder.mkdir()
    shutil.copy(photo_folder / "00.png", folder / "a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    out.touch()  # what is written over is compared with every image
    command = ["run", small_bundle("dinov2"), folder, "-o", out]
    assert main([*map(str, command)]) == 1
    assert capfd.readouterr().err.endswith(f"saccade: error: {folder}/gone.png: no such image file\n")
    lines = say(*command, "--skip-unreadable").splitlines()
    assert f"left out: {folder}/gone.png: no such image file" in lines
    assert "1 image could not be read and is left out, 1 is not" in lines
    (folder / "round.png").symlink_to("round.png")
    data = parsed(say(*command, "--skip-unreadable", "--json"))
    assert data["images"] == [f"{folder}/a.png"]
    assert list(data["unreadable"]) == [f"{folder}/gone.png", f"{folder}/round.png"]


def test_an_image_that_does_not_fit_is_named(
    small_bundle: Bundles, photo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    images = [str(photo_folder / "00.png"), str(tmp_path / "line.png")]
    command = ["run", str(small_bundle("dinov2")), *images]
    assert main([*command, "--fit", "crop", "--size", "140"]) == 1
    assert f"error: {images[1]}: a 20000 x 1 px image is too narrow for fit crop" in capfd.readouterr().err
    assert main([*command, "--fit", "native"]) == 1
    assert f"error: {images[1]}: image 1 is smaller than one 14 px patch" in capfd.readouterr().err


def test_a_run_without_one_readable_image_is_an_error(
    small_bundle: Bundles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    command = ["run", str(small_bundle("dinov2")), str(tmp_path), "-o", str(tmp_path / "out.npz"), "--skip-unreadable"]
    assert main(command) == 1
    assert f"none of 2 images can be read, first: {tmp_path}/a.png is empty" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_of_too_many_images_is_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(MOST_PICTURED + 1):
        (tmp_path / f"{number}.png").touch()
    assert main(["run", "no-such-bundle", str(tmp_path), "--overlay", str(tmp_path / "out.png")]) == 1
    assert capfd.readouterr().err == "saccade: error: --overlay shows at most 64 images, and these are 65; give fewer\n"


def test_run_decodes_no_image_of_a_later_chunk_before_it_has_run_the_earlier(
    small_bundle: Bundles, photos: list[Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    decode, call = images_of_pipeline.read_rgb, chain.Pipeline.__call__

    def noted(pipeline: saccade.Pipeline, images: list[np.ndarray], **options: object) -> saccade.Output:
        told.append(f"run {len(images)}")
        return call(pipeline, images, **options)

    def decoded(image: object, name: str) -> np.ndarray:
        if isinstance(image, Path):
            told.append("decode")
        return decode(image, name)

    monkeypatch.setattr(images_of_pipeline, "read_rgb", decoded)
    monkeypatch.setattr(chain.Pipeline, "__call__", noted)
    say("run", small_bundle("dinov2"), *(photos * CHUNK)[: CHUNK + 3])
    assert told == [*["decode"] * CHUNK, f"run {CHUNK}", *["decode"] * 3, "run 3"]


def test_native_images_share_a_grid_across_chunks(
    small_bundle: Bundles, photographs: list[np.ndarray], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(CHUNK + 1)]
    for path in paths:
        Image.fromarray(photographs[0][:56, : 56 if path == paths[-1] else 70]).save(path)
    command = ["run", str(small_bundle("dinov2")), *map(str, paths), "--fit", "native", "-o", str(tmp_path / "out.npz")]
    assert main(command) == 1
    assert f"image 0 is 70 x 56 px in whole patches, image {CHUNK} is 56 x 56; run them apart" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_look_writes_the_runs_own_map(small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path) -> None:
    say("run", small_bundle("dinov2"), *photos, "--look", "-o", tmp_path / "look.npz")
    say("run", small_bundle("dinov2"), *photos, "-o", tmp_path / "run.npz")
    with np.load(tmp_path / "look.npz") as look, np.load(tmp_path / "run.npz") as run:
        assert sorted(look.files) == ["images", "prefix", "score_map"]
        for name in look.files:
            np.testing.assert_array_equal(look[name], run[name])


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        (["--size", "70"], [5, 5]),
        (["--size", "70x112"], [5, 8]),
        (["--size", "70X112"], [5, 8]),
        (["--fit", "native"], [30, 45]),  # 427 x 640 pixels
        (["--fit", "crop", "--size", "112x70"], [8, 5]),
    ],
)
def test_run_takes_size_and_fit(
    options: list[str], grid: list[int], small_bundle: Bundles, photos: list[Path], say: Say
) -> None:
    data = parsed(say("run", small_bundle("dinov2"), *photos, *options, "--json"))
    assert data["outputs"]["score_map"] == [2, *grid]
    assert data["outputs"]["tokens"][1] == int(0.1 * grid[0] * grid[1])


@pytest.mark.parametrize(("options", "k"), [(["--k", "1"], 1), (["--k", "81"], 81), (["--k-ratio", "0.5"], 40), ([], 8)])
def test_run_keeps_the_patches_asked_for(
    options: list[str], k: int, small_bundle: Bundles, photos: list[Path], say: Say
) -> None:
    assert parsed(say("run", small_bundle("dinov2"), photos[0], *options, "--json"))["outputs"]["indices"] == [1, k]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 2, 2)])
def test_the_overlay_is_a_png_of_every_image(
    count: int, columns: int, rows: int, small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    say("run", small_bundle("dinov2"), *(photos * 2)[:count], "--size", "112x448", "--overlay", tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.size == (columns * (448 + GAP) + GAP, rows * (caption_height(448) + 112 + GAP) + GAP)


def test_the_overlay_frames_the_kept_patches(small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path) -> None:
    out, overlay = tmp_path / "out.npz", tmp_path / "o.png"
    say("run", small_bundle("dinov2"), photos[0], "--k", 5, "--size", 448, "-o", out, "--overlay", overlay)
    picture = np.asarray(Image.open(overlay))[GAP + caption_height(448) :, GAP:]
    framed = [
        cell for cell in range(32 * 32)
        if (picture[cell // 32 * 14, cell % 32 * 14 : cell % 32 * 14 + 14] == 255).all()
    ]  # fmt: skip
    assert set(np.load(out)["indices"][0].tolist()) <= set(framed)


def test_classify_names_the_five_best_classes(small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path) -> None:
    command = ["run", small_bundle("classify"), *photos, "-o", tmp_path / "out.npz"]
    top = parsed(say(*command, "--json"))["top"]
    logits = np.load(tmp_path / "out.npz")["logits"].astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for entries, probabilities in zip(top, softmax, strict=True):
        assert [entry["class"] for entry in entries] == np.argsort(-probabilities)[:5].tolist()
        assert [entry["probability"] for entry in entries] == pytest.approx(sorted(probabilities)[:-6:-1], rel=1e-4)
    lines = [line for line in say(*command).splitlines() if "class " in line]
    assert lines[0].startswith(f"{photos[0]}: class {top[0][0]['class']} 0.")
    assert [line.count("class ") for line in lines] == [5, 5]


def test_run_replaces_an_older_output(small_bundle: Bundles, photos: list[Path], say: Say, tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_bytes(b"older")
    say("run", small_bundle("dinov2"), photos[0], "-o", tmp_path / "out.npz")
    assert "cls" in np.load(tmp_path / "out.npz").files
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


# ---- build, inspect, doctor


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_building_twice_keeps_the_engine(engine: str, copy: Path, say: Say) -> None:
    assert parsed(say("build", copy, "--engine", engine, "--json"))["built"] is True
    (folder,) = (copy / "engines").iterdir()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert parsed(say("build", copy, "--engine", engine, "--json"))["built"] is False
    assert f"{folder}: already built; " in say("build", copy, "--engine", engine)
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_build_mends_a_damaged_engine_and_says_why(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(copy)]) == 0
    (folder,) = (copy / "engines").iterdir()
    (folder / "selector.blob").unlink()
    capfd.readouterr()
    assert main(["build", str(copy), "--json"]) == 0
    out, err = capfd.readouterr()
    assert parsed(out)["built"] is True
    assert f"saccade: {folder}/selector.blob is missing, but {folder}/receipt.json names it: building it\n" in err
    assert main(["verify", str(copy), "--no-build"]) == 0


def test_an_engine_for_fewer_images_is_found_again_and_a_larger_one_serves_for_less(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone")
    command = ["build", str(copy), "--engine", "tensorrt-rtx", "--json"]
    assert main([*command, "--max-batch", "4"]) == 0
    four = parsed(capfd.readouterr().out)
    assert (four["built"], four["conditions"]["max_batch"]) == (True, "4")
    bundle = read_bundle(copy)
    run = default_request(bundle, "tensorrt-rtx", "fp32")
    assert str(store.ensure(bundle, run, lambda phase: None, pytest.fail, build=False)[0]) == four["folder"]
    assert main([*command, "--max-batch", "3", "--max-k", "20"]) == 0
    out, err = capfd.readouterr()
    assert (parsed(out)["built"], parsed(out)["folder"]) == (False, four["folder"])
    assert "takes all that and more; delete it for an engine of just these limits" in err


def test_run_builds_a_missing_engine_and_says_so_on_stderr(
    copy: Path, photos: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(copy), str(photos[0]), "--json"]) == 0
    out, err = capfd.readouterr()
    parsed(out)
    assert "saccade: no openvino fp32 engine is built yet: building it\n" in err
    assert main(["run", str(copy), str(photos[0]), "--json", "--no-build"]) == 0
    assert "building" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_describes_every_kind(kind: str, small_bundle: Bundles, say: Say) -> None:
    bundle = small_bundle(kind)
    data, text = parsed(say("inspect", bundle, "--json")), say("inspect", bundle)
    task = kind if kind in ("classify", "segment") else "features"
    assert (data["task"], data["model"]["dim"], data["model"]["base_grid"]) == (task, DIM, [GRID, GRID])
    assert data["files"] == {
        name: (bundle / name).stat().st_size for name in ("selector.onnx", "extractor.onnx", "positions.npy", "golden.npz")
    }
    assert text.count("hash checked") == 4
    assert f"task {task}" in text
    assert "defaults: 126x126 px, k = 0.1 of the patches" in text
    assert {"features": "cls [batch, 128], tokens", "classify": "logits [batch, 10], tokens"}.get(
        task, "-> tokens [batch, k, 7]"
    ) in text


def test_inspect_lists_engines_and_verdicts(copy: Path, say: Say) -> None:
    say("build", copy)
    data, text = parsed(say("inspect", copy, "--json")), say("inspect", copy)
    (engine,) = data["engines"]
    assert engine["engine"] == "openvino"
    assert f"engine openvino-fp32-{engine['key']}: " in text
    assert "parity: onnxruntime fp32 equal to PyTorch on 4 images" in text


def test_doctor_names_every_engine_and_what_it_lacks(say: Say) -> None:
    data, text = parsed(say("doctor", "--json")), say("doctor")
    assert data["saccade"] == saccade.__version__
    assert list(data["engines"]) == ["openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"]
    for name, engine in data["engines"].items():
        assert re.search(rf"^  {name}\b", text, re.MULTILINE)
        assert (engine["missing"] is None) == engine["can_run"]
        if engine["missing"]:
            assert engine["missing"] in text


# ---- make-checkpoint and export


def test_a_seed_gives_the_same_weights_and_another_seed_others(say: Say, tmp_path: Path) -> None:
    def crc(seed: int, name: str) -> int:
        made = say("make-checkpoint", "lookwhere-franca", "--seed", seed, "-o", tmp_path / name, *SMALL, "--json")
        return int(parsed(made)["crc32"])

    assert crc(1, "a.pt") == crc(1, "b.pt") != crc(2, "c.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "c.pt"]


def test_export_replaces_an_older_bundle_whole(
    small_checkpoint: Bundles, small_bundle: Bundles, copy: Path, say: Say
) -> None:
    say("verify", copy)
    data = parsed(say("export", small_checkpoint("dinov2"), "-o", copy, "--k", 9, "--size", 112, "--json"))
    assert data["parity"]["passed"] is True
    assert data["parity"].keys() >= {"engine", "engine_version"}  # as parity itself calls them
    assert data["replaced"] == {"graphs": [], "engines": ["openvino-fp32"], "verdicts": 1}
    names = ["bundle.json", "extractor.onnx", "golden.npz", "positions.npy", "selector.onnx"]
    assert sorted(data["files"]) == sorted(path.name for path in copy.iterdir()) == names
    defaults = read_bundle(copy).manifest.defaults
    assert (defaults.size, defaults.k, defaults.k_ratio) == ((112, 112), 9, None)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    older = read_bundle(small_bundle("dinov2"))  # the same checkpoint gives the same graph bytes
    assert read_bundle(copy).manifest.graphs == older.manifest.graphs


def test_a_bundles_own_size_and_k_are_the_defaults_of_run(
    small_bundle: Bundles, copy: Path, photos: list[Path], say: Say
) -> None:
    bundle = read_bundle(copy)
    defaults = msgspec.structs.replace(bundle.manifest.defaults, size=(70, 98), k=6, k_ratio=None)
    write_manifest(copy, msgspec.structs.replace(bundle.manifest, defaults=defaults))
    outputs = parsed(say("run", copy, photos[0], "--json"))["outputs"]
    assert (outputs["score_map"], outputs["indices"]) == ([1, 5, 7], [1, 6])


def start_export(checkpoint: Path, target: Path) -> subprocess.Popen[str]:
    """Start an export and return it in the middle of writing: its pending folder is there."""
    command = [*CLI, "export", checkpoint, "-o", target]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(target.parent.glob(f"{PENDING_PREFIX}*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_of_two_exports_onto_one_target_the_second_stops(small_checkpoint: Bundles, tmp_path: Path, say: Say) -> None:
    target = tmp_path / "new"
    process = start_export(small_checkpoint("dinov2"), target)
    error = parsed(say("export", small_checkpoint("dinov2"), "-o", target, "--json", code=1))["error"]
    assert error.startswith(f"{target} is being exported or built by another process; repeat when it is done")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert parsed(say("verify", target, "--json"))["passed"] is True


def test_an_export_after_a_killed_one_leaves_nothing_of_it(small_checkpoint: Bundles, copy: Path, say: Say) -> None:
    process = start_export(small_checkpoint("dinov2"), copy)
    process.kill()
    process.communicate(timeout=30)
    assert len(list(copy.parent.iterdir())) > 1
    say("export", small_checkpoint("dinov2"), "-o", copy)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_ctrl_c_during_export_leaves_what_was_there(small_checkpoint: Bundles, copy: Path) -> None:
    before = sorted(path.name for path in copy.parent.rglob("*"))
    process = start_export(small_checkpoint("dinov2"), copy)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("saccade: interrupted; nothing half-written was left behind\n")
    assert "Traceback" not in err
    assert sorted(path.name for path in copy.parent.rglob("*")) == before


# ---- verify and parity


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", KINDS)
def test_verify_passes_on_every_kind_and_engine(
    kind: str, engine: str, small_bundle: Bundles, say: Say, tmp_path: Path
) -> None:
    bundle = shutil.copytree(small_bundle(kind), tmp_path / "bundle")
    data = parsed(say("verify", bundle, "--engine", engine, "--json"))
    assert (data["passed"], data["images"], data["engine"]) == (True, 4, engine)
    assert all(measure["passed"] for measure in data["measures"].values())


def spoil_golden(bundle_path: Path) -> None:
    """Make the reference's tokens other ones, hash and all, so that no engine can equal them."""
    bundle = read_bundle(bundle_path)
    path = bundle_path / "golden.npz"
    cases = read_cases(path)
    for case in cases:
        case.output.tokens[...] = case.output.tokens[..., ::-1].copy()
    write_cases(path, cases)
    golden = DataFile(path.name, sha256_of_file(path))
    write_manifest(bundle_path, msgspec.structs.replace(bundle.manifest, golden=golden))


def test_verify_that_fails_exits_with_one_and_says_what_failed(copy: Path, say: Say) -> None:
    spoil_golden(copy)
    data = parsed(say("verify", copy, "--json", code=1))
    assert data["passed"] is False
    assert data["measures"]["patches"]["passed"] is False
    assert data["measures"]["score_error"]["passed"] is True
    lines = say("verify", copy, code=1).splitlines()
    assert lines[0].startswith("openvino fp32 DIFFERS from PyTorch on 4 images")
    assert any(line.startswith("patches ") and "FAIL" in line for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_parity_passes_on_every_kind(
    kind: str, small_bundle: Bundles, small_checkpoint: Bundles, say: Say, tmp_path: Path
) -> None:
    bundle = shutil.copytree(small_bundle(kind), tmp_path / "bundle")
    data = parsed(say("parity", bundle, "--checkpoint", small_checkpoint(kind), "--json"))
    assert data["passed"] is True
    head = {"classify": "extractor.logits", "segment": "extractor.tokens"}.get(kind, "extractor.cls")
    assert {"selector.score_map", "selector.prefix", "extractor.tokens", head} == data["tensors"].keys()
    for name, numbers in data["tensors"].items():
        assert numbers["cosine"] == pytest.approx(1, abs=1e-6), name


def test_parity_runs_on_images_of_ones_own(
    copy: Path, small_checkpoint: Bundles, photos: list[Path], say: Say
) -> None:
    checkpoint = small_checkpoint("dinov2")
    options = ["parity", copy, "--checkpoint", checkpoint, "--json", "--images"]
    assert parsed(say(*options, photos[0].parent))["images"] == 2
    assert parsed(say(*options, photos[0], "--size", "70x112", "--k", 9))["images"] == 1


def test_parity_leaves_its_verdict_in_the_bundle_once(copy: Path, small_checkpoint: Bundles, say: Say) -> None:
    for _ in range(2):
        say("parity", copy, "--checkpoint", small_checkpoint("dinov2"))
    of_export, receipt = read_bundle(copy).manifest.parity
    assert (of_export["engine"], of_export["precision"]) == ("onnxruntime", "fp32")
    assert (receipt["engine"], receipt["precision"]) == ("openvino", "fp32")
    assert receipt["passed"] is True
    assert receipt["checkpoint_sha256"] == sha256_of_file(small_checkpoint("dinov2"))
    assert str(copy) not in (copy / "bundle.json").read_text()  # a bundle travels
    assert "parity: openvino fp32 equal to PyTorch on 4 images" in say("inspect", copy)


class References(html.parser.HTMLParser):
    """Collects everything a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_that_loads_nothing(
    copy: Path, small_checkpoint: Bundles, photos: list[Path], say: Say, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    say("parity", copy, "--checkpoint", small_checkpoint("dinov2"), "--images", photos[0].parent, "--report", report)
    page = References()
    page.feed(report.read_text())
    assert len(page.found) == 4  # two images, the reference's picture beside the engine's
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.found)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in report.read_text()
    assert "://" not in page.text
    for word in ("score_error", "free_running", "openvino", "extractor.tokens", sha256_of_file(small_checkpoint("dinov2"))):
        assert word in page.text


def test_results_are_read_by_polygraphy(copy: Path, small_checkpoint: Bundles, say: Say, tmp_path: Path) -> None:
    polygraphy = Path(sys.executable).with_name("polygraphy")
    if not polygraphy.exists():
        pytest.skip("polygraphy's command is not installed beside this Python")
    say("parity", copy, "--checkpoint", small_checkpoint("dinov2"), "--results", tmp_path / "results")
    names = [f"{role}.{what}.json" for role in ("extractor", "selector") for what in ("accuracy", "inputs", "outputs")]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == names
    expected = {"extractor.inputs.json": ["patches"], "selector.outputs.json": ["pytorch-fp32", "openvino-fp32"]}
    for name, words in expected.items():
        done = subprocess.run(
            [polygraphy, "inspect", "data", tmp_path / "results" / name], check=True, capture_output=True, text=True
        )
        assert all(word in done.stdout for word in words), done.stdout


# ---- bench


def test_bench_times_every_combination(small_bundle: Bundles, say: Say, tmp_path: Path) -> None:
    options = ["--engine", "openvino", "onnxruntime", "--k", 4, 20, "--rounds", 1, "--frames", 2, "--threads", 1]
    data = parsed(say("bench", small_bundle("dinov2"), *options, "-o", tmp_path / "bench.json", "--json"))
    assert data == json.loads((tmp_path / "bench.json").read_text())
    found = [(side["engine"], side["k"]) for side in data["sides"]]
    assert found == [("openvino", 4), ("onnxruntime", 4), ("openvino", 20), ("onnxruntime", 20)]
    assert (data["conditions"]["rounds"], data["conditions"]["frames_per_round"], data["conditions"]["threads"]) == (1, 2, 1)
    for side in data["sides"]:
        assert 0 < side["frame_ms"]["min"] <= side["frame_ms"]["p50"] <= side["frame_ms"]["p99"]
        assert {"selector", "extractor"} <= side["stage_ms"].keys()


def test_bench_compares_with_pytorch_where_a_checkpoint_is_given(
    small_bundle: Bundles, small_checkpoint: Bundles, say: Say
) -> None:
    options = ["--checkpoint", small_checkpoint("dinov2"), "--rounds", 1, "--frames", 2, "--batch", 2]
    lines = say("bench", small_bundle("dinov2"), *options).splitlines()
    assert "1 round of 2 frames" in lines[0]
    assert lines[1].split()[:5] == ["side", "p50", "p90", "p99", "of"]
    assert lines[2].startswith("pytorch-eager fp32 126x126 k=8 batch=2")
    assert lines[2].split()[-3:-1] == ["1.000", "-"]  # of itself; it has no stages
    assert lines[3].startswith("openvino fp32 126x126 k=8 batch=2")
