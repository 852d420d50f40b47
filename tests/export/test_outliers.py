"""Outlier channels are there, and the model computes what it computed without them."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.cli.main import main
from saccade.errors import SaccadeError
from saccade.export.checkpoint import load_modules, read_checkpoint
from saccade.export.outliers import CHANNELS, with_outliers
from saccade.export.seeded import Sizes, checkpoint_shapes, seeded_weights

SMALL = ["--dim", "128", "--depth", "2", "--selector-depth", "1", "--grid", "9"]


def test_a_model_with_outliers_is_the_same_function_with_larger_activations(tmp_path: Path) -> None:
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 154, 154)).astype(np.float32))
    answers, largest = [], []
    for outliers in ([], ["--outliers", "50"]):
        path = tmp_path / f"{len(outliers)}.pt"
        assert main(["make-checkpoint", "lookwhere-dinov2", "-o", str(path), *SMALL, *outliers]) == 0
        selector, _ = load_modules(read_checkpoint(path), "features")
        seen: list[torch.Tensor] = []
        norm = next(module for name, module in selector.named_modules() if name.endswith("blocks.0.norm1"))
        norm.register_forward_hook(lambda module, given, found, seen=seen: seen.append(found.abs().amax((0, 1))))
        with torch.inference_mode():
            answers.append(selector(image))
        largest.append(seen[0])
    for plain, scaled in zip(*answers, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
    assert int((largest[1] > 20 * largest[0]).sum()) == CHANNELS


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    weights = seeded_weights(checkpoint_shapes("lookwhere-dinov2", Sizes(dim=64, depth=1, selector_depth=1, grid=3)), 1)
    with pytest.raises(SaccadeError, match=r"--outliers .* is out of range; give a factor above 0, such as 50"):
        with_outliers(weights, factor, 1)
