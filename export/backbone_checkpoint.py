"""Read the checkpoint of a plain backbone: DINO, DINOv2 and NeCo files, training checkpoints of both, timm's spelling.

Everything but the family is read from keys and shapes. The family decides how the position table is resized, which official
codes do differently for the same tensors; where a file leaves it open it has to be given.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from saccade.bundle import BACKBONES, RULE_WORDS, BackboneFamily, BackboneModel, PositionRule, sha256_of_file
from saccade.counted import counted
from saccade.errors import SaccadeError
from saccade.export.backbone_layout import NECO_HEAD, Found, find_backbone
from saccade.export.backbone_modules import Backbone
from saccade.export.modules import HEAD_SIZE
from saccade.export.weights_file import Tensors, check_tensors, leaves, load_content

FAMILIES: tuple[BackboneFamily, ...] = get_args(BackboneFamily)
SIZE_NAMES = {192: "ViT-Ti", 384: "ViT-S", 768: "ViT-B", 1024: "ViT-L"}


@dataclass(frozen=True)
class BackboneCheckpoint:
    """The tensors of one backbone under our module's names, and the facts read from them."""

    path: Path
    spelling: str  # whose names the tensors have: "DINO", "DINOv2" or "timm"
    prefix: str  # what stood before them in the file
    model: BackboneModel
    tensors: Tensors  # names of `Backbone`
    positions: Tensor  # (1+N, D) on the base grid; row 0 is cls's, of zeros where the file has it in cls_token already
    left_out: dict[str, int]  # how many tensors the file holds beside these, by part
    sha256: str
    key: str | None = None  # which network of a training checkpoint was asked for

    def describe(self) -> str:
        """Return how the file was understood, in one line."""
        model, (rows, columns) = self.model, self.model.base_grid
        parts = [
            f"{SIZE_NAMES.get(model.dim, f'ViT of width {model.dim}')}/{model.patch}",
            f"{counted(model.depth, 'block')} of {counted(model.heads, 'head')}",
            f"{model.registers or 'no'} registers",
            f"{model.ffn} of {model.hidden}",
            f"{'' if model.layer_scale else 'no '}LayerScale",
            f"{self.spelling} names" + (f" under {self.prefix!r}" if self.prefix else ""),
            f"family {model.family}: positions of {rows}x{columns} resized {RULE_WORDS[model.position_rule]}",
        ]
        left_out = [name if count == 1 else f"{name} ({count})" for name, count in self.left_out.items()]
        return ", ".join(parts) + (f"; left out: {', '.join(left_out)}" if left_out else "")


def read_backbone(path: str | Path, family: str | None = None, key: str | None = None) -> BackboneCheckpoint:
    """Read, recognise and check a checkpoint file.

    `family` is needed where the file cannot tell it, `key` (teacher or student) where it holds both.
    """
    path = Path(path)
    if family is not None and family not in FAMILIES:
        raise SaccadeError(f"--family {family} is no backbone's; choose from: {', '.join(FAMILIES)}")
    named = dict(leaves(path, load_content(path)))
    found = find_backbone(path, named, key)
    is_classifier = getattr(named.get(f"{found.prefix}head.weight"), "ndim", 0) == 2
    tensors, positions, grid, spelling = _respelled(path, found.tensors)
    model = _model_from_shapes(path, tensors, grid, _family(path, tensors, spelling, found, is_classifier, family))
    check_tensors(path, "backbone", tensors, backbone_module(model))
    _check_positions(path, positions, model.dim)
    return BackboneCheckpoint(
        path, spelling, found.prefix, model, tensors, positions, found.left_out, sha256_of_file(path), key
    )


def backbone_module(model: BackboneModel, extras: Sequence[str] = ()) -> Backbone:
    """Return an empty module on the meta device; `load_backbone` fills it."""
    with torch.device("meta"):
        return Backbone(model, extras)


def load_backbone(checkpoint: BackboneCheckpoint, extras: Sequence[str] = ()) -> Backbone:
    """Return the module in eval mode, sharing the checkpoint's memory."""
    module = backbone_module(checkpoint.model, extras)
    module.load_state_dict(checkpoint.tensors, assign=True)
    module.eval().requires_grad_(False)
    return module


def position_rule(family: BackboneFamily, registers: int) -> PositionRule:
    """Return how a family's own code resizes its position table."""
    if family == "timm" or (family == "dinov2" and registers):
        return "size-antialias"
    return "scale-factor"


def _respelled(path: Path, found: Tensors) -> tuple[Tensors, Tensor, tuple[int, int], str]:
    """Return the tensors under our names, the position table with its row for cls, its grid, and the spelling's name."""
    tensors = dict(found)
    if "register_tokens" in tensors:
        if "reg_token" in tensors:
            raise SaccadeError(f"{path}: both 'register_tokens' and 'reg_token'; this is another architecture")
        tensors["reg_token"] = tensors.pop("register_tokens")
    tables, rows, _ = _shape(path, tensors, "pos_embed", 3)
    if tables != 1:
        raise SaccadeError(f"{path}: backbone key 'pos_embed' holds {tables} tables, expected 1")
    table = tensors.pop("pos_embed")[0]
    side = math.isqrt(rows)
    with_cls = side * side != rows
    if with_cls:
        side = math.isqrt(rows - 1)
        if side * side != rows - 1 or not side:
            raise SaccadeError(
                f"{path}: backbone key 'pos_embed' has {rows} rows, which is no square grid, with a row for cls or without"
            )
    else:
        table = torch.cat([torch.zeros_like(table[:1]), table])
    if "reg_token" in found or not with_cls:
        spelling = "timm"
    else:
        spelling = "DINOv2" if _layer_scale(tensors) or "register_tokens" in found else "DINO"
    return tensors, table, (side, side), spelling


def _family(
    path: Path, tensors: Tensors, spelling: str, found: Found, is_classifier: bool, family: str | None
) -> BackboneFamily:
    """Return the family that was given, checked against the file, or else the one that the file tells."""
    registers, layer_scale = "reg_token" in tensors, _layer_scale(tensors)
    if family is None:
        if any(part.split(".")[-1] == NECO_HEAD for part in found.left_out):
            return "neco"
        if spelling == "DINOv2" and registers:
            raise SaccadeError(
                f"{path} has DINOv2's names and registers: NeCo and torch.hub's DINOv2 resize the positions of such a "
                "model differently, and the file cannot tell whose it is; say --family neco or --family dinov2"
            )
        if spelling == "timm":
            return "timm"
        if is_classifier:  # timm's ViTs have DINO's very names, and this head; none of the others' files has one
            raise SaccadeError(
                f"{path} has {spelling}'s names and a classifier's 'head.weight', as timm's files have, which resize the "
                "positions differently; say --family timm, or the family that it was made of"
            )
        return "dinov2" if layer_scale else "dino"
    if family == "dino" and (registers or layer_scale):
        what = "registers" if registers else "LayerScale"
        raise SaccadeError(f"{path} has {what}, which no DINO model has; say --family neco or --family dinov2")
    if family == "dinov2" and not layer_scale:
        raise SaccadeError(f"{path} has no LayerScale, which every DINOv2 model has; say --family dino or --family neco")
    return next(known for known in FAMILIES if known == family)


def _layer_scale(tensors: Tensors) -> bool:
    return any(name.endswith((".ls1.gamma", ".ls2.gamma")) for name in tensors)


def _model_from_shapes(path: Path, tensors: Tensors, grid: tuple[int, int], family: BackboneFamily) -> BackboneModel:
    """Read the model's facts from shapes; consistency between tensors is checked afterwards, key by key."""
    dim = _shape(path, tensors, "cls_token", 3)[2]
    if dim % HEAD_SIZE:
        raise SaccadeError(f"{path}: width {dim} is no multiple of {HEAD_SIZE}, the head size of these models")
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,3})\.", name))]
    if not numbers:
        raise SaccadeError(f"{path}: the backbone has no blocks; this is another architecture")
    fc1 = _shape(path, tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    fc2 = _shape(path, tensors, "blocks.0.mlp.fc2.weight", 2)[1]
    registers = _shape(path, tensors, "reg_token", 3)[1] if "reg_token" in tensors else 0
    return BACKBONES[family](
        position_rule=position_rule(family, registers), dim=dim, heads=dim // HEAD_SIZE,
        depth=max(numbers) + 1, ffn="swiglu" if fc1 == 2 * fc2 else "gelu", hidden=fc2, layer_scale=_layer_scale(tensors),
        registers=registers, patch=_shape(path, tensors, "patch_embed.proj.weight", 4)[3], base_grid=grid,
    )  # fmt: skip


def _shape(path: Path, tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None:
        raise SaccadeError(f"{path}: backbone lacks key {name!r}; the checkpoint is incomplete")
    if tensor.ndim != rank or 0 in tensor.shape:
        raise SaccadeError(f"{path}: backbone key {name!r} has shape {list(tensor.shape)}, expected {rank} axes")
    return tuple(tensor.shape)


def _check_positions(path: Path, positions: Tensor, dim: int) -> None:
    if positions.shape[1] != dim:
        raise SaccadeError(f"{path}: backbone key 'pos_embed' is {positions.shape[1]} wide, expected {dim}")
    if not torch.isfinite(positions).all():
        raise SaccadeError(f"{path}: backbone key 'pos_embed' holds NaN or infinity; the checkpoint is damaged")
