"""Seeded weights of plain backbones, in the layouts of the real files: flat, and as training leaves them."""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from saccade.errors import SaccadeError
from saccade.export.seeded import Shapes, Weights, block_shapes, linear_shapes, seeded_weights

HEAD_WIDTH, OUT_DIM = 64, 16  # of the projection heads, which nothing here reads; 2048 and 65536 in the real files


@dataclass(frozen=True)
class BackboneSizes:
    """The sizes of a backbone."""

    dim: int
    patch: int
    grid: int  # of the position table
    depth: int = 12
    registers: int = 0
    layer_scale: bool = True
    mask_token: bool = True  # DINOv2 and NeCo on it keep theirs


def _dinov2(dim: int, registers: int, depth: int = 12) -> BackboneSizes:
    return BackboneSizes(dim, 14, 37, depth, registers)


def _dino(dim: int, patch: int) -> BackboneSizes:
    return BackboneSizes(dim, patch, 224 // patch, layer_scale=False, mask_token=False)


# The names are those of the published models. XR files are register-free, so neco-vits14 is their layout too; NeCo on TimeT
# and on Leopart, and PW-Self, are dino-vits16.
BACKBONES = {
    "neco-vits14": _dinov2(384, 0),
    "neco-vits14-reg4": _dinov2(384, 4),
    "neco-vitb14": _dinov2(768, 0),
    "neco-vitb14-reg4": _dinov2(768, 4),
    "dinov2-vitl14": _dinov2(1024, 0, depth=24),
    "dinov2-vitl14-reg4": _dinov2(1024, 4, depth=24),
    "dino-vits16": _dino(384, 16),
    "dino-vits8": _dino(384, 8),
    "dino-vitb16": _dino(768, 16),
    "dino-vitb8": _dino(768, 8),
    "dino-vits32": _dino(384, 32),
}


def backbone_shapes(sizes: BackboneSizes) -> Shapes:
    """Return the names and shapes of a bare backbone, as DINO and DINOv2 spell them."""
    if sizes.dim % 64:
        raise SaccadeError(f"dim {sizes.dim} is not a multiple of 64, the head size of these models")
    dim = sizes.dim
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + sizes.grid**2, dim)}
    if sizes.mask_token:
        shapes["mask_token"] = (1, dim)
    if sizes.registers:
        shapes["register_tokens"] = (1, sizes.registers, dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, sizes.patch, sizes.patch), "patch_embed.proj.bias": (dim,)}
    block = block_shapes(dim, layer_scale=sizes.layer_scale)
    for index in range(sizes.depth):
        shapes |= {f"blocks.{index}.{key}": shape for key, shape in block.items()}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def dino_training_checkpoint(sizes: BackboneSizes, seed: int) -> dict[str, object]:
    """Return what DINO and PW-Self save while they train: the teacher has the seed, the student, in DDP, the next one."""
    teacher, student = (_with_head(sizes, seed + n, "backbone.", _dino_head(sizes.dim)) for n in (0, 1))
    step = {"step": np.float32(1), "exp_avg": np.zeros_like(teacher["backbone.cls_token"])}
    return {
        "student": {f"module.{name}": array for name, array in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: step}, "param_groups": [{"lr": 0.0005, "betas": (0.9, 0.999), "params": [0]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=sizes.patch, out_dim=OUT_DIM, use_fp16=True, output_dir="."),
        "dino_loss": {"center": np.zeros((1, 1 + sizes.grid**2, OUT_DIM), np.float32)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
    }


def neco_training_checkpoint(sizes: BackboneSizes, seed: int) -> dict[str, object]:
    """Return what NeCo's Lightning saves while it trains: the teacher has the seed, the student, `model`, the next one."""
    weights: Weights = {}
    for prefix, own_seed in (("model.", seed + 1), ("teacher.", seed)):
        named = _with_head(sizes, own_seed, "", _neco_head(sizes.dim))
        weights |= {f"{prefix}{name}": array for name, array in named.items()}
    return {
        "epoch": 25, "global_step": 46225, "pytorch-lightning_version": "1.9.5", "state_dict": weights, "loops": {},
        "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {"lr": 1e-5},
    }  # fmt: skip


def _with_head(sizes: BackboneSizes, seed: int, prefix: str, head: Shapes) -> Weights:
    """Return seeded weights, each drawn under its bare name, as they are in a flat file."""
    bare = seeded_weights(backbone_shapes(sizes), seed)
    return {f"{prefix}{name}": array for name, array in bare.items()} | seeded_weights(head, seed)


def _dino_head(dim: int) -> Shapes:
    """Return DINO's projection head, narrower than the real one of 2048; its last layer is weight-normalised."""
    layers = linear_shapes("head.mlp.0", HEAD_WIDTH, dim) | linear_shapes("head.mlp.2", HEAD_WIDTH, HEAD_WIDTH)
    layers |= linear_shapes("head.mlp.4", 256, HEAD_WIDTH)
    return layers | {"head.last_layer.weight_g": (OUT_DIM, 1), "head.last_layer.weight_v": (OUT_DIM, 256)}


def _neco_head(dim: int) -> Shapes:
    widths = [dim, HEAD_WIDTH, HEAD_WIDTH, 256]
    layers = [linear_shapes(f"projection_head.{2 * n}", widths[n + 1], widths[n]) for n in range(3)]
    return layers[0] | layers[1] | layers[2]
