"""How much arithmetic a frame is: the matrix products of both networks, counted from the model's facts.

A product of (M, K) by (K, N) is M*N*K multiplications and as many additions: 2*M*K*N operations. Norms, softmax and
activations are left out, as is usual; they are below 1 % of a ViT-B.
"""
from __future__ import annotations

from saccade.bundle import BackboneModel, Model


def block_products(model: Model | BackboneModel) -> list[tuple[int, int]]:
    """Return (inputs K, outputs N) of the weights of one block: qkv, proj, fc1 (SwiGLU's gate included) and fc2."""
    dim, hidden = model.dim, model.hidden
    return [(dim, 3 * dim), (dim, dim), (dim, hidden * (2 if model.ffn == "swiglu" else 1)), (hidden, dim)]


def selector_rows(model: Model) -> int:
    """Return the tokens of one image in the selector: the patches of its fixed grid and the prefix."""
    return (model.selector_size // model.patch) ** 2 + model.prefix


def extractor_rows(model: Model, k: int) -> int:
    """Return the tokens of one image in the extractor: the kept patches and the prefix."""
    return k + model.prefix


def selector_gflop(model: Model) -> float:
    """Return the selector's work on one image in GFLOP: patch embedding, blocks, and the two layers of the map head."""
    grid = model.selector_size // model.patch
    patches, factor, rows = grid**2, model.map_size // grid, selector_rows(model)
    head = 2 * patches * model.map_hidden * (model.dim + factor**2)
    return (_embedding(model, patches) + model.selector_depth * _block(model, rows, rows) + head) / 1e9


def extractor_gflop(model: Model, task: str, k: int, *, cls_only: bool = False) -> float:
    """Return the extractor's work on one image in GFLOP: patch embedding, blocks, and the task's linear head.

    With `cls_only` the last block is less: qkv of all rows, and all else of one.
    """
    rows, head_rows = extractor_rows(model, k), {"features": 0, "classify": 1, "segment": k}[task]
    head = 2 * head_rows * model.dim * model.classes
    last = _block(model, rows, 1 if cls_only else rows)
    return (_embedding(model, k) + (model.depth - 1) * _block(model, rows, rows) + last + head) / 1e9


def frame_gflop(model: Model, task: str, k: int, batch: int, *, cls_only: bool = False) -> dict[str, float]:
    """Return the work of a call on `batch` images by network, in GFLOP."""
    extractor = extractor_gflop(model, task, k, cls_only=cls_only)
    return {"selector": batch * selector_gflop(model), "extractor": batch * extractor}


def backbone_rows(model: BackboneModel, cells: int) -> int:
    """Return the tokens of one image of so many patches in a plain backbone."""
    return cells + model.prefix


def backbone_gflop(model: BackboneModel, cells: int, batch: int) -> dict[str, float]:
    """Return the work of a call on `batch` images in GFLOP: patch embedding and blocks."""
    rows = backbone_rows(model, cells)
    return {"backbone": batch * (_embedding(model, cells) + model.depth * _block(model, rows, rows)) / 1e9}


def _embedding(model: Model | BackboneModel, patches: int) -> int:
    return 2 * patches * 3 * model.patch**2 * model.dim


def _block(model: Model | BackboneModel, rows: int, asked: int) -> int:
    """Weights: 2*M*K*N each. Attention: q by k^T and weights by v, over all heads 2*M*M*D each.

    The block is given `rows`, and of so many the result is `asked`.
    """
    (dim, qkv), *behind = block_products(model)
    attention = 2 * (2 * asked * rows * model.dim)
    return 2 * rows * dim * qkv + attention + sum(2 * asked * inputs * outputs for inputs, outputs in behind)
