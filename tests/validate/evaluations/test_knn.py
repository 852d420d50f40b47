"""The task knn, from a folder of pictures to a verdict."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.neighbors import KNeighborsClassifier

from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.loading import load
from saccade.validate.evaluations import knn
from saccade.validate.evaluations.knn import KnnSettings

Evaluated = Callable[..., dict[str, Any]]


def scores(found: dict[str, Any], side: int = 0) -> dict[str, float]:
    return {score["name"]: score["value"] for score in found["sides"][side]["scores"]}


@pytest.fixture
def backbone(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("neco")


def test_digits_are_told_far_above_chance_and_an_engine_equals_itself(
    backbone: Path, digits_folder: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = ["--size", 56, "--features", tmp_path, "--compare", "openvino:fp32", "--max-drop", 0]
    found = evaluated("knn", backbone, digits_folder, *options)
    assert list(scores(found))[::2] == [f"top-1, {neighbours} neighbours" for neighbours in (10, 20, 100, 200)]
    assert found["metric"] == "top-1, 20 neighbours"
    assert scores(found)["top-1, 20 neighbours"] > 50  # chance is 10 %
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 120)
    assert not difference["significant"]
    assert found["passed"]
    by_class = found["sides"][0]["details"]["top1_by_class"]
    assert list(by_class) == list("0123456789")
    assert sum(by_class.values()) / 10 == pytest.approx(scores(found)["top-1, 20 neighbours"])  # 12 pictures of each


def test_one_neighbour_votes_as_scikit_learn_s_classifier(
    backbone: Path, digits_folder: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    found = evaluated("knn", backbone, digits_folder, "--size", 56, "--features", tmp_path, "--neighbours", 1)
    data = knn.read(digits_folder, KnnSettings())
    prepare = knn.ShortSideCrop(64, 56)
    with load(str(backbone)) as pipeline:
        assert isinstance(pipeline, BackbonePipeline)
        train, val = (pipeline([prepare(path) for path in part.paths], size=56).cls for part in (data.train, data.val))
    classifier = KNeighborsClassifier(1, metric="cosine").fit(train, data.train.labels)
    assert scores(found)["top-1, 1 neighbour"] == pytest.approx(100 * classifier.score(val, data.val.labels))


def test_an_engine_that_sees_nothing_is_caught(
    backbone: Path, damaged: Callable[[Path], Path], digits_folder: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = ["--size", 56, "--features", tmp_path / "features", "--compare", "onnxruntime:int8", "--max-drop", 5]
    found = evaluated("knn", damaged(backbone), digits_folder, *options, code=1)
    (difference,) = found["differences"]
    assert difference["significant"]
    assert difference["high"] < 0
    assert not found["passed"]


def test_too_many_neighbours_and_unreadable_images_are_left_out_and_noted(
    backbone: Path, digits_folder: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    data = tmp_path / "data"
    for label in "01":
        for part, count in (("train", 6), ("val", 2)):
            (data / part / label).mkdir(parents=True)
            for path in sorted((digits_folder / part / label).iterdir())[:count]:
                shutil.copy(path, data / part / label)
    (data / "train/0/00.png").write_bytes(b"no picture")
    (data / "val/1/empty.jpg").touch()
    options = ["--size", 28, "--features", tmp_path / "features", "--neighbours"]
    found = evaluated("knn", backbone, data, *options, 11, 5, 12, 40)
    assert list(scores(found))[::2] == ["top-1, 5 neighbours", "top-1, 11 neighbours"]
    assert found["metric"] == "top-1, 11 neighbours"  # without the usual 20, what is asked for first
    train, val, left_out = found["notes"]
    assert train.startswith(f"1 of 12 images of train cannot be read and is left out, first {data / 'train/0/00.png'} (")
    assert val.startswith(f"1 of 5 images of val cannot be read and is left out, first {data / 'val/1/empty.jpg'} (")
    assert left_out == "neighbours [12, 40] are more than 11 training images and are left out"
    refused = evaluated("knn", backbone, data, *options, 40, code=1)
    assert refused["error"].startswith("memory rows: 11 are too few for 40 neighbours")


def test_a_number_of_neighbours_that_is_given_twice_is_refused(digits_folder: Path) -> None:
    with pytest.raises(SaccadeError, match=r"--neighbours 5 7 5: give each number once"):
        knn.read(digits_folder, KnnSettings(neighbours=(5, 7, 5)))
