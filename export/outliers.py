"""Outlier channels: seeded weights have none, and trained transformers have a few in every block, where quantizers part.

Each norm's affine scales a few channels up and the linear layer behind it scales them down again, so that the model is the
same function of its input while the activations between the two have channels many times as large as the rest.
"""
from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from saccade.errors import SaccadeError
from saccade.export.seeded import Weights

CHANNELS = 4  # of each norm: a few, as in trained models
_READERS = {"norm1": "attn.qkv", "norm2": "mlp.fc1"}  # norm -> the linear layer that reads it
_NORM = re.compile(r"(.*blocks\.\d+\.)(norm[12])\.weight")


def with_outliers(weights: Mapping[str, np.ndarray], factor: float, seed: int) -> Weights:
    """Return the weights with CHANNELS channels of every block's norms `factor` times as large, and their readers' inverse.

    Raises SaccadeError for a factor that is not finite and above 0.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise SaccadeError(f"--outliers {factor} is out of range; give a factor above 0, such as 50")
    scaled, random = dict(weights), np.random.default_rng(seed)
    for name in weights:
        if not (match := _NORM.fullmatch(name)):
            continue
        block, norm = match.groups()
        scale = np.ones(weights[name].size, np.float32)
        scale[random.choice(scale.size, CHANNELS, replace=False)] = factor
        for kind in ("weight", "bias"):
            scaled[f"{block}{norm}.{kind}"] = weights[f"{block}{norm}.{kind}"] * scale
        reader = f"{block}{_READERS[norm]}.weight"
        scaled[reader] = weights[reader] / scale
    return scaled
