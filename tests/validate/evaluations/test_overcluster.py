"""The task overcluster, on mosaics of photographs and digits whose patches tell the classes by their colours."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.errors import SaccadeError
from saccade.runtime.sheet import GAP, caption_height
from saccade.validate.evaluation import compare, evaluate_sources
from saccade.validate.evaluations.overcluster import TASK, OverclusterSettings
from saccade.validate.extraction import Extractor
from saccade.validate.segmentation_sheet import CELL

MOST = 100 * 3 / 21  # three of VOC's classes are in the masks, and the mean is over all
OPTIONS = ["--size", 112, "--clusters", 30, "--seeds", 2]


def evaluate(root: Path, features: Path, *sources: Any, **settings: Any) -> Any:
    chosen = OverclusterSettings(**{"size": 112, "clusters": (30,), "seeds": 2, **settings})
    extractors = [Extractor(source, features, progress_bar) for source in sources]
    return evaluate_sources(TASK, TASK.read(root, chosen), chosen, extractors)


def shift_masks(root: Path, folder: str) -> None:
    """Give every image the mask of another."""
    paths = sorted((root / "VOCSegmentation" / folder).glob("*.png"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)


def test_random_weights_keep_the_colours_apart_and_an_engine_equals_itself(
    small_backbone: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    options = [*OPTIONS, "--features", tmp_path, "--pictures", tmp_path, "--compare", "openvino:fp32", "--max-drop", 0]
    found = evaluated("overcluster", small_backbone("neco"), voc_mosaics, *options)
    side = found["sides"][0]
    (score, deviation) = side["scores"]
    assert (score["name"], deviation["name"]) == ("mIoU, 30 clusters", "mIoU, 30 clusters: deviation over seeds")
    assert 0.65 * MOST < score["value"] < MOST  # patches are squares, discs and digits are not
    details = side["details"]["30"]
    assert np.mean(details["miou_by_seed"]) == pytest.approx(score["value"])
    assert np.std(details["miou_by_seed"]) == pytest.approx(deviation["value"])
    assert sum(details["iou_by_class"].values()) / 21 == pytest.approx(score["value"], abs=1e-4)
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 6)
    assert difference["first"] == pytest.approx(score["value"])
    sheet = np.asarray(Image.open(tmp_path / "segmentation.png"))
    top, left = GAP + caption_height(CELL), GAP + 2 * (CELL + GAP)
    predictions = [sheet[top + row * (top + CELL) :, left:][:CELL, :CELL] for row in range(6)]
    colours = {tuple(colour) for colour in np.stack(predictions).reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (128, 0, 0), (0, 128, 0)}  # VOC's for classes 0 to 2


def test_a_damaged_engine_is_caught(
    small_backbone: Callable[[str], Path], damaged: Callable[[Path], Path], voc_mosaics: Path, tmp_path: Path,
    evaluated: Callable[..., Any],
) -> None:  # fmt: skip
    bundle = damaged(small_backbone("neco"))
    options = [*OPTIONS, "--features", tmp_path / "kept", "--compare", "onnxruntime:int8", "--max-drop", 1]
    found = evaluated("overcluster", bundle, voc_mosaics, *options, code=1)
    (difference,) = found["differences"]
    assert difference["high"] < -2  # it sees where a patch is, and nothing of what it shows


def test_lookwhere_sees_better_the_more_patches_it_keeps(
    small_bundle: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    options = ["--size", 112, "--clusters", 30, "--seeds", 1, "--features", tmp_path, "--k", 5, 64]
    found = evaluated("overcluster", small_bundle("dinov2"), voc_mosaics, *options)
    few, every = (side["scores"][0]["value"] for side in found["sides"])
    assert [side["k"] for side in found["sides"]] == [5, 64]
    assert few < 0.6 * every  # the other 59 patches are filled from five
    assert every > 0.6 * MOST


def test_masks_of_other_images_fit_worse(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (own,) = evaluate(own_mosaics, tmp_path, patch_colours())
    shift_masks(own_mosaics, "SegmentationClass")
    (others,) = evaluate(own_mosaics, tmp_path, patch_colours())
    assert own.outcome.scores[0].value > 0.75 * MOST
    assert others.outcome.scores[0].value < 0.5 * MOST


def test_noise_on_the_features_is_caught(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    clean, noisy = evaluate(voc_mosaics, tmp_path, patch_colours(), patch_colours(noise=0.5))
    assert compare(clean, noisy).high < -1


def test_one_clustering_is_said_to_leave_out_the_noise_of_seeds(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path
) -> None:
    (found,) = evaluate(voc_mosaics, tmp_path, patch_colours(), seeds=1)
    assert found.outcome.notes[-1] == "one clustering: an interval leaves out what another seed would change"


def test_as_many_clusters_as_classes_are_matched_one_to_one(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (found,) = evaluate(voc_mosaics, tmp_path, patch_colours(), clusters=(0, 30), seeds=1)
    names = [score.name for score in found.outcome.scores]
    assert names[0::2] == ["mIoU, 21 clusters", "mIoU, 30 clusters"]
    one_to_one, many = found.outcome.scores[0].value, found.outcome.scores[2].value
    assert one_to_one < many  # dark photographs are many clusters, of which only one may be the background


# ---- data that has faults


def damage(root: Path, number: int, *, mask: np.ndarray | None = None, image: bytes | None = None) -> None:
    folder = root / "VOCSegmentation"
    if mask is not None:
        Image.fromarray(mask).save(folder / f"SegmentationClass/{number:04}.png")
    if image is not None:
        (folder / f"images/{number:04}.jpg").write_bytes(image)


def notes_of(root: Path, features: Path, source: Any) -> Sequence[str]:
    (found,) = evaluate(root, features, source, seeds=1)
    notes: Sequence[str] = found.outcome.notes
    return notes


def test_what_is_left_out_is_counted_and_named(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    labels = np.zeros((112, 112), np.uint8)
    labels[5, 5:8] = (77, 21, 22)
    damage(own_mosaics, 10, mask=labels)
    damage(own_mosaics, 11, mask=labels[:100])
    image = (own_mosaics / "VOCSegmentation/images/0012.jpg").read_bytes()
    damage(own_mosaics, 12, image=image[:2000])
    first, second, third, fourth, _ = notes_of(own_mosaics, tmp_path, patch_colours())
    assert first.startswith("1 of 6 images of Pascal VOC val is left out, first: ")
    assert first.endswith("0011.png is 112 x 100 px and its image 112 x 112")
    assert second.startswith("1 of 5 images of Pascal VOC val cannot be read and is left out, first ")
    assert "0012.jpg" in second
    assert third.startswith("1 of 4 masks of Pascal VOC val is left out, first: ")
    assert third.endswith("0010.png: 3 pixels hold labels that Pascal VOC does not have (21, 22, 77)")
    assert fourth == "18 (bird, boat, bottle, …) of 21 classes are in no mask of Pascal VOC val; the mean is over all"


def test_rows_left_out_do_not_shift_the_others(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    damage(own_mosaics, 10, image=b"no image", mask=np.zeros((112, 112), np.uint8))
    damage(own_mosaics, 11, mask=np.full((112, 112), 99, np.uint8))
    (found,) = evaluate(own_mosaics, tmp_path, patch_colours())
    assert len(found.outcome.samples) == 4
    assert found.outcome.scores[0].value > 0.65 * MOST


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (255, r"Pascal VOC val: every pixel is ignored \(255\); look at the masks"),
        (7, "Pascal VOC val: car is the only class in its masks, so any answer is right; add others"),
        (50, r"Pascal VOC val: none of 6 masks can be used \(.*0010.png: 12544 pixels hold labels"),
    ],
)
def test_masks_that_say_nothing_are_refused(
    own_mosaics: Path, patch_colours: Any, tmp_path: Path, label: int, message: str
) -> None:
    for number in range(10, 16):
        damage(own_mosaics, number, mask=np.full((112, 112), label, np.uint8))
    with pytest.raises(SaccadeError, match=message):
        evaluate(own_mosaics, tmp_path, patch_colours())


def test_too_few_patches_and_odd_sizes_are_refused(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match="patches: 384 are too few for 500 clusters"):
        evaluate(voc_mosaics, tmp_path, patch_colours(), clusters=(500,))
    with pytest.raises(SaccadeError, match=r"--size 100 is not a multiple of the 14 px patch; use 98"):
        evaluate(voc_mosaics, tmp_path, patch_colours(), size=100)
