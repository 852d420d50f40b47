"""Labelled images in folders: labels by sorted class names, and what is wrong with a folder."""
from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.errors import SaccadeError
from saccade.validate.datasets.image_folder import (
    failed_note,
    few,
    labels_of,
    read_image_folder,
    shares_by_class,
    training_labels,
)
from saccade.validate.features import Features

GOOD = ("train/cat/1.jpg", "train/cat/deep/2.PNG", "train/ant/3.jpeg", "val/cat/4.webp", "val/ant/5.jpg")


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def extracted(paths: list[Path], *failed: Path) -> Features:
    names = [str(path) for path in paths if path not in failed]
    return Features(names, {}, {str(path): "damaged" for path in failed})


def test_labels_follow_the_sorted_names_of_classes_and_images_those_of_files(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, *GOOD, "train/cat/notes.txt", "train/readme.jpg"))
    assert data.classes == ["ant", "cat"]
    assert [str(path.relative_to(tmp_path)) for path in data.train.paths] == [GOOD[2], GOOD[0], GOOD[1]]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.val.labels.tolist() == [0, 1]
    assert data.notes == ()


def test_a_class_that_is_not_tested_is_noted(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, *GOOD, "train/dog/6.jpg", "train/eel/7.jpg"))
    assert data.notes == ("2 (dog, eel) of 4 classes have no image in val",)


def test_other_splits_may_be_asked_for(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, "a/x/1.jpg", "a/y/1.jpg", "b/y/2.jpg"), ("a", "b"))
    assert (data.classes, data.val.labels.tolist()) == (["x", "y"], [1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "train: no such folder; images are expected in train/CLASS/"),
        (GOOD[:3], "val: no such folder; images are expected in val/CLASS/"),
        (("train/1.jpg",), "train: holds no images; they are expected in train/CLASS/"),
        ((*GOOD, "val/emu/8.jpg"), r"val: 1 (emu) of its classes is not in train; add or remove them"),
        (("train/cat/1.jpg", "val/cat/2.jpg"), "train: cat is its only class, so any answer is right; add others"),
        ((*GOOD, "train/dog/readme.txt"), "train/dog: a class without an image; add some or remove the folder"),
    ],
)
def test_a_folder_that_makes_no_sense_is_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write(tmp_path, *names)
    with pytest.raises(SaccadeError) as caught:
        read_image_folder(tmp_path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_unreadable_images_have_no_label_and_are_counted_and_named(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, *GOOD))
    bad = data.train.paths[1]
    features = extracted(data.train.paths, bad)
    assert labels_of(data.train, features).tolist() == [0, 1]
    assert training_labels(data, features).tolist() == [0, 1]
    assert failed_note(features, "train") == (
        f"1 of 3 images of train cannot be read and is left out, first {bad} (damaged)",
    )
    assert failed_note(extracted(data.val.paths), "val") == ()


def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, *GOOD))
    ant = data.train.paths[0]
    with pytest.raises(SaccadeError) as caught:
        training_labels(data, extracted(data.train.paths, ant))
    assert str(caught.value) == f"no training image of 1 (ant) classes can be read, first {ant} (damaged)"


def test_a_folder_that_cannot_be_listed_is_named_and_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, listed = write(tmp_path, "train/a/1.png", "train/b/deep/2.png", "val/a/3.png"), os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SaccadeError, match="train/b/deep: Permission denied, so its images are not known; make it readable"):
        read_image_folder(root)


def test_shares_are_those_of_the_classes_that_were_tested(tmp_path: Path) -> None:
    data = read_image_folder(write(tmp_path, *GOOD, "train/dog/6.jpg"))
    labels, hits = np.array([0, 0, 0, 1]), np.array([True, False, False, True])
    assert shares_by_class(data, labels, hits) == {"ant": pytest.approx(100 / 3), "cat": 100}


def test_many_names_are_shortened() -> None:
    assert (few(["a"]), few(list("abcd"))) == ("1 (a)", "4 (a, b, c, …)")
