"""The task linear-segmentation, from photographs with masks to a head on stored tokens."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.errors import SaccadeError
from saccade.runtime.sheet import GAP, caption_height
from saccade.validate import masked_features
from saccade.validate.datasets.masked_split import MaskedSplit, identity_labels
from saccade.validate.evaluation import compare, evaluate_sources
from saccade.validate.evaluations.linear_segmentation import TASK, LinearSegmentationSettings, scored
from saccade.validate.extraction import Extractor
from saccade.validate.features import Features
from saccade.validate.masked_features import MaskedFeatures
from saccade.validate.metrics.linear_head import LinearHead
from saccade.validate.metrics.segmentation import ClassCounts
from saccade.validate.segmentation_sheet import CELL

GOLDEN = np.load(Path(__file__).parents[2] / "golden/neco_linear_segmentation.npz")
MOST = 100 * 3 / 21  # three of VOC's classes are in the masks, and the mean is over all


def evaluate(root: Path, features: Path, *sources: Any, **settings: Any) -> Any:
    chosen = LinearSegmentationSettings(**{"size": 112, "train_batch": 5, "rate": 0.3, **settings})
    extractors = [Extractor(source, features, progress_bar) for source in sources]
    return evaluate_sources(TASK, TASK.read(root, chosen), chosen, extractors)


def test_a_head_on_random_weights_segments_and_equals_pytorchs(
    small_backbone: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    bundle = small_backbone("neco")
    options = ["--size", 112, "--train-batch", 5, "--features", tmp_path]
    reference = ["--compare", "reference", "--checkpoint", bundle.with_suffix(".pt"), "--max-drop", 0.1]
    found = evaluated("linear-segmentation", bundle, voc_mosaics, *options, *reference)
    side = found["sides"][0]
    assert 0.7 * MOST < side["scores"][0]["value"] < MOST
    found_classes = {name for name, iou in side["details"]["iou_by_class"].items() if iou > 0}
    assert found_classes == {"background", "aeroplane", "bicycle"}
    (difference,) = found["differences"]
    assert abs(difference["difference"]) < 0.1
    assert difference["samples"] == 6


@pytest.fixture
def golden_val(tmp_path: Path, patch_colours: Any) -> MaskedFeatures:
    """Return the golden tokens as if they had been extracted, beside files of their masks."""
    classes, masks = int(GOLDEN["num_classes"]), {}
    for number, labels in enumerate(GOLDEN["ground_truth"].astype(np.uint8)):
        masks[tmp_path / f"{number}.jpg"] = tmp_path / f"{number}.png"
        Image.fromarray(labels).save(tmp_path / f"{number}.png")
    features = Features([str(path) for path in masks], {"tokens": GOLDEN["tokens"]}, {})
    labels = identity_labels("golden", tuple(f"class {number}" for number in range(classes)), 255)
    split = MaskedSplit("golden val", list(masks), masks, ())
    return MaskedFeatures(features, split, labels, (20, 20), Extractor(patch_colours(), tmp_path, progress_bar))


@pytest.mark.parametrize("values", [1, 1 << 26])  # an image at a time, and both
def test_scores_of_tokens_and_masks_equal_the_official_ones(
    golden_val: MaskedFeatures, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_features, "BATCH_VALUES", values)
    counts, shown = scored(golden_val, LinearHead(GOLDEN["head_weight"], GOLDEN["head_bias"]), (7, 7))
    total = ClassCounts.of_images(counts)
    assert np.array_equal(total.true_positives, GOLDEN["tokens_tp"])
    assert np.array_equal(total.false_positives, GOLDEN["tokens_fp"])
    assert np.array_equal(total.false_negatives, GOLDEN["tokens_fn"])
    assert total.miou == pytest.approx(float(GOLDEN["tokens_miou"]), abs=1e-12)
    assert np.array_equal([each.prediction for each in shown], GOLDEN["tokens_prediction"])


def test_lookwhere_is_drawn_over_k(
    small_bundle: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    options = ["--size", 112, "--train-batch", 5, "--epochs", 10, "--features", tmp_path]
    sweep = ["--k", 5, 16, 64, "--plot", tmp_path / "sweep.png"]
    found = evaluated("linear-segmentation", small_bundle("dinov2"), voc_mosaics, *options, *sweep)
    few, some, every = (side["scores"][0]["value"] for side in found["sides"])
    assert few < some < every  # the other patches are filled from those kept
    assert every > 0.6 * MOST
    assert Image.open(tmp_path / "sweep.png").size > (1000, 500)


def test_what_is_learnt_is_in_the_masks(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (right,) = evaluate(own_mosaics, tmp_path, patch_colours())
    paths = sorted((own_mosaics / "VOCSegmentation/SegmentationClassAug").glob("*.png"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, [*contents[3:], *contents[:3]], strict=True):
        path.write_bytes(content)  # the mask of another image
    (wrong,) = evaluate(own_mosaics, tmp_path, patch_colours())
    assert right.outcome.scores[0].value > 0.8 * MOST
    assert wrong.outcome.scores[0].value < 0.5 * MOST


def test_noise_on_the_features_is_caught_and_a_source_equals_itself(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path
) -> None:
    clean, again, noisy = evaluate(voc_mosaics, tmp_path, patch_colours(), patch_colours(), patch_colours(noise=1))
    same = compare(clean, again)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert compare(clean, noisy).high < -1


def test_mirrored_images_have_mirrored_tokens_and_masks(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    with_flips, without = (patch_colours(), patch_colours())
    (found,) = evaluate(voc_mosaics, tmp_path / "with", with_flips, flips=True)
    evaluate(voc_mosaics, tmp_path / "without", without)
    assert (with_flips.images - without.images) == 10
    assert found.outcome.scores[0].value > 0.8 * MOST  # masks that were not mirrored would put discs where digits are


def test_an_interrupted_extraction_goes_on_and_ends_alike(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (whole,) = evaluate(voc_mosaics, tmp_path / "whole", patch_colours())
    with pytest.raises(KeyboardInterrupt):
        evaluate(voc_mosaics, tmp_path / "parts", patch_colours(stop_after=1))  # one batch of 8 of the 10 training images
    rest = patch_colours()
    (resumed,) = evaluate(voc_mosaics, tmp_path / "parts", rest)
    timed = 11  # the latency's
    assert rest.images == 2 + 6 + timed
    assert np.array_equal(whole.outcome.samples, resumed.outcome.samples)


def test_a_share_of_the_training_images_is_the_same_in_every_run(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    call = Extractor.__call__

    def noted(self: Extractor, images: Any, *arguments: Any, **named: Any) -> Features:
        seen.append([path.name for path in images])
        return call(self, images, *arguments, **named)

    monkeypatch.setattr(Extractor, "__call__", noted)
    for _ in range(2):
        evaluate(voc_mosaics, tmp_path, patch_colours(), train_share=0.5, epochs=1)
    assert seen[0] == seen[2] == sorted(seen[0])
    assert len(seen[0]) == 5
    assert len(seen[1]) == 6


def test_pictures_show_image_truth_and_prediction(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (found,) = evaluate(voc_mosaics, tmp_path, patch_colours())
    ((name, sheet),) = found.outcome.pictures()
    assert name == "segmentation.png"
    top, lefts = GAP + caption_height(CELL), [GAP + column * (CELL + GAP) for column in range(3)]
    image, truth, prediction = (np.asarray(sheet)[top : top + CELL, left : left + CELL] for left in lefts)
    mask = np.array(Image.open(voc_mosaics / "VOCSegmentation/SegmentationClass/0010.png")).repeat(2, 0).repeat(2, 1)
    for label, colour in ((0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (255, (224, 224, 192))):
        assert np.array_equal((truth == colour).all(axis=-1), mask == label)
    assert (prediction[mask == 1] == (128, 0, 0)).all(axis=-1).mean() > 0.9
    assert (image[mask == 1][:, 0] > image[mask == 1][:, 1]).all()  # the red disc


def test_too_few_training_images_are_refused_before_anything_runs(voc_mosaics: Path) -> None:
    with pytest.raises(SaccadeError, match="10 images of Pascal VOC train are fewer than a training step's 128; give more"):
        TASK.read(voc_mosaics, LinearSegmentationSettings())


def test_a_training_mask_left_out_does_not_shift_the_others(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    unknown = Image.fromarray(np.full((112, 112), 99, np.uint8))
    unknown.save(own_mosaics / "VOCSegmentation/SegmentationClassAug/0000.png")
    (found,) = evaluate(own_mosaics, tmp_path, patch_colours())
    assert found.outcome.scores[0].value > 0.8 * MOST
    assert found.outcome.notes[0].startswith("1 of 10 masks of Pascal VOC train is left out, first: ")


def test_a_training_image_that_cannot_be_read_is_named_once(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (own_mosaics / "VOCSegmentation/images/0003.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (found,) = evaluate(own_mosaics, tmp_path, patch_colours(), epochs=1, flips=True)
    named = [note for note in found.outcome.notes if "0003.jpg" in note]
    assert len(named) == 1
    assert named[0].startswith("1 of 10 images of Pascal VOC train is left out, first: ")
