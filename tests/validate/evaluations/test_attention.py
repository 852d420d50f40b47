"""The task attention, on photographs in Pascal VOC's folders."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.runtime.sheet import GAP, caption_height
from saccade.validate.evaluation import compare, evaluate_sources
from saccade.validate.evaluations.attention import TASK, AttentionSettings
from saccade.validate.extraction import Extractor

SIDE, PATCH = 64, 8
PICTURES = 6


@pytest.fixture
def voc(tmp_path: Path, photographs: list[np.ndarray]) -> Path:
    """Return images that are bright in one square, masks of that square with a void border, and a list."""
    root = tmp_path / "voc"
    for folder in ("images", "SegmentationClass", "sets"):
        (root / folder).mkdir(parents=True)
    for number in range(PICTURES):
        image, labels = photographs[number % 2][:100, :120] // 4, np.zeros((100, 120), np.uint8)
        top, left = 5 + 5 * number, 60 - 8 * number
        labels[top - 3 : top + 43, left - 3 : left + 53] = 255
        labels[top : top + 40, left : left + 50] = 1 + number
        image[labels == 1 + number] += 170
        Image.fromarray(image).save(root / f"images/{number}.jpg", quality=95)
        Image.fromarray(labels).save(root / f"SegmentationClass/{number}.png")
    (root / "sets/val.txt").write_text("".join(f"{number}\n" for number in range(PICTURES)))
    return root


class Bright:
    """A source whose first head looks at bright patches and whose second looks everywhere; `blur` makes it worse."""

    k, patch, outputs = None, PATCH, ("attention",)

    def __init__(self, blur: float = 0) -> None:
        self._blur = blur
        self.label, self.recipe = f"blur {blur}", {"blur": str(blur)}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        pixels = np.stack(images).astype(np.float32).mean(axis=-1)
        cells = pixels.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean(axis=(2, 4)).reshape(len(images), -1)
        weights = np.exp(cells / 20) + self._blur * np.exp(np.random.default_rng(0).random(cells.shape) * 12)
        heads = np.stack([weights, np.ones_like(weights)], axis=1)
        return {"attention": (heads / heads.sum(axis=-1, keepdims=True)).astype(np.float32)}


def evaluate(root: Path, features: Path, *sources: Bright) -> Any:
    settings = AttentionSettings(size=SIDE, mass=0.95)
    extractors = [Extractor(source, features, progress_bar) for source in sources]
    return evaluate_sources(TASK, TASK.read(root, settings), settings, extractors)


def test_a_head_that_looks_at_the_foreground_is_found_and_a_broken_one_caught(voc: Path, tmp_path: Path) -> None:
    good, broken = evaluate(voc, tmp_path, Bright(), Bright(blur=1000))
    mean, best_of_all, best = (score.value for score in good.outcome.scores)
    assert best >= best_of_all > mean
    assert best > 60  # of a square on a grid of 8 x 8 patches
    assert good.outcome.details["heads"][0] == pytest.approx(best_of_all, abs=0.01)
    assert good.outcome.details["heads"][1] < 35  # all of the image, of which the foreground is a sixth
    found = compare(good, broken)
    assert found.is_significant
    assert found.high < 0


def test_void_pixels_count_nowhere(voc: Path, tmp_path: Path) -> None:
    (before,) = evaluate(voc, tmp_path, Bright())
    for path in (voc / "SegmentationClass").glob("*.png"):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 255, 0, labels).astype(np.uint8)).save(path)
    (after,) = evaluate(voc, tmp_path, Bright())
    assert after.outcome.scores[0].value < before.outcome.scores[0].value  # patches across the border are wrong now


def test_an_engine_equals_itself_and_draws_its_heads(
    small_backbone: Callable[[str], Path], voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small_backbone("dino")
    words = ["evaluate", "attention", bundle, voc, "--size", 64, "--features", tmp_path / "features", "--pictures", tmp_path]
    assert main([*map(str, words), "--compare", "openvino:fp32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"]) == (0, 0, 0)
    heads = len(found["sides"][0]["details"]["heads"])
    with Image.open(tmp_path / "0.png") as picture:
        assert picture.size == ((2 + heads) * (448 + GAP) + GAP, caption_height(448) + 448 + 2 * GAP)
    assert len(list(tmp_path.glob("*.png"))) == PICTURES


def test_masks_and_images_that_cannot_be_used_are_counted_and_named(voc: Path, tmp_path: Path) -> None:
    Image.new("L", (7, 9)).save(voc / "SegmentationClass/1.png")
    image = voc / "images/2.jpg"
    image.write_bytes(image.read_bytes()[:1000])
    Image.new("L", (120, 100)).save(voc / "SegmentationClass/3.png")
    Image.new("RGB", (120, 100)).save(voc / "SegmentationClass/4.png")
    (found,) = evaluate(voc, tmp_path, Bright())
    size, unreadable, masks = found.outcome.notes
    assert size.startswith(f"1 of 6 images of {voc} is left out, first: ")
    assert size.endswith("SegmentationClass/1.png is 7 x 9 px and its image 120 x 100")
    assert unreadable.startswith(f"1 of 5 images of {voc} cannot be read and is left out, first ")
    assert masks.startswith("2 of 4 masks are left out, first: ")
    assert masks.endswith("3.png holds no foreground")
    assert len(found.outcome.samples) == 2


def test_without_a_list_every_image_with_a_mask_counts(voc: Path, tmp_path: Path) -> None:
    (voc / "sets/val.txt").unlink()
    (voc / "SegmentationClass/0.png").unlink()
    data = TASK.read(voc, AttentionSettings())
    assert [path.name for path in data.images] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert f"1 of 6 images of {voc} is left out, first: " in data.notes[0]


def test_a_list_that_leads_nowhere_is_not_taken_for_none(voc: Path) -> None:
    (voc / "sets/val.txt").unlink()
    (voc / "sets/val.txt").symlink_to("gone.txt")
    with pytest.raises(SaccadeError, match=r"val.txt: No such file or directory; the data set's list of names is expected"):
        TASK.read(voc, AttentionSettings())


def test_errors_say_what_is_missing(voc: Path, tmp_path: Path) -> None:
    for path in (voc / "SegmentationClass").glob("*.png"):
        Image.new("L", (120, 100)).save(path)
    with pytest.raises(SaccadeError, match=r"none of 6 masks can be used \(.*0.png holds no foreground\)"):
        evaluate(voc, tmp_path, Bright())
    (voc / "sets/val.txt").write_text("cat\n")
    with pytest.raises(SaccadeError, match=r"none of 1 image has a mask of its size \(.*cat.jpg: no such image file\)"):
        TASK.read(voc, AttentionSettings())
    with pytest.raises(SaccadeError, match="images: no such folder; images are expected in images/, their masks in Segm"):
        TASK.read(tmp_path, AttentionSettings())
    with pytest.raises(SaccadeError, match="--size 60 is not a multiple of the 8 px patch; use 64"):
        TASK.evaluate(None, Extractor(Bright(), tmp_path, progress_bar), AttentionSettings(size=60))


def test_a_lookwhere_bundle_is_refused(
    small_bundle: Callable[[str], Path], voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "attention", str(small_bundle("dinov2")), str(voc)]) == 1
    assert "attention needs what only a plain backbone gives" in capsys.readouterr().err
