"""The task dense-nn: patches of photographs take the labels of alike patches."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.errors import SaccadeError
from saccade.validate.evaluation import compare, evaluate_sources
from saccade.validate.evaluations.dense_nn import TASK, DenseNnSettings
from saccade.validate.extraction import Extractor

MOST = 100 * 3 / 21  # three of VOC's classes are in the masks, and the mean is over all


def evaluate(root: Path, features: Path, *sources: Any, **settings: Any) -> Any:
    chosen = DenseNnSettings(**{"size": 112, "neighbours": 5, **settings})
    extractors = [Extractor(source, features, progress_bar) for source in sources]
    return evaluate_sources(TASK, TASK.read(root, chosen), chosen, extractors)


def test_random_weights_find_alike_patches_and_a_damaged_engine_is_caught(
    small_backbone: Callable[[str], Path], damaged: Callable[[Path], Path], voc_mosaics: Path, tmp_path: Path,
    evaluated: Callable[..., Any],
) -> None:  # fmt: skip
    bundle = damaged(small_backbone("neco"))
    options = ["--size", 112, "--neighbours", 5, "--features", tmp_path / "kept"]
    compared = ["--compare", "onnxruntime:int8", "--max-drop", 1]
    found = evaluated("dense-nn", bundle, voc_mosaics, *options, *compared, code=1)
    matched, plain = (score["value"] for score in found["sides"][0]["scores"])
    assert 0.7 * MOST < matched < MOST
    assert matched == plain  # every class is already best matched by itself
    assert found["sides"][0]["details"]["memory"] == 10 * 64
    (difference,) = found["differences"]
    assert difference["high"] < -2


def test_lookwhere_segments_by_filled_tokens(
    small_bundle: Callable[[str], Path], voc_mosaics: Path, tmp_path: Path, evaluated: Callable[..., Any]
) -> None:
    options = ["--size", 112, "--neighbours", 5, "--features", tmp_path, "--k", 5, 64]
    found = evaluated("dense-nn", small_bundle("dinov2"), voc_mosaics, *options)
    few, every = (side["scores"][0]["value"] for side in found["sides"])
    assert few < 0.7 * every
    assert every > 0.6 * MOST


def test_classes_that_exchange_their_names_are_matched_again(own_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (before,) = evaluate(own_mosaics, tmp_path, patch_colours())
    for path in (own_mosaics / "VOCSegmentation/SegmentationClassAug").glob("*.png"):
        exchanged = np.arange(256, dtype=np.uint8)
        exchanged[[1, 2]] = 2, 1
        Image.fromarray(exchanged[np.array(Image.open(path))]).save(path)
    (after,) = evaluate(own_mosaics, tmp_path, patch_colours())
    assert after.outcome.scores[0].value == pytest.approx(before.outcome.scores[0].value, abs=0.5)  # ties are drawn anew
    assert after.outcome.scores[1].value < 0.5 * MOST


def test_a_bounded_memory_keeps_rare_classes(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    (small,) = evaluate(voc_mosaics, tmp_path, patch_colours(), memory=120)
    assert small.outcome.details["memory"] == 120
    assert small.outcome.scores[0].value > 0.6 * MOST


def test_noise_is_caught_and_a_source_equals_itself(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    clean, again, noisy = evaluate(voc_mosaics, tmp_path, patch_colours(), patch_colours(), patch_colours(noise=1))
    same = compare(clean, again)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert compare(clean, noisy).high < -1


def test_the_default_size_fills_512_pixels_with_whole_patches(
    voc_mosaics: Path, patch_colours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = patch_colours()

    def run(images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        raise SaccadeError(f"sees {images[0].shape}")

    monkeypatch.setattr(source, "run", run)
    with pytest.raises(SaccadeError, match=r"sees \(504, 504, 3\)"):
        evaluate(voc_mosaics, tmp_path, source, size=0)


def test_a_memory_without_enough_patches_is_refused(voc_mosaics: Path, patch_colours: Any, tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match="memory rows: 10 are too few for 30 neighbours"):
        evaluate(voc_mosaics, tmp_path, patch_colours(), memory=10, neighbours=30)
