"""The tasks on masks of another data set: ADE20K's, of which class 0 is ignored and yet counted in the mean."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli.console import progress_bar
from saccade.validate.evaluation import evaluate_sources
from saccade.validate.evaluations import dense_nn, linear_segmentation, overcluster
from saccade.validate.evaluations.task import Task
from saccade.validate.extraction import Extractor

MOST = 100 * 3 / 151
SETTINGS: list[tuple[Task, Any]] = [
    (overcluster.TASK, overcluster.OverclusterSettings(size=112, clusters=(30,), seeds=1)),
    (linear_segmentation.TASK, linear_segmentation.LinearSegmentationSettings(size=112, train_batch=5, rate=0.3, epochs=8)),
    (dense_nn.TASK, dense_nn.DenseNnSettings(size=112, neighbours=5)),
]


@pytest.fixture
def ade20k(voc_mosaics: Path, tmp_path: Path) -> Path:
    """Return the mosaics in ADE20K's folders: disc, digit and background are 1, 2 and 150, and void is 0."""
    root, table = tmp_path / "ade", np.zeros(256, np.uint8)
    table[[1, 2, 0, 255]] = 1, 2, 150, 0
    for split, masks in (("training", "SegmentationClassAug"), ("validation", "SegmentationClass")):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for path in (voc_mosaics / "VOCSegmentation" / masks).glob("*.png"):
            image = voc_mosaics / f"VOCSegmentation/images/{path.stem}.jpg"
            (root / f"images/{split}/{image.name}").write_bytes(image.read_bytes())
            Image.fromarray(table[np.array(Image.open(path))]).save(root / f"annotations/{split}/{path.name}")
    return root


@pytest.mark.parametrize(("task", "settings"), SETTINGS, ids=[task.name for task, _ in SETTINGS])
def test_three_classes_of_151_are_found(
    task: Task, settings: Any, ade20k: Path, patch_colours: Any, tmp_path: Path
) -> None:
    extractors = [Extractor(patch_colours(), tmp_path / "kept", progress_bar)]
    (found,) = evaluate_sources(task, task.read(ade20k, settings), settings, extractors)
    assert 0.65 * MOST < found.outcome.scores[0].value < MOST
    counts = found.outcome.samples.reshape(6, 3, 151).sum(axis=0)
    assert counts[[0, 2], 0].tolist() == [0, 0]  # pixels of class 0 are neither found nor missed
    assert "147 (3, 4, 5, …) of 151 classes are in no mask of ADE20K val; the mean is over all" in found.outcome.notes
