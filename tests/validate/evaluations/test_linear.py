"""The task linear: which features the probe reads, that it learns, and that training is the checked one."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from saccade.errors import SaccadeError
from saccade.runtime.backbone import BackbonePipeline
from saccade.runtime.loading import load
from saccade.validate.evaluations import linear
from saccade.validate.evaluations.linear import LinearSettings
from saccade.validate.preparation import ShortSideCrop

Evaluated = Callable[..., dict[str, Any]]
TRAINING = ["--rate", 0.3, "--epochs", 60, "--train-batch", 100]  # the published rate is for a million images


@pytest.fixture
def backbone(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("neco")


@pytest.fixture
def few_digits(digits_folder: Path, tmp_path: Path) -> Path:
    """Return three digits of 20 and 8 pictures."""
    for label in "047":
        for part, count in (("train", 20), ("val", 8)):
            (tmp_path / "few" / part / label).mkdir(parents=True)
            for path in sorted((digits_folder / part / label).iterdir())[:count]:
                shutil.copy(path, tmp_path / "few" / part / label)
    return tmp_path / "few"


def test_a_probe_of_four_blocks_tells_digits_and_an_engine_equals_itself(
    backbone: Path, digits_folder: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = ["--size", 56, "--features", tmp_path, "--compare", "openvino:fp32", "--max-drop", 0, *TRAINING]
    found = evaluated("linear", backbone, digits_folder, *options)
    side = found["sides"][0]
    assert side["details"]["blocks"] == 4
    assert [score["name"] for score in side["scores"]] == ["top-1", "top-5"]
    assert side["scores"][0]["value"] > 60  # chance is 10 %
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 120)


def test_the_probe_comes_near_to_logistic_regression_on_the_same_features(
    backbone: Path, few_digits: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    found = evaluated("linear", backbone, few_digits, "--size", 28, "--features", tmp_path, *TRAINING)
    data = linear.read(few_digits, LinearSettings())
    prepare = ShortSideCrop(32, 28)
    with load(str(backbone)) as pipeline:
        assert isinstance(pipeline, BackbonePipeline)
        parts = [pipeline([prepare(path) for path in part.paths], size=28).cls_last4 for part in (data.train, data.val)]
    train, val = (np.asarray(part).reshape(len(part), -1) for part in parts)
    regression = LogisticRegression(max_iter=1000).fit(train, data.train.labels)
    expected = 100 * regression.score(val, data.val.labels)
    assert found["sides"][0]["scores"][0]["value"] == pytest.approx(expected, abs=12.5)  # 3 of 24 images


@pytest.mark.parametrize(
    ("options", "shape"),
    [((), (4, 128)), (("--blocks", 2), (2, 128)), (("--blocks", 1), (128,)), (("--patch-mean",), (128, 2))],
)
def test_the_probe_reads_the_blocks_that_are_asked_for(
    options: tuple[object, ...], shape: tuple[int, ...], backbone: Path, few_digits: Path, tmp_path: Path,
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[tuple[int, ...]] = []
    fit = linear.fit_linear_probe

    def watched(views: list[np.ndarray], *arguments: Any, **named: Any) -> Any:
        seen.extend(view.shape for view in views)
        return fit(views, *arguments, **named)

    monkeypatch.setattr(linear, "fit_linear_probe", watched)
    evaluated("linear", backbone, few_digits, "--size", 28, "--epochs", 1, "--features", tmp_path / "features", *options)
    assert seen == [(60, *shape)]


def test_other_blocks_of_the_same_features_are_not_extracted_again(
    backbone: Path, few_digits: Path, tmp_path: Path, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--size", 28, "--epochs", 1, "--features", tmp_path / "features"]
    evaluated("linear", backbone, few_digits, *options)
    found = sorted(tmp_path.glob("features/*/*"))
    evaluated("linear", backbone, few_digits, *options, "--blocks", 3, "--seed", 5)
    assert sorted(tmp_path.glob("features/*/*")) == found


def test_epochs_take_the_views_in_turns_and_views_differ(
    backbone: Path, few_digits: Path, tmp_path: Path, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    fit = linear.fit_linear_probe

    def watched(views: list[np.ndarray], *arguments: Any, **named: Any) -> Any:
        seen.extend(np.array(view) for view in views)
        return fit(views, *arguments, **named)

    monkeypatch.setattr(linear, "fit_linear_probe", watched)
    options = ["--size", 28, "--epochs", 1, "--features", tmp_path / "features", "--views", 2]
    evaluated("linear", backbone, few_digits, *options)
    assert len(seen) == 2
    assert (np.abs(seen[0] - seen[1]).max(axis=1) > 0.01).all()  # no image has the same crop twice


def test_lookwhere_is_probed_on_its_final_cls(
    small_bundle: Callable[[str], Path], few_digits: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = ["--size", 56, "--features", tmp_path / "features", *TRAINING]
    found = evaluated("linear", small_bundle("dinov2"), few_digits, *options, "--k", 6, 12)
    assert [side["k"] for side in found["sides"]] == [6, 12]
    assert all(side["details"]["blocks"] == 1 for side in found["sides"])
    assert found["sides"][1]["scores"][0]["value"] > 50  # chance is 33 %
    refused = evaluated("linear", small_bundle("dinov2"), few_digits, *options, "--k", 6, "--blocks", 4, code=1)
    assert refused["error"] == "openvino fp32 k=6 gives no cls_last4; it gives cls, tokens"


def test_a_patch_mean_goes_with_one_block(few_digits: Path) -> None:
    with pytest.raises(SaccadeError, match=r"--patch-mean goes with one block's cls, not with --blocks 4; leave one out"):
        linear.read(few_digits, LinearSettings(patch_mean=True, blocks=4))


def test_fewer_images_than_classes_are_refused(
    backbone: Path, few_digits: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    first = sorted((few_digits / "train/0").iterdir())
    for path in first:
        path.write_bytes(b"")
    refused = evaluated("linear", backbone, few_digits, "--size", 28, "--features", tmp_path / "features", code=1)
    assert refused["error"].startswith(f"no training image of 1 (0) classes can be read, first {first[0]} (")
