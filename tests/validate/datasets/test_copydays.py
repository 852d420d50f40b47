"""Copydays as folders: which originals each copy was made of, and what is missing."""
from __future__ import annotations

from pathlib import Path

import pytest

from saccade.errors import SaccadeError
from saccade.validate.datasets.copydays import BLOCKS, read_copydays

ORIGINALS = ("200000.jpg", "200100.jpg", "200200.jpg")


def write(root: Path, **blocks: tuple[str, ...]) -> None:
    for block, names in blocks.items():
        folder = root / block.replace("_", "/")
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()


def positives(root: Path, block: str) -> dict[str, list[int]]:
    found = read_copydays(root).blocks[block]
    return {path.name: rows.tolist() for path, rows in zip(found.paths, found.positives, strict=True)}


def test_every_block_finds_its_originals(tmp_path: Path) -> None:
    write(tmp_path, original=ORIGINALS, strong=("200101.jpg", "200001.jpg"), jpegqual_3=("c.jpg", "a.jpg", "b.jpg"))
    assert positives(tmp_path, "strong") == {"200001.jpg": [0], "200101.jpg": [1]}  # the first four characters
    assert positives(tmp_path, "jpegqual/3") == {"a.jpg": [0], "b.jpg": [1], "c.jpg": [2]}  # one each, in order


def test_blocks_are_the_official_ones_strong_first() -> None:
    assert BLOCKS[0] == "strong"
    assert [name for name in BLOCKS if name.startswith("jpegqual")] == [
        f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)
    ]
    assert [name for name in BLOCKS if name.startswith("crops")] == [
        f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)
    ]


def test_a_block_that_lacks_copies_is_paired_by_name_and_noted(tmp_path: Path) -> None:
    write(tmp_path, original=ORIGINALS, strong=("200001.jpg",), crops_50=("200200.png", "200100.jpg"))
    assert positives(tmp_path, "crops/50") == {"200100.jpg": [1], "200200.png": [2]}
    assert read_copydays(tmp_path).notes == (
        "3 originals and 1 strong copy; the published data set has 157 and 229",
        "17 (jpegqual/3, jpegqual/5, jpegqual/8, …) of 19 blocks are missing",
        "crops/50 has 2 copies of 3 originals",
    )


def test_a_copy_without_an_original_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, original=ORIGINALS, strong=("200001.jpg",), crops_50=("999.jpg",))
    with pytest.raises(SaccadeError, match=r"crops/50/999.jpg: no original has its name, and crops/50 has 1 image for 3"):
        read_copydays(tmp_path)
    (tmp_path / "strong/777.jpg").touch()
    with pytest.raises(SaccadeError, match=r"copydays: strong/777.jpg has no original whose name begins with 777"):
        read_copydays(tmp_path)


def test_originals_and_strong_copies_are_needed(tmp_path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"original: no such folder"):
        read_copydays(tmp_path)
    write(tmp_path, original=ORIGINALS)
    with pytest.raises(SaccadeError, match=r"strong: no such folder"):
        read_copydays(tmp_path)
    (tmp_path / "strong").mkdir()
    with pytest.raises(SaccadeError, match=r"strong: holds no images"):
        read_copydays(tmp_path)
