"""Small checkpoints and bundles of every kind, made once a session, and two real photographs."""
from __future__ import annotations

import fcntl
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
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

# Workers and their children share the cores: two threads of PyTorch then wait for each other longer than a small tensor
# takes. Set before PyTorch is imported; what times or counts threads sets them itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that run a full-size model: no worker then has one of them alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Hide what the imports left from the garbage collector: tracing a graph collects often, and slowly with it."""
    gc.collect()
    gc.freeze()


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return a function from a name, and a function that makes a file or folder, to its path: made by whoever asks first.

    All workers of a run share what is made: pytest-xdist gives each a base folder of its own, so it lies above them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session")
def small_checkpoint(made_once: MadeOnce) -> Callable[[str], Path]:
    """Return a function from a kind to its small checkpoint file. Read only."""

    def write(path: Path) -> None:
        family, extra, _ = KINDS[path.stem]
        assert main(["make-checkpoint", family, "-o", str(path), *SMALL, *extra]) == 0

    return lambda kind: made_once(f"checkpoints/{kind}.pt", write)


@pytest.fixture(scope="session")
def small_bundle(made_once: MadeOnce, small_checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function from a kind to its small bundle. Copy it before changing anything but its engines."""

    def export(path: Path) -> None:
        task = KINDS[path.name][2]
        options = ["--task", task] if task else []
        assert main(["export", str(small_checkpoint(path.name)), "-o", str(path), *options]) == 0

    return lambda kind: made_once(f"bundles/{kind}", export)


@pytest.fixture(scope="session")
def built_bundle(made_once: MadeOnce, small_bundle: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function from a kind to its small bundle with one engine, OpenVINO's in fp32. Read only."""

    def build(path: Path) -> None:
        shutil.copytree(small_bundle(path.name), path, ignore=shutil.ignore_patterns("engines"))
        assert main(["build", str(path), "--engine", "openvino"]) == 0

    return lambda kind: made_once(f"built/{kind}", build)


@pytest.fixture(scope="session")
def small_backbone(made_once: MadeOnce) -> Callable[[str], Path]:
    """Return a function from a family to the bundle of a small plain backbone; its checkpoint lies beside it as .pt.

    Exported in a process of its own: torch.compile leaves decompositions behind that the tracer takes.
    """

    def export(path: Path) -> None:
        import torch

        from saccade.export.seeded import seeded_weights
        from saccade.export.seeded_backbones import backbone_shapes

        weights = seeded_weights(backbone_shapes(SMALL_BACKBONES[path.name]), 1)
        torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, path.with_suffix(".pt"))
        command = [sys.executable, "-m", "saccade", "export", path.with_suffix(".pt"), "-o", path]
        subprocess.run([*command, "--family", path.name], check=True, timeout=300)

    return lambda family: made_once(f"backbones/{family}", export)


@pytest.fixture(scope="session")
def digits_folder(made_once: MadeOnce) -> Path:
    """Return an ImageFolder of scikit-learn's digits: 40 training and 12 validation pictures of each. Read only."""

    def save(folder: Path) -> None:
        digits = sklearn.datasets.load_digits()
        for label in range(10):
            for number, picture in enumerate(digits.images[digits.target == label][:52]):
                path = folder / ("train" if number < 40 else "val") / str(label) / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((picture * 15.9).astype(np.uint8)).convert("RGB").resize((64, 64)).save(path)

    return made_once("digits", save)


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Return scikit-learn's two sample photographs, uint8 (427, 640, 3)."""
    return [np.array(image) for image in sklearn.datasets.load_sample_images().images]


@pytest.fixture(scope="session")
def photo_folder(made_once: MadeOnce, photographs: list[np.ndarray]) -> Path:
    """Return a folder of 16 crops of both photographs, no two alike. Read only."""

    def save(folder: Path) -> None:
        folder.mkdir()
        for index in range(16):
            row, column = divmod(index // 2, 4)
            crop = photographs[index % 2][200 * row : 200 * row + 200, 140 * column : 140 * column + 200]
            Image.fromarray(crop).save(folder / f"{index:02}.png")

    return made_once("photos", save)


def convert_to_all(source: Path, path: Path, photo_folder: Path, *calibration: str) -> None:
    """Copy a bundle without its engines and convert it to every precision."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("engines"))
    for precision in ("fp16", "bf16", "int8", "fp8"):
        options = ["--calibration", str(photo_folder), *calibration] if precision in ("int8", "fp8") else []
        assert main(["convert", str(path), "--precision", precision, *options]) == 0


@pytest.fixture(scope="session")
def converted_bundle(made_once: MadeOnce, small_bundle: Callable[[str], Path], photo_folder: Path) -> Path:
    """Return a small bundle with every precision. Copy it before changing anything but its engines.

    It is kept whatever its parity: the bounds are a ViT-B's, and in a narrow model each rounding error weighs more.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParityResult, "passed", True)
        return made_once("converted/bundle", lambda path: convert_to_all(small_bundle("dinov2"), path, photo_folder))


@pytest.fixture(scope="session")
def converted_backbone(made_once: MadeOnce, small_backbone: Callable[[str], Path], photo_folder: Path) -> Path:
    """Return a small plain backbone with every precision. Copy it before changing anything but its engines.

    It is kept whatever its parity, as `converted_bundle` is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BackboneResult, "passed", True)
        source, method = small_backbone("neco"), ("--method", "minmax")
        return made_once("converted-backbone/bundle", lambda path: convert_to_all(source, path, photo_folder, *method))


@pytest.fixture(scope="session")
def readme_folder(made_once: MadeOnce) -> Path:
    """Return a folder in which the README's shell commands were run: a full-size ViT-B and its engines.

    They are run as they stand, but for the plain backbone: four of its twelve blocks are enough.
    """

    def follow_readme(folder: Path) -> None:
        folder.mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
        blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
        commands = "\n".join(blocks).replace("make-checkpoint dino-vits16", "make-checkpoint dino-vits16 --depth 4")
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-euc", commands], cwd=folder, env=environment, check=True)

    return made_once("readme", follow_readme)
