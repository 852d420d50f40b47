"""The command evaluate patch-match: the official index lists, from the command line, and their picture."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.cli.main import main
from saccade.runtime.sheet import GAP, caption_height
from saccade.validate.metrics.patch_match import Crop, match_patches
from saccade.validate.patch_match_picture import CELL, DIMMED

IMAGE = Path(__file__).parents[2] / "examples/china.jpg"
TOP = GAP + caption_height(7 * CELL)  # of a crop below its caption
FIRST, SECOND = "20,30,300,320,7", "120,150,200,200,3,flip"
CROPS = Crop(20, 30, 300, 320, 7, flip=False), Crop(120, 150, 200, 200, 3, flip=True)


def test_the_lists_and_the_picture_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, picture = tmp_path / "found.json", tmp_path / "found.png"
    words = ["evaluate", "patch-match", IMAGE, "--first", FIRST, "--second", SECOND, "-o", found, "--picture", picture]
    assert main([*map(str, words), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    lists = [numbers.tolist() for numbers in match_patches(*CROPS)]
    assert [data["first"], data["second"]] == lists
    assert json.loads(found.read_text()) == data
    with Image.open(picture) as opened:
        assert opened.height == TOP + 7 * CELL + GAP
        shown = np.asarray(opened)[TOP:, GAP:]
    assert patches_that_are_bright(shown[:, : 7 * CELL], CROPS[0]) == set(lists[0]) - {0}


def patches_that_are_bright(shown: np.ndarray, crop: Crop) -> set[int]:
    """Return the numbers of the patches whose pixels are the crop's own beside line and number, not dimmed ones."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    with Image.open(IMAGE) as image:
        own = np.asarray(image.crop(box).resize((crop.cells * CELL,) * 2, Image.Resampling.BICUBIC))
    found = set()
    for number in range(crop.cells**2):
        row, column = divmod(number, crop.cells)
        corner = np.s_[row * CELL + 2 : row * CELL + 10, column * CELL + 2 : column * CELL + 10]
        bright = np.array_equal(shown[corner], own[corner])
        assert bright or np.array_equal(shown[corner], own[corner] // DIMMED)
        found |= {number + 1} if bright else set()
    return found


def test_a_mirrored_crop_is_drawn_mirrored(tmp_path: Path) -> None:
    plain, mirrored = tmp_path / "plain.png", tmp_path / "mirrored.png"
    for crop, path in (("0,0,200,200,2", plain), ("0,0,200,200,2,flip", mirrored)):
        words = ["evaluate", "patch-match", IMAGE, "--first", crop, "--second", "0,0,200,200,2", "--picture", path]
        assert main([*map(str, words)]) == 0
    pictures = [np.asarray(Image.open(path))[TOP + 2 : TOP + 8, GAP : GAP + 2 * CELL] for path in (plain, mirrored)]
    np.testing.assert_array_equal(pictures[0][:, 2:10], pictures[1][:, ::-1][:, 2:10])


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("1,2,3,4", r"'1,2,3,4' is not TOP,LEFT,HEIGHT,WIDTH,CELLS\[,flip\]"),
        ("1,2,3,4,5,flop", "'1,2,3,4,5,flop' is not TOP,LEFT"),
        ("0,0,9,9,0", "patch match: a crop of 9x9 pixels in 0 cells; give 1 or more"),
        ("0,0,9,9,65", "65 patches a side; at most 64 are supported"),
    ],
)  # fmt: skip
def test_a_crop_that_is_none_is_refused(crop: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "patch-match", str(IMAGE), "--first", crop, "--second", SECOND])
    assert message.replace("\\", "") in capsys.readouterr().err


@pytest.mark.parametrize("crop", ["-1,0,9,9,3", "420,0,9,9,3", "0,635,9,9,3"])
def test_a_crop_beyond_the_image_is_refused(crop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "patch-match", str(IMAGE), f"--first={crop}", "--second", SECOND]) == 1
    named = f"the crop {crop.rpartition(',')[0]} (top, left, height, width) reaches out of the image of 640 x 427 px"
    assert named in capsys.readouterr().err
