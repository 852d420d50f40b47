"""The task video, on photographs pasted onto each other in DAVIS's folders."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.loading import load
from saccade.validate.datasets.davis import read_davis
from saccade.validate.datasets.mask_file import read_mask
from saccade.validate.evaluation import compare, evaluate_sources
from saccade.validate.evaluations import video as task
from saccade.validate.evaluations.video import TASK, FrameSides, VideoSettings
from saccade.validate.extraction import Extractor
from saccade.validate.metrics.contours import score_video
from saccade.validate.sources import BackboneSource

FRAMES = 8
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]
STARTS = {"left": (20, 120, -6), "right": (60, 20, 6), "down": (40, 40, 5)}  # top, left, pixels per frame to the right


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """Return three videos in which a piece of one photograph moves over the other. Read only."""
    root = tmp_path_factory.mktemp("davis")
    ground, thing = photographs
    for video, (top, left, step) in STARTS.items():
        folders = [root / kind / "480p" / video for kind in ("JPEGImages", "Annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(FRAMES):
            place = np.s_[top : top + 48, left + step * number : left + step * number + 48]
            frame, labels = ground[100:228, 100:292].copy(), np.zeros((128, 192), np.uint8)
            frame[place], labels[place] = thing[150:198, 250:298], 1
            mask = Image.fromarray(labels)
            mask.putpalette(PALETTE)
            Image.fromarray(frame).save(folders[0] / f"{number:05}.jpg", quality=95)
            mask.save(folders[1] / f"{number:05}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(STARTS) + "\n")
    return root


@pytest.fixture
def own_davis(davis: Path, tmp_path: Path) -> Path:
    """Return a copy of the videos to damage."""
    return Path(shutil.copytree(davis, tmp_path / "davis"))


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["evaluate", "video", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_moving_things_are_followed_and_their_masks_written_in_colour(
    small_backbone: Callable[[str], Path], davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", 128, "--features", tmp_path / "features", "--pictures", tmp_path / "masks"]
    found = evaluated(capsys, small_backbone("dino"), davis, *options, "--compare", "openvino:fp32", "--max-drop", 0)
    scores = {score["name"]: score["value"] for score in found["sides"][0]["scores"]}
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"]) == (0, 0, 0)
    assert difference["samples"] == 3
    truth, masks, still = (np.stack(each) for each in zip(*frames_of(davis, tmp_path / "masks"), strict=True))
    by_hand = [score_video(truth[:, video], masks[:, video]).object_means for video in range(3)]
    assert scores["J&F"] == pytest.approx(100 * np.mean(by_hand))  # as scored from the files that were written
    unmoved = [score_video(truth[:, video], still[:, video]).object_means for video in range(3)]
    assert scores["J"] > 75 > 100 * np.mean(unmoved, axis=(0, 1))[0] + 20
    with Image.open(tmp_path / "masks/left/00003.png") as picture:
        assert picture.mode == "P"
        assert (picture.getpalette() or [])[:9] == PALETTE
        assert picture.size == (192, 128)


def frames_of(davis: Path, masks: Path) -> list[tuple[np.ndarray, ...]]:
    """Return the truth, what was written and the first mask again, (3, H, W) each, frame by frame."""
    frames = []
    for number in range(FRAMES):
        names = [f"{video}/{number:05}.png" for video in STARTS], [f"{video}/00000.png" for video in STARTS]
        folders = zip((davis / "Annotations/480p", masks, masks), (names[0], names[0], names[1]), strict=True)
        frames.append(tuple(np.stack([read_mask(folder / name) for name in each]) for folder, each in folders))
    return frames


class Noisy:
    """A source whose tokens are mostly noise, as a badly quantised network's."""

    def __init__(self, source: BackboneSource) -> None:
        self._source = source
        self.label, self.recipe = "noisy", {**source.recipe, "noise": "1"}
        self.k, self.patch, self.outputs = source.k, source.patch, source.outputs

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        random = np.random.default_rng(int(images[0].sum()))
        found = self._source.run(images, outputs)
        return {name: each + 3 * random.standard_normal(each.shape, np.float32) for name, each in found.items()}


def test_a_broken_engine_is_caught(small_backbone: Callable[[str], Path], davis: Path, tmp_path: Path) -> None:
    settings = VideoSettings(size=128)
    with load(small_backbone("dino")) as pipeline:
        assert isinstance(pipeline, BackbonePipeline)
        sources = BackboneSource(pipeline), Noisy(BackboneSource(pipeline))
        extractors = [Extractor(source, tmp_path, progress_bar) for source in sources]
        found = compare(*evaluate_sources(TASK, TASK.read(davis, settings), settings, extractors))
    assert found.is_significant
    assert found.high < 0


def test_lookwhere_s_dense_tokens_follow_too(
    small_bundle: Callable[[str], Path], davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, small_bundle("dinov2"), davis, "--size", 112, "--k", 30, "--features", tmp_path)
    assert found["sides"][0]["scores"][1]["value"] > 25  # the things are 9 % of the frames


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [((480, 854), 16, (480, 832)), ((480, 854), 14, (476, 826)), ((854, 480), 8, (832, 480)), ((480, 480), 32, (480, 448))],
)
def test_frames_have_the_official_sides_in_whole_patches(size: tuple[int, int], patch: int, expected: object) -> None:
    assert FrameSides(480 if patch != 14 else 476, patch).size(*size) == expected


def test_a_frame_is_resized_without_antialias(davis: Path) -> None:
    path = davis / "JPEGImages/480p/left/00000.jpg"
    found = FrameSides(96, 16)(path)
    assert found.shape == (96, 128, 3)
    original = np.asarray(Image.open(path), np.float64)
    # 128 -> 96 rows: row 1's centre is (1 + 0.5) * 4/3 - 0.5 = 1.5, column 1's at 192 -> 128 is 1.75
    between = original[1:3].mean(axis=0)
    expected = 0.25 * between[1] + 0.75 * between[2]
    np.testing.assert_allclose(found[1, 1], expected, atol=0.51)


def test_videos_that_cannot_be_used_are_counted_and_named(
    small_backbone: Callable[[str], Path], own_davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = own_davis / "Annotations/480p"
    Image.new("L", (10, 10)).save(masks / "left/00002.png")
    frame = own_davis / "JPEGImages/480p/down/00004.jpg"
    frame.write_bytes(frame.read_bytes()[:1500])
    late = np.array(Image.open(masks / "right/00005.png"))
    late[0, 0] = 7
    Image.fromarray(late).save(masks / "right/00005.png")
    found = evaluated(capsys, small_backbone("dino"), own_davis, "--size", 64, "--features", tmp_path / "features")
    size, unreadable, appearing = found["notes"]
    assert size.startswith("1 of 3 videos is left out, first: ")
    assert size.endswith("left/00002.png is 10 x 10 px and its image 192 x 128")
    assert "1 of 2 videos is left out" in unreadable
    assert "00004.jpg: damaged or truncated image" in unreadable
    assert appearing == "1 video holds labels that the first mask does not, which are not scored, first: right"
    assert list(found["sides"][0]["details"]["videos"]) == ["right"]


def test_a_video_of_frames_like_a_thread_is_left_out(own_davis: Path, tmp_path: Path) -> None:
    frames = sorted((own_davis / "JPEGImages/480p/left").iterdir())
    for path in frames:
        Image.new("RGB", (9000, 6)).save(path)
        Image.fromarray(np.ones((6, 9000), np.uint8)).save(own_davis / f"Annotations/480p/left/{path.stem}.png")
    settings = VideoSettings(size=128)
    extract = Extractor(Still(), tmp_path, progress_bar)
    outcome = TASK.evaluate(TASK.read(own_davis, settings), extract, settings)
    problem = f"{frames[0]} makes 384000 patches at this size; at most 21904 are supported"
    assert outcome.notes[0] == f"1 of 3 videos is left out, first: none of {len(frames)} images can be read ({problem})"


class Still:
    """A source whose tokens are all alike."""

    label, k, patch, outputs, recipe = "still", None, 8, ("tokens",), {"source": "still"}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        cells = images[0].shape[0] // self.patch * (images[0].shape[1] // self.patch)
        return {"tokens": np.ones((len(images), cells, 4), np.float32)}


def empty_first_masks(root: Path) -> None:
    for video in STARTS:
        Image.new("L", (192, 128)).save(root / f"Annotations/480p/{video}/00000.png")


def coloured_masks(root: Path) -> None:
    for video in STARTS:
        Image.new("RGB", (192, 128)).save(root / f"Annotations/480p/{video}/00000.png")


LIST = "ImageSets/2017/val.txt"
PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda root: (root / LIST).unlink(), "val.txt: No such file or directory; the data set's list of names"),
    "a name outside": (lambda root: (root / LIST).write_text("../left\n"), r"val.txt: '../left' is no plain name; give"),
    "an empty list": (lambda root: (root / LIST).write_text("\n"), "val.txt is empty; give one name a line"),
    "no masks": (lambda root: shutil.rmtree(root / "Annotations"), "Annotations/480p: no such folder; DAVIS 2017 is"),
    "other videos": (
        lambda root: (root / LIST).write_text("bear\n"),
        r"none of 1 video can be used \(bear has 0 frames in JPEGImages/480p, and 3 are the fewest\)",
    ),
    "no object": (empty_first_masks, r"none of 3 videos can be used \(.*left/00000.png holds no object, so there is"),
    "colours": (coloured_masks, r"none of 3 .*: a mask of mode RGB; give an 8-bit indexed or grey PNG\)"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_makes_a_score_meaningless_is_an_error(problem: str, own_davis: Path, tmp_path: Path) -> None:
    damage, message = PROBLEMS[problem]
    damage(own_davis)
    source = Silent()
    with pytest.raises(SaccadeError, match=message):
        TASK.evaluate(TASK.read(own_davis, VideoSettings()), Extractor(source, tmp_path, progress_bar), VideoSettings())


class Silent:
    """A source that is never asked."""

    label, k, patch, outputs, recipe = "silent", None, 8, ("tokens",), {"engine": "none"}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        raise AssertionError("the data is refused before anything is extracted")


def test_the_reader_keeps_the_list_s_order(davis: Path) -> None:
    assert [video.name for video in read_davis(davis).videos] == list(STARTS)


def test_masks_of_two_sizes_in_a_video_are_refused(own_davis: Path) -> None:
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        path = own_davis / f"{kind}/480p/left/00003.{suffix}"
        with Image.open(path) as image:
            image.resize((96, 64), Image.Resampling.NEAREST).save(path)
    with pytest.raises(SaccadeError, match=r"00003.png is 96 x 64 px and the first mask of its video 192 x 128; all must"):
        task._truth(read_davis(own_davis).videos[0])
