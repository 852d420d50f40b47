"""Small checkpoints and bundles of every kind, made once a session, and two real photographs."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from saccade.cli.main import main

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


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a kind to its small checkpoint file. Read only."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str) -> Path:
        path = folder / f"{kind}.pt"
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
    folder = tmp_path_factory.mktemp("bundles")

    def make(kind: str) -> Path:
        path = folder / kind
        if not path.exists():
            task = KINDS[kind][2]
            options = ["--task", task] if task else []
            assert main(["export", str(small_checkpoint(kind)), "-o", str(path), *options]) == 0
        return path

    return make


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Return scikit-learn's two sample photographs, uint8 (427, 640, 3)."""
    return [np.array(image) for image in sklearn.datasets.load_sample_images().images]


@pytest.fixture(scope="session")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the README's shell commands were run as they stand: a full-size ViT-B and its engines."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", "\n".join(blocks)], cwd=folder, env=environment, check=True)
    return folder
