"""Seeded weights in the real checkpoint layouts, so that everything can be tried without a download.

A value is a pure function of (tensor name, shape, seed): the stream is NumPy's legacy RandomState, which is frozen across
versions, seeded with crc32(name) + seed. They are noise with the spread of trained weights, not a trained model.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError

FAMILIES = ("lookwhere-dinov2", "lookwhere-franca")
Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a checkpoint; the defaults are those of the published ViT-B/14 files."""

    dim: int = 768
    depth: int = 12
    selector_depth: int = 3
    grid: int = 37  # of the extractor's position table
    selector_grid: int = 11
    map_factor: int = 4  # cells of the score map per selector patch, along each side
    classes: int = 0  # more than 0: the fine-tuned layout, with a linear head
    patch: int = 14
    registers: int = 4  # dinov2 only


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return the float32 tensor called `name`; values are drawn and scaled in float64 and rounded once."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if name.endswith("gamma"):  # LayerScale: well away from zero, so that every block matters
        return np.asarray(0.1 + 0.5 * random.random_sample(shape), dtype=np.float32)
    values = random.standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        values = 1.0 + 0.1 * values
    elif "token" in name or "pos_embed" in name:
        values = 0.2 * values
    elif len(shape) >= 2:
        values = values / np.sqrt(float(math.prod(shape[1:])))
    else:
        values = 0.02 * values
    return np.asarray(values, dtype=np.float32)


def checkpoint_shapes(family: str, sizes: Sizes) -> Shapes:
    """Return the full dotted names and shapes of a LookWhere checkpoint.

    With `sizes.classes` the names are those of a saved fine-tuned module, else those of lookwhere_<variant>.pt.
    """
    if family not in FAMILIES:
        raise SaccadeError(f"unknown family {family!r}; choose from: {', '.join(FAMILIES)}")
    if sizes.dim % 64:
        raise SaccadeError(f"dim {sizes.dim} is not a multiple of 64, the head size of these models")
    if sizes.classes < 0:
        raise SaccadeError(f"classes {sizes.classes} is out of range; give 0 for no head, or at least 1")
    model = ".model" if sizes.classes else ""
    backbone = ".model" if sizes.classes else ".backbone"
    shapes = _vit(f"selector{backbone}", family, sizes, sizes.selector_depth, sizes.selector_grid)
    shapes |= linear_shapes("selector.head.w1", 4 * sizes.dim, sizes.dim)
    shapes |= linear_shapes("selector.head.w2", sizes.map_factor**2, 4 * sizes.dim)
    shapes |= _vit(f"extractor{model}", family, sizes, sizes.depth, sizes.grid)
    if sizes.classes:
        shapes |= linear_shapes("head", sizes.classes, sizes.dim)
    return shapes


def linear_shapes(name: str, rows: int, columns: int) -> Shapes:
    """Return the names and shapes of a linear layer."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _vit(name: str, family: str, sizes: Sizes, depth: int, grid: int) -> Shapes:
    """Return the names and shapes of one vision transformer in timm's spelling."""
    dim = sizes.dim
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, grid * grid, dim)}
    if family == "lookwhere-dinov2":
        shapes["reg_token"] = (1, sizes.registers, dim)
    shapes["patch_embed.proj.weight"] = (dim, 3, sizes.patch, sizes.patch)
    shapes["patch_embed.proj.bias"] = (dim,)
    for index in range(depth):
        block = block_shapes(dim, gated=family == "lookwhere-franca")
        shapes |= {f"blocks.{index}.{key}": shape for key, shape in block.items()}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def block_shapes(dim: int, *, gated: bool = False, layer_scale: bool = True) -> Shapes:
    """Return one transformer block; gated means packed SwiGLU, whose width timm takes as 2.66667 dim."""
    shapes: Shapes = {f"norm{n}.{kind}": (dim,) for n in (1, 2) for kind in ("weight", "bias")}
    if layer_scale:
        shapes |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)}
    shapes |= linear_shapes("attn.qkv", 3 * dim, dim) | linear_shapes("attn.proj", dim, dim)
    hidden = int(dim * 2.66667 * 2) // 2 if gated else 4 * dim
    return shapes | linear_shapes("mlp.fc1", 2 * hidden if gated else hidden, dim) | linear_shapes("mlp.fc2", dim, hidden)


def seeded_weights(shapes: Shapes, seed: int, progress: Callable[[str], None] = lambda name: None) -> Weights:
    """Return the float32 tensor of every name; `progress` hears each name as it is drawn."""
    weights = {}
    for name, shape in shapes.items():
        progress(name)
        weights[name] = seeded_tensor(name, shape, seed)
    return weights


def weights_crc32(weights: Mapping[str, np.ndarray]) -> int:
    """Return one number for all weights: crc32 over the sorted names, each followed by its little-endian bytes."""
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(np.ascontiguousarray(weights[name], dtype="<f4").tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def nested(weights: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Arrange flat weights as lookwhere_<variant>.pt nests them: selector.backbone, selector.head and extractor."""

    def below(prefix: str) -> Weights:
        return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}

    selector = {"backbone": below("selector.backbone."), "head": below("selector.head.")}
    return {"selector": selector, "extractor": below("extractor.")}
