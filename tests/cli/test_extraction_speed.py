"""The command evaluate speed: what it times, and that two lanes give what one does."""
from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from saccade.cli.console import progress_bar
from saccade.cli.main import build_parser, main
from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.chain import Pipeline
from saccade.runtime.loading import load
from saccade.validate.extraction import Extractor
from saccade.validate.extraction_speed import measure
from saccade.validate.preparation import Squash
from saccade.validate.scaled_source import ScaledSource
from saccade.validate.sources import LANES, BackboneSource, Kept, Lanes, LookWhereSource, lanes_of


def test_speeds_are_reported_with_their_conditions(
    small_backbone: Callable[[str], Path], photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [small_backbone("dino"), photo_folder, "--size", 64, "--batch", 2, 4, "--rounds", 2]
    assert main(["evaluate", "speed", *map(str, words), "--outputs", "cls", "tokens", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["cores"] >= 1
    assert [each["batch"] for each in found["batches"]] == [2, 4]
    assert all(each["extract_ms"] > 0 and each["share"] > 0.05 for each in found["batches"])


class Sleeping:
    """A source that takes 20 ms for an image, on no core at all."""

    label, k, patch, outputs, recipe = "sleeping", None, 8, ("cls",), {"engine": "none"}

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        time.sleep(0.02 * len(images))
        return {"cls": np.zeros((len(images), 1), np.float32)}


def test_decoding_hides_behind_a_network_that_leaves_the_cores_free(photo_folder: Path) -> None:
    images = sorted(photo_folder.glob("*.png"))
    prepare = Squash((8, 8))
    pixels = [prepare(path) for path in images]
    speed = measure(Sleeping(), images, pixels, prepare, ["cls"], batch=2, workers=2, rounds=3)
    assert speed.compute_ms == pytest.approx(20, rel=0.5)
    assert speed.share > 0.7


def test_of_a_large_folder_forty_batches_are_timed_and_decoded_once_for_the_network_alone(tmp_path: Path) -> None:
    decoded: list[Path] = []
    seen: list[int] = []

    class Counting(Sleeping):
        def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
            seen.append(len(images))
            return {"cls": np.zeros((len(images), 1), np.float32)}

    def prepare(path: Path) -> np.ndarray:
        decoded.append(path)
        return np.zeros((8, 8, 3), np.uint8)

    images = [tmp_path / f"{number}.png" for number in range(1000)]
    pixels = [np.zeros((8, 8, 3), np.uint8)] * len(images)
    measure(Counting(), images, pixels, prepare, ["cls"], batch=2, workers=1, rounds=1)
    assert seen == [2] * 40 * 2  # the network alone, and the extraction
    assert decoded == images[:80] * 2  # the decoding alone, and the extraction


def test_as_many_threads_decode_as_there_are_cores() -> None:
    for words in (["evaluate", "speed", "bundle", "images"], ["evaluate", "knn", "bundle", "data"]):
        assert build_parser().parse_args(words).workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch, --workers and --rounds are 1 or more"),
        (["--outputs", "logits"], "--outputs logits: .* gives cls, tokens"),
        (["--batch", "8"], "16 images are fewer than 4 batches of 8; give more images or a smaller --batch"),
        (["--k", "5"], "--k means nothing to a plain backbone"),
        (["--size", "60"], "size 60x60 is not a multiple of the 8 px patch; the nearest is 64x64"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    options: list[str], message: str, small_backbone: Callable[[str], Path], photo_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["evaluate", "speed", str(small_backbone("dino")), str(photo_folder), "--size", "64", *options]
    assert main(words) == 1
    assert re.search(message, capsys.readouterr().err)


def test_two_lanes_give_what_one_gives(
    small_backbone: Callable[[str], Path], small_bundle: Callable[[str], Path], photo_folder: Path, tmp_path: Path
) -> None:
    images = sorted(photo_folder.glob("*.png"))
    for number, path in enumerate((small_backbone("dino"), small_bundle("dinov2"))):
        lanes = Lanes(functools.partial(load, path, streams=LANES))
        with load(path) as pipeline, contextlib.closing(lanes):
            pair = [source_of(pipeline, opened) for opened in (None, lanes)]
            roots = [tmp_path / f"{number} on {name}" for name in ("one", "two")]
            extractors = [Extractor(*each, progress_bar, batch=3) for each in zip(pair, roots, strict=True)]
            found = [extract(images, Squash((56, 56)), ["cls", "tokens"]) for extract in extractors]
        for name in ("cls", "tokens"):
            np.testing.assert_allclose(found[0].arrays[name], found[1].arrays[name], atol=1e-4)


def test_scales_are_run_side_by_side_as_one_by_one(
    small_backbone: Callable[[str], Path], photographs: list[np.ndarray]
) -> None:
    path = small_backbone("dino")
    batches = [[photograph[: 64 + 8 * number, :80]] for number, photograph in enumerate(photographs * 3)]
    lanes = Lanes(functools.partial(load, path, streams=LANES))
    with load(path) as pipeline, contextlib.closing(lanes):
        source = ScaledSource(source_of(pipeline, lanes), (1, 1 / 2**0.5, 0.5))
        found = list(source.stream(batches, ["cls"]))
        assert len(found) == len(batches)
        for batch, each in zip(batches, found, strict=True):
            np.testing.assert_allclose(each["cls"], source.run(batch, ["cls"])["cls"], atol=1e-4)


def source_of(pipeline: Pipeline | BackbonePipeline, lanes: Lanes | None) -> BackboneSource | LookWhereSource:
    if isinstance(pipeline, BackbonePipeline):
        return BackboneSource(pipeline, lanes)
    return LookWhereSource(pipeline, Kept(8), lanes)


def test_lanes_are_a_cpu_s_with_several_cores() -> None:
    assert lanes_of("openvino", None, 1) == 1
    assert lanes_of("openvino", "cpu", 4) == LANES
    assert lanes_of("onnxruntime", "0", 4) == 1
    assert lanes_of("tensorrt", None, 4) == 1


def test_too_few_images_are_named(photo_folder: Path) -> None:
    with pytest.raises(SaccadeError, match="3 images are fewer than 4 batches of 1"):
        measure(Sleeping(), sorted(photo_folder.glob("*.png"))[:3], [], Squash((8, 8)), ["cls"], 1, 1, 1)
