"""Where in a file a backbone's weights lie: flat, in a training checkpoint, beside a second network, with heads or without.

As in NeCo's own loader, what stands before `cls_token` is the prefix. Unlike it, nothing is dropped that is not known: a
loose match of keys would hide another architecture.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from saccade.errors import SaccadeError
from saccade.export.weights_file import Tensors, as_weights, some_of

MARK = "cls_token"  # every backbone has one, and no head does
# What training leaves beside a backbone and no feature needs: heads of DINO, NeCo and timm, DINOv2's mask token.
DROPPED = ("head", "projection_head", "mask_token")
NECO_HEAD = "projection_head"  # only NeCo's training checkpoints have one of this name
KEYS = ("teacher", "student")


@dataclass(frozen=True)
class Found:
    """A backbone's tensors under their names in the file, without the prefix."""

    prefix: str  # with its last dot; empty for a flat file
    tensors: Tensors
    left_out: dict[str, int]  # how many tensors of the file are not used, by the part that they belong to


def find_backbone(path: Path, named: Mapping[str, object], key: str | None) -> Found:
    """Return the backbone among the values of a file; `key` says which, where there are a teacher and a student."""
    prefix = _chosen_prefix(path, named, key)
    own = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    kept = {name: value for name, value in own.items() if name.split(".")[0] not in DROPPED}
    used = {f"{prefix}{name}" for name in kept}
    unused = [name for name, value in named.items() if isinstance(value, Tensor) and name not in used]
    return Found(prefix, as_weights(path, kept), dict(Counter(_part(name, prefix) for name in unused)))


def _chosen_prefix(path: Path, named: Mapping[str, object], key: str | None) -> str:
    """Return the prefix of the weights that are asked for, or of the only ones."""
    prefixes = [name.removesuffix(MARK) for name in named if name.split(".")[-1] == MARK]
    if not prefixes:
        keys = f"found keys like {some_of(named)}" if named else "it is empty"
        raise SaccadeError(f"{path}: no key ends in {MARK!r}, so it holds no backbone ({keys})")
    if any(prefix.startswith(("selector.", "extractor.")) for prefix in prefixes):
        raise SaccadeError(f"{path} is a LookWhere checkpoint and no plain backbone; leave --family out")
    roles = {prefix: _role(prefix, prefixes) for prefix in prefixes}
    chosen = [prefix for prefix, role in roles.items() if key in (None, role)]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"{prefix or 'bare names'!r}" + (f" ({role})" if role else "") for prefix, role in roles.items())
    if not chosen:
        remedy = "leave --checkpoint-key out" if len(prefixes) == 1 else "say another --checkpoint-key"
        raise SaccadeError(f"{path} holds no {key}, but {listed}; {remedy}")
    if key is None and {*KEYS} <= {*roles.values()}:
        raise SaccadeError(f"{path} holds {listed}; say --checkpoint-key {' or --checkpoint-key '.join(KEYS)}")
    raise SaccadeError(f"{path} holds {listed}, and nothing tells which is meant; save that one as a plain state dict")


def _role(prefix: str, prefixes: list[str]) -> str | None:
    """Return whose weights these are; NeCo's training checkpoints call the student `model`, beside its teacher."""
    parts = prefix.split(".")
    for key in KEYS:
        if key in parts:
            return key
    with_teacher = any(KEYS[0] in other.split(".") for other in prefixes)
    return KEYS[1] if "model" in parts and with_teacher else None


def _part(name: str, prefix: str) -> str:
    """Return the name as far as the first component that the prefix does not have."""
    parts = name.split(".")
    shared = 0
    for ours, theirs in zip(parts, prefix.split("."), strict=False):
        if ours != theirs:
            break
        shared += 1
    return ".".join(parts[: shared + 1])
