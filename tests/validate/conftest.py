"""The host as a GPU, from the tests of the runtime, for what checks one; photographs with masks, and tokens of them."""
from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image


@pytest.fixture(scope="session")
def new_device(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that opens one more GPU of ours."""
    path = Path(__file__).parents[1] / "runtime/host_device.py"
    spec = importlib.util.spec_from_file_location("host_device", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "HostDevice"):
        spec.loader.exec_module(module)
    kernels = module.compile_kernels(tmp_path_factory.mktemp("host_kernels"))
    return lambda: module.HostDevice(kernels)


# ---- photographs with masks, in Pascal VOC's layout

SIDE = 112  # pixels of the mosaics: 8 x 8 patches of 14
SPLITS = {"train": range(10), "trainaug": range(10), "val": range(10, 16)}
DISC, DIGIT, VOID = 1, 2, 255  # aeroplane, bicycle and the border round an object, to VOC


@pytest.fixture(scope="session")
def voc_mosaics(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """Return a folder with VOCSegmentation of mosaics: dark parts of one photograph, before them a red disc of the other and
    a bright digit. Three of 21 classes are there, so that an mIoU reaches 3 / 21 at most. Read only.
    """
    root = tmp_path_factory.mktemp("mosaics")
    folder = root / "VOCSegmentation"
    for name in ("images", "SegmentationClass", "SegmentationClassAug", "sets"):
        (folder / name).mkdir(parents=True)
    digits = sklearn.datasets.load_digits().images
    for split, numbers in SPLITS.items():
        masks = folder / ("SegmentationClass" if split == "val" else "SegmentationClassAug")
        (folder / f"sets/{split}.txt").write_text("".join(f"{number:04}\n" for number in numbers))
        for number in numbers:
            image, labels = mosaic(photographs, digits[number], number)
            Image.fromarray(image).save(folder / f"images/{number:04}.jpg", quality=95)
            mask = Image.fromarray(labels).convert("P")
            mask.putpalette([value for label in range(256) for value in (255 - label, label // 2, 90)])  # not the numbers
            mask.save(masks / f"{number:04}.png")
    return root


@pytest.fixture
def own_mosaics(voc_mosaics: Path, tmp_path: Path) -> Path:
    """Return a copy of them to damage."""
    return Path(shutil.copytree(voc_mosaics, tmp_path / "own"))


def mosaic(photographs: list[np.ndarray], digit: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its mask: the disc on one side, at any height, and the digit on the other."""
    random = np.random.default_rng(seed)
    china, flower = photographs
    top, left, right = random.integers(0, 427 - SIDE), random.integers(0, 640 - SIDE), random.integers(2)
    image = china[top : top + SIDE, left : left + SIDE] // 3
    labels = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(rows - random.integers(34, 78), columns - (28 + 56 * right))
    labels[distance < 28], labels[distance < 26] = VOID, DISC
    glyph = np.asarray(Image.fromarray((digit * 15).astype(np.uint8)).resize((48, 96))) > 90
    start = 4 + 56 * (1 - right)
    labels[8:104, start : start + 48][glyph] = DIGIT
    red = (128 + flower[150 : 150 + SIDE, 250 : 250 + SIDE] // 2) * np.array([1, 0.25, 0.5])
    white = 255 - china[:SIDE, :SIDE] // 4
    image[labels == DISC], image[labels == DIGIT] = red[labels == DISC], white[labels == DIGIT]
    return image, labels


class PatchColours:
    """A source whose tokens say the mean colour of each patch and its spread, in 60 dimensions, and whose attention likes
    bright patches; `noise` spoils both, and `stop_after` batches it is interrupted.
    """

    k, patch, outputs = None, 14, ("tokens", "attention")

    def __init__(self, noise: float = 0, stop_after: int | None = None) -> None:
        self.label = f"noise {noise}"
        self.recipe = {"noise": str(noise)}
        self._noise, self._stop_after = noise, stop_after
        self.images = 0

    def run(self, images: list[np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        if self._stop_after == 0:
            raise KeyboardInterrupt
        if self._stop_after is not None:
            self._stop_after -= 1
        self.images += len(images)
        pixels = np.stack(images).astype(np.float32) / 255
        grid = (pixels.shape[1] // self.patch, pixels.shape[2] // self.patch)
        cells = pixels.reshape(len(pixels), grid[0], self.patch, grid[1], self.patch, 3)
        facts = np.concatenate([cells.mean(axis=(2, 4)), cells.std(axis=(2, 4))], axis=-1)
        random = np.random.default_rng(round(1000 * float(pixels.mean())))
        facts += self._noise * random.standard_normal(facts.shape)
        tokens = facts @ np.random.default_rng(0).standard_normal((6, 60))
        tokens += 0.01 * random.standard_normal(tokens.shape)
        weights = np.exp(6 * facts[..., :3].max(axis=-1)).reshape(len(images), 1, -1)
        found = {
            "tokens": tokens.reshape(len(images), -1, 60).astype(np.float32),
            "attention": (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32),
        }
        return {name: found[name] for name in outputs}


@pytest.fixture
def patch_colours() -> type[PatchColours]:
    """Return the class of a source that needs no engine."""
    return PatchColours
