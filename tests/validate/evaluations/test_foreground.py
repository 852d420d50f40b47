"""The task foreground: objects found without labels. Random weights attend to nothing in particular, so that where the score
matters attention is that of a source that likes bright patches, which the objects are.
"""
from __future__ import annotations

import re
from collections.abc import Callable
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
from saccade.validate.evaluations import foreground
from saccade.validate.evaluations.foreground import TASK, ForegroundSettings
from saccade.validate.extraction import Extractor

MOST = 100 * 3 / 21  # three of VOC's classes are in the masks, and the mean is over all


def evaluate(root: Path, features: Path, *sources: Any, **settings: Any) -> Any:
    chosen = ForegroundSettings(**{"size": 112, "clusters": 12, "seeds": 2, **settings})
    extractors = [Extractor(source, features, progress_bar) for source in sources]
    return evaluate_sources(TASK, TASK.read(root, chosen), chosen, extractors)


def test_a_backbones_attention_and_tokens_suffice(
    small_backbone: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    options = ["--size", 112, "--clusters", 6, "--seeds", 1, "--features", tmp_path, "--compare", "openvino:fp32"]
    found = evaluated("foreground", small_backbone("dino"), voc_mosaics, *options, "--max-drop", 0)
    names = [score["name"] for score in found["sides"][0]["scores"]]
    assert names == ["mIoU, CBFE", "mIoU, CBFE: deviation over seeds", "foreground IoU"]
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 6)


def test_attention_that_likes_objects_gives_the_foreground_and_one_that_does_not_is_caught(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path
) -> None:
    good, bad = evaluate(voc_mosaics, tmp_path, patch_colours(), patch_colours(noise=1))
    cbfe, deviation, foreground = good.outcome.scores
    assert foreground.value > 60  # a third of the pixels are an object's: a foreground that is everything has 33
    assert bad.outcome.scores[2].value < 45
    assert cbfe.value > 0.4 * MOST  # twenty clusters for two objects: only the best of each counts
    assert compare(good, bad).high < 0
    assert np.std(good.outcome.details["CBFE"]["miou_by_seed"]) == pytest.approx(deviation.value)


def test_each_split_is_judged_by_its_own_attention(patch_colours: Any, tmp_path: Path) -> None:
    columns = np.tile(np.eye(4, dtype=np.float32), (4, 1))  # four patches of a row differ
    noisy = np.zeros((4, 100, 100), bool)
    noisy[:2, :, 50:], noisy[2:, :, :50] = True, True  # attention is right in training, left in validation
    found = foreground.Found(columns[None].repeat(4, axis=0), noisy, noisy.astype(np.uint8), trained=2)
    masks, threshold = foreground._foreground(found, (4, 4), 4, Extractor(patch_colours(), tmp_path, progress_bar))
    assert threshold == pytest.approx(0.95)
    assert np.array_equal(masks, noisy)


def test_communities_join_the_clusters_of_an_object(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    pytest.importorskip("infomap", reason="infomap needs Python 3.11")
    (found,) = evaluate(voc_mosaics, tmp_path, patch_colours(), communities=8, link_weight=0.05)
    communities, _, cbfe, *_ = found.outcome.scores
    assert (communities.name, cbfe.name) == ("mIoU, communities", "mIoU, CBFE")
    assert communities.value > cbfe.value  # what CBFE leaves in pieces is one
    assert len(found.outcome.details["communities"]["miou_by_seed"]) == 10
    assert found.outcome.samples.shape == (6, 10, 3, 21)


def test_the_picture_shows_validation_images(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (found,) = evaluate(voc_mosaics, tmp_path, patch_colours(), seeds=1)
    ((_, sheet),) = found.outcome.pictures()
    top = GAP + caption_height(224)
    image = np.asarray(sheet)[top : top + 224, GAP : GAP + 224].astype(int)
    first = Image.open(voc_mosaics / "VOCSegmentation/images/0010.jpg").resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(image - np.asarray(first)).max() <= 1


def test_other_data_and_other_models_are_refused(
    tmp_path: Path, voc_mosaics: Path, small_bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SaccadeError, match="does not hold Pascal VOC; its folders are expected as --help shows them"):
        TASK.read(tmp_path, ForegroundSettings())
    bundle = str(small_bundle("dinov2"))
    capsys.readouterr()
    assert main(["evaluate", "foreground", bundle, str(voc_mosaics)]) == 1
    assert "foreground needs what only a plain backbone gives" in capsys.readouterr().err


def test_more_clusters_than_a_split_shows_are_refused_with_a_number_that_works(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path
) -> None:
    message = r"foreground: \d+ of 200 clusters are in no training image, .*; give more images or --clusters (\d+)$"
    with pytest.raises(SaccadeError, match=message) as refused:
        evaluate(voc_mosaics, tmp_path, patch_colours(), clusters=200)
    found = re.search(message, str(refused.value))
    assert found is not None
    evaluate(voc_mosaics, tmp_path, patch_colours(), clusters=int(found[1]))


def test_splits_that_share_no_cluster_are_refused(patch_colours: Any, tmp_path: Path) -> None:
    apart = np.repeat(np.eye(2, dtype=np.float32), 16, axis=0).reshape(2, 16, 2)  # one image of each split
    found = foreground.Found(apart, np.ones((2, 100, 100), bool), np.ones((2, 100, 100), np.uint8), trained=1)
    with pytest.raises(SaccadeError, match=r"clusters are in no training image, so attention cannot judge .* images$"):
        foreground._foreground(found, (4, 4), 8, Extractor(patch_colours(), tmp_path, progress_bar))
