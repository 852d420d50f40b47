"""Small checkpoints and bundles of every kind, made once a session, and two real photographs."""
from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import settings
from PIL import Image

from saccade.cli.main import main
from saccade.export.seeded_backbones import BackboneSizes
from saccade.validate.backbone_parity import BackboneResult
from saccade.validate.parity import ParityResult

# The same examples in every run: a failure then belongs to the change that brought it. To look further than these:
# make test PYTEST_ARGS="--hypothesis-profile explore"
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("fixed")

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
# The smallest sizes that keep every feature: several heads, several blocks, an odd position grid.
SMALL = ["--dim", "128", "--depth", "2", "--selector-depth", "1", "--grid", "9"]
# name -> (family, further options of make-checkpoint, task)
KINDS = {
    "dinov2": ("lookwhere-dinov2", [], None),
    "franca": ("lookwhere-franca", [], None),
    "classify": ("lookwhere-dinov2", ["--classes", "10"], "classify"),
    "segment": ("lookwhere-dinov2", ["--classes", "7"], "segment"),
}


# family -> sizes of a small plain backbone that every test can afford
SMALL_BACKBONES = {
    "neco": BackboneSizes(dim=128, patch=14, grid=9, depth=4, registers=4),
    "dinov2": BackboneSizes(dim=128, patch=14, grid=9, depth=4, registers=4),
    "dino": BackboneSizes(dim=64, patch=8, grid=6, depth=5, layer_scale=False, mask_token=False),
}


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that all workers of this run share (pytest-xdist gives each worker a base folder of its own)."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that workers make a thing once."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a kind to its small checkpoint file. Read only."""
    folder = shared_folder(tmp_path_factory, "checkpoints")

    def make(kind: str) -> Path:
        path = folder / f"{kind}.pt"
        with one_at_a_time(folder):
            if not path.exists():
                family, extra, _ = KINDS[kind]
                assert main(["make-checkpoint", family, "-o", str(path), *SMALL, *extra]) == 0
        return path

    return make


@pytest.fixture(scope="session")
def small_bundle(
    tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Callable[[str], Path]
) -> Callable[[str], Path]:
    """Return a function from a kind to its small bundle. Copy it before changing anything but its engines."""
    folder = shared_folder(tmp_path_factory, "bundles")

    def make(kind: str) -> Path:
        path = folder / kind
        with one_at_a_time(folder):
            if not path.exists():
                task = KINDS[kind][2]
                options = ["--task", task] if task else []
                assert main(["export", str(small_checkpoint(kind)), "-o", str(path), *options]) == 0
        return path

    return make


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the bundle of a small plain backbone; its checkpoint lies beside it as .pt.

    Exported in a process of its own: torch.compile leaves decompositions behind that the tracer takes.
    """
    folder = shared_folder(tmp_path_factory, "backbones")

    def make(family: str) -> Path:
        path = folder / family
        with one_at_a_time(folder):
            if not path.exists():
                import torch

                from saccade.export.seeded import seeded_weights
                from saccade.export.seeded_backbones import backbone_shapes

                weights = seeded_weights(backbone_shapes(SMALL_BACKBONES[family]), 1)
                torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, path.with_suffix(".pt"))
                command = [sys.executable, "-m", "saccade", "export", path.with_suffix(".pt"), "-o", path]
                subprocess.run([*command, "--family", family], check=True, timeout=300)
        return path

    return make


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ImageFolder of scikit-learn's digits: 40 training and 12 validation pictures of each. Read only."""
    folder = shared_folder(tmp_path_factory, "digits")
    with one_at_a_time(folder):
        if not (folder / "done").exists():
            digits = sklearn.datasets.load_digits()
            for label in range(10):
                for number, picture in enumerate(digits.images[digits.target == label][:52]):
                    path = folder / ("train" if number < 40 else "val") / str(label) / f"{number:02}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray((picture * 15.9).astype(np.uint8)).convert("RGB").resize((64, 64)).save(path)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Return scikit-learn's two sample photographs, uint8 (427, 640, 3)."""
    return [np.array(image) for image in sklearn.datasets.load_sample_images().images]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """Return a folder of 16 crops of both photographs, no two alike. Read only."""
    folder = shared_folder(tmp_path_factory, "photos")
    with one_at_a_time(folder):
        for index in range(16):
            row, column = divmod(index // 2, 4)
            crop = photographs[index % 2][200 * row : 200 * row + 200, 140 * column : 140 * column + 200]
            Image.fromarray(crop).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def converted_bundle(
    tmp_path_factory: pytest.TempPathFactory, small_bundle: Callable[[str], Path], photo_folder: Path
) -> Path:
    """Return a small bundle with every precision. Copy it before changing anything but its engines.

    It is kept whatever its parity: the bounds are a ViT-B's, and in a narrow model each rounding error weighs more.
    """
    folder = shared_folder(tmp_path_factory, "converted")
    path = folder / "bundle"
    with one_at_a_time(folder), pytest.MonkeyPatch.context() as patch:
        if not (folder / "done").exists():
            shutil.copytree(small_bundle("dinov2"), path, ignore=shutil.ignore_patterns("engines"))
            patch.setattr(ParityResult, "passed", True)
            for precision in ("fp16", "bf16", "int8", "fp8"):
                calibration = ["--calibration", str(photo_folder)] if precision in ("int8", "fp8") else []
                assert main(["convert", str(path), "--precision", precision, *calibration]) == 0
            (folder / "done").touch()
    return path


@pytest.fixture(scope="session")
def converted_backbone(
    tmp_path_factory: pytest.TempPathFactory, small_backbone: Callable[[str], Path], photo_folder: Path
) -> Path:
    """Return a small plain backbone with every precision. Copy it before changing anything but its engines.

    It is kept whatever its parity, as `converted_bundle` is.
    """
    folder = shared_folder(tmp_path_factory, "converted-backbone")
    path = folder / "bundle"
    with one_at_a_time(folder), pytest.MonkeyPatch.context() as patch:
        if not (folder / "done").exists():
            shutil.copytree(small_backbone("neco"), path, ignore=shutil.ignore_patterns("engines"))
            patch.setattr(BackboneResult, "passed", True)
            for precision in ("fp16", "bf16", "int8", "fp8"):
                options = ["--calibration", str(photo_folder), "--method", "minmax"] if precision in ("int8", "fp8") else []
                assert main(["convert", str(path), "--precision", precision, *options]) == 0
            (folder / "done").touch()
    return path


@pytest.fixture(scope="session")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the README's shell commands were run as they stand: a full-size ViT-B and its engines."""
    folder = shared_folder(tmp_path_factory, "readme")
    with one_at_a_time(folder):
        if not (folder / "done").exists():
            _follow_readme(folder)
            (folder / "done").touch()
    return folder


def _follow_readme(folder: Path) -> None:
    (folder / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", "\n".join(blocks)], cwd=folder, env=environment, check=True)
