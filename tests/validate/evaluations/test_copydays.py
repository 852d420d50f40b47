"""The task copydays on copies made of photographs: mild ones are found, and what is missing is told."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

Evaluated = Callable[..., dict[str, Any]]
SIZE = ["--size", 56]


@pytest.fixture
def copies(photo_folder: Path, tmp_path: Path) -> Path:
    """Return a data folder of twelve photographs, their copies of three kinds and four other images."""
    root = tmp_path / "data"
    for folder in ("original", "strong", "jpegqual/10", "crops/50", "others"):
        (root / folder).mkdir(parents=True)
    for number, path in enumerate(sorted(photo_folder.iterdir())):
        image, name = Image.open(path), f"{2000 + number}00.jpg"
        if number >= 12:
            image.save(root / "others" / name)
            continue
        image.save(root / "original" / name, quality=95)
        image.save(root / "jpegqual/10" / name, quality=10)
        image.crop((30, 30, 170, 170)).save(root / "crops/50" / name, quality=95)
        image.filter(ImageFilter.GaussianBlur(2)).save(root / f"strong/{2000 + number}01.jpg")
    return root


def scores(found: dict[str, Any], side: int = 0) -> dict[str, float]:
    return {score["name"]: score["value"] for score in found["sides"][side]["scores"]}


def test_copies_are_found_and_an_engine_equals_itself(
    small_backbone: Callable[[str], Path], copies: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = [*SIZE, "--features", tmp_path / "features", "--compare", "openvino:fp32", "--max-drop", 0]
    found = evaluated("copydays", small_backbone("neco"), copies, *options)
    reached = scores(found)
    assert list(reached) == ["mAP strong", "mAP jpegqual/10", "mAP crops/50"]
    assert reached["mAP jpegqual/10"] > 90  # by chance about 26 %
    assert reached["mAP strong"] > 50
    assert found["metric"] == "mAP strong"
    (difference,) = found["differences"]
    assert (difference["difference"], difference["low"], difference["high"], difference["samples"]) == (0, 0, 0, 12)
    by_copy = found["sides"][0]["details"]["ap_by_strong_copy"]
    assert list(by_copy)[:2] == ["200001.jpg", "200101.jpg"]
    assert np.mean(list(by_copy.values())) == pytest.approx(reached["mAP strong"])
    assert found["notes"][0] == "12 originals and 12 strong copies; the published data set has 157 and 229"
    assert found["notes"][1].startswith("16 (jpegqual/3, ")
    kept = {path.name for path in (tmp_path / "features").rglob("*.rows")}
    assert kept == {"copy.rows"}  # no tokens


def test_an_engine_that_sees_nothing_is_caught(
    small_backbone: Callable[[str], Path], damaged: Callable[[Path], Path], copies: Path, tmp_path: Path,
    evaluated: Evaluated,
) -> None:  # fmt: skip
    options = [*SIZE, "--features", tmp_path / "features", "--compare", "onnxruntime:int8", "--max-drop", 1]
    found = evaluated("copydays", damaged(small_backbone("neco")), copies, *options, code=1)
    assert found["differences"][0]["high"] < 0
    assert not found["passed"]


def test_distractors_cannot_help_and_whitening_changes_the_search(
    small_backbone: Callable[[str], Path], copies: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = [*SIZE, "--features", tmp_path / "features"]
    alone = scores(evaluated("copydays", small_backbone("neco"), copies, *options))
    others = scores(evaluated("copydays", small_backbone("neco"), copies, *options, "--distractors", copies / "others"))
    white = scores(evaluated("copydays", small_backbone("neco"), copies, *options, "--whitening", copies / "others"))
    assert all(others[name] <= alone[name] for name in alone)
    # Every original among the distractors as well: by equal cosines the database's own row comes first, so nothing changes
    doubled = evaluated("copydays", small_backbone("neco"), copies, *options, "--distractors", copies / "original")
    assert all(scores(doubled)[name] <= alone[name] for name in alone)
    assert white != alone
    refused = evaluated("copydays", small_backbone("neco"), copies, *options, "--whitening", copies / "none", code=1)
    assert refused["error"] == f"{copies / 'none'}: no such folder"


def test_copies_of_unreadable_originals_are_left_out_and_noted(
    small_backbone: Callable[[str], Path], copies: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    (copies / "original/200000.jpg").write_bytes(b"")
    (copies / "crops/50/200300.jpg").write_bytes(b"no picture")
    shutil.copy(copies / "strong/200501.jpg", copies / "strong/200502.jpg")
    options = [*SIZE, "--features", tmp_path / "features", "--compare", "openvino:fp32"]
    found = evaluated("copydays", small_backbone("neco"), copies, *options)
    original, crop, orphans, few = found["notes"][2:]
    assert original.startswith("1 of 12 images of original cannot be read and is left out, first ")
    assert crop.startswith("1 of 12 images of crops/50 cannot be read and is left out, first ")
    assert orphans == "3 copies are left out, since no original can be read"
    (difference,) = found["differences"]
    assert (difference["samples"], difference["units"]) == (12, 11)  # two copies are of one original
    assert few == "intervals rest on 11 independent samples or groups of them; of fewer than 20 they are too narrow"
    assert scores(found)["mAP jpegqual/10"] > 90  # the rows of the others have moved up
    for path in (copies / "original").iterdir():
        if path.name != "200300.jpg":
            path.write_bytes(b"")
    refused = evaluated("copydays", small_backbone("neco"), copies, *options, code=1)
    assert refused["error"] == (
        "copydays: no copy of crops/50 has an original that can be read; mend or remove the folder"
    )


def test_lookwhere_searches_with_every_k(
    small_bundle: Callable[[str], Path], copies: Path, tmp_path: Path, evaluated: Evaluated
) -> None:
    options = [*SIZE, "--features", tmp_path / "features", "--k"]
    found = evaluated("copydays", small_bundle("dinov2"), copies, *options, 5, 16)
    assert [side["k"] for side in found["sides"]] == [5, 16]
    assert scores(found, side=1)["mAP jpegqual/10"] > 60
    refused = evaluated("copydays", small_bundle("dinov2"), copies, *options, 4, code=1)
    assert refused["error"].startswith("k 4 is too small for dense output")
