"""What a user owns is not overwritten, and what is no file is not taken for one."""
from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade import SaccadeError
from saccade.cli.main import main

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "china.jpg"


@pytest.fixture
def bundle(tmp_path: Path, small_bundle: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(small_bundle("dinov2"), tmp_path / "bundle"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("saccade: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_export_refuses_a_bundle_folder_that_holds_something_else(
    bundle: Path, small_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = bundle / "mine.pt"
    shutil.copy(small_checkpoint("dinov2"), checkpoint)
    assert "also holds 'mine.pt', which is no part of a bundle" in refused(capsys, "export", checkpoint, "-o", bundle)
    assert checkpoint.exists()


def test_run_refuses_an_output_that_is_its_image(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "in.png"
    saccade_image = np.zeros((130, 130, 3), np.uint8)
    from PIL import Image

    Image.fromarray(saccade_image).save(image)
    before = image.read_bytes()
    assert "is one of the images" in refused(capsys, "run", bundle, image, "--overlay", image)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "BUNDLE", PHOTO, "-o", "BUNDLE/golden.npz"],
        ["make-checkpoint", "lookwhere-dinov2", "-o", "BUNDLE/bundle.json"],
        ["parity", "BUNDLE", "--checkpoint", "x.pt", "--results", "BUNDLE"],
        ["parity", "BUNDLE", "--checkpoint", "x.pt", "--report", "BUNDLE/p.html"],
    ],
)
def test_outputs_inside_a_bundle_are_refused(
    bundle: Path, arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    given = [str(argument).replace("BUNDLE", str(bundle)) for argument in arguments]
    assert "that is inside a bundle; choose a place outside" in refused(capsys, *given)
    assert before == {path: path.read_bytes() for path in bundle.iterdir() if path.is_file()}


def test_a_pipe_is_neither_read_nor_replaced(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    assert "is a device or a pipe; name a file" in refused(capsys, "run", bundle, PHOTO, "-o", pipe)
    assert pipe.is_fifo()
    assert "is a device or a pipe; give an image file" in refused(capsys, "run", bundle, pipe)


@pytest.mark.parametrize("arguments", [["inspect", "LONG"], ["run", "LONG", PHOTO], ["export", "LONG", "-o", "x"]])
def test_a_path_that_is_too_long_is_one_line(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(argument).replace("LONG", "a" * 300) for argument in arguments]
    assert "is too long; give a shorter one" in refused(capsys, *given)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_one_pipeline_in_two_threads_is_an_error_and_closing_waits(bundle: Path, engine: str) -> None:
    pipeline = saccade.load(bundle, engine=engine, note=lambda line: None)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(20):
                pipeline(np.zeros((126, 126, 3), np.uint8), k=5)
        except SaccadeError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    pipeline.close()
    for thread in threads:
        thread.join()
    assert errors
    assert all("load the bundle" in str(error) for error in errors)
