"""Read a LookWhere checkpoint: which layout it has, what its keys and shapes say about the model, and its tensors.

Nothing is read from the file name and nothing is unpickled but tensors.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.bundle import Model, sha256_of_file
from saccade.errors import SaccadeError
from saccade.export.modules import HEAD_SIZE, Extractor, MapHead, Selector, Transformer
from saccade.export.weights_file import Tensors, as_weights, check_tensors, keys_of, leaves, load_content, some_of


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one checkpoint under our module's names, and the facts read from them."""

    path: Path
    layout: str  # "lookwhere" (upstream's nested file) or "lookwhere-finetuned" (a saved module)
    model: Model
    selector: Tensors  # names of `Selector`
    extractor: Tensors  # names of `Extractor`, a head included
    sha256: str

    @property
    def base_positions(self) -> Tensor:
        """The extractor's position table, float32 (rows, columns, D)."""
        return self.extractor["backbone.pos_embed"].reshape(*self.model.base_grid, self.model.dim)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read, recognise and check a checkpoint file."""
    path = Path(path)
    content = load_content(path)
    layout, selector, extractor = _split_layout(path, content)
    model = _model_from_shapes(path, selector, extractor)
    check_tensors(path, "selector", selector, selector_module(model))
    check_tensors(path, "extractor", extractor, extractor_module(model, "classify" if model.classes else "features"))
    return Checkpoint(path, layout, model, selector, extractor, sha256_of_file(path))


def _split_layout(path: Path, content: Mapping[str, object]) -> tuple[str, Tensors, Tensors]:
    """Recognise the layout by its keys and return it with the selector's and the extractor's tensors."""
    flat = as_weights(path, dict(leaves(path, content)))
    finetuned = any(name.startswith("extractor.model.") for name in flat)
    trunk = "model" if finetuned else "backbone"
    renames = {f"selector.{trunk}.": ("selector", "backbone."), "selector.head.": ("selector", "head.")}
    renames["extractor.model." if finetuned else "extractor."] = ("extractor", "backbone.")
    if finetuned:
        renames["head."] = ("extractor", "head.")
    parts: dict[str, Tensors] = {"selector": {}, "extractor": {}}
    unexpected = []
    for name, tensor in flat.items():
        prefix = next((prefix for prefix in renames if name.startswith(prefix)), None)
        if prefix is None:
            unexpected.append(name)
            continue
        part, new = renames[prefix]
        parts[part][new + name.removeprefix(prefix)] = tensor
    for part, tensors in parts.items():
        if not tensors:
            raise SaccadeError(
                f"{path}: no {part!r} weights, so not a LookWhere checkpoint (found keys like {some_of(flat)})"
            )
    if unexpected:
        raise SaccadeError(f"{path}: unexpected {keys_of(unexpected)}; this is not a plain LookWhere checkpoint")
    return ("lookwhere-finetuned" if finetuned else "lookwhere"), parts["selector"], parts["extractor"]


def _model_from_shapes(path: Path, selector: Tensors, extractor: Tensors) -> Model:
    """Read the model's facts from shapes; consistency between tensors is checked afterwards, key by key."""

    def shape(part: str, name: str, rank: int) -> tuple[int, ...]:
        tensor = (selector if part == "selector" else extractor).get(name)
        public = name.removeprefix("backbone.")
        if tensor is None:
            raise SaccadeError(f"{path}: {part} lacks key {public!r}; the checkpoint is incomplete")
        if tensor.ndim != rank or 0 in tensor.shape:
            raise SaccadeError(f"{path}: {part} key {public!r} has shape {list(tensor.shape)}, expected {rank} axes")
        return tuple(tensor.shape)

    dim = shape("extractor", "backbone.cls_token", 3)[2]
    if dim % HEAD_SIZE:
        raise SaccadeError(f"{path}: width {dim} is no multiple of {HEAD_SIZE}, the head size of these models")
    patch = shape("extractor", "backbone.patch_embed.proj.weight", 4)[3]
    grid = _square_side(path, "extractor", shape("extractor", "backbone.pos_embed", 3)[1])
    selector_grid = _square_side(path, "selector", shape("selector", "backbone.pos_embed", 3)[1])
    fc1 = shape("extractor", "backbone.blocks.0.mlp.fc1.weight", 2)[0]
    fc2 = shape("extractor", "backbone.blocks.0.mlp.fc2.weight", 2)[1]
    registers = shape("extractor", "backbone.reg_token", 3)[1] if "backbone.reg_token" in extractor else 0
    factor = math.isqrt(shape("selector", "head.w2.weight", 2)[0])
    for part, tensors in (("selector", selector), ("extractor", extractor)):
        if not _depth(tensors):
            raise SaccadeError(f"{path}: the {part} has no blocks; this is another architecture")
    return Model(
        dim=dim, heads=dim // HEAD_SIZE, depth=_depth(extractor), selector_depth=_depth(selector),
        ffn="swiglu" if fc1 == 2 * fc2 else "gelu", hidden=fc2, prefix=1 + registers, patch=patch,
        selector_size=selector_grid * patch, map_size=selector_grid * factor,
        map_hidden=shape("selector", "head.w1.weight", 2)[0], base_grid=(grid, grid),
        classes=shape("extractor", "head.weight", 2)[0] if "head.weight" in extractor else 0,
    )  # fmt: skip


def _square_side(path: Path, part: str, cells: int) -> int:
    side = math.isqrt(cells)
    if side * side != cells:
        hint = " (a row for cls too? LookWhere files have none)" if math.isqrt(cells - 1) ** 2 == cells - 1 else ""
        raise SaccadeError(f"{path}: {part} key 'pos_embed' has {cells} rows, which is no square grid{hint}")
    return side


def _depth(tensors: Tensors) -> int:
    found = {int(match[1]) for name in tensors if (match := re.match(r"backbone\.blocks\.(\d{1,3})\.", name))}
    return max(found, default=-1) + 1


def _transformer(model: Model, depth: int, cells: int) -> Transformer:
    return Transformer(model.dim, depth, model.patch, cells, model.prefix - 1, model.hidden, model.ffn)


def selector_module(model: Model) -> Selector:
    """Return an empty selector on the meta device; `load_modules` fills it."""
    grid = model.selector_size // model.patch
    with torch.device("meta"):
        head = MapHead(model.dim, model.map_hidden, model.map_size // grid)
        return Selector(_transformer(model, model.selector_depth, grid * grid), head, grid)


def extractor_module(model: Model, task: str) -> Extractor:
    """Return an empty extractor on the meta device, with its head unless the task is `features`."""
    rows, columns = model.base_grid
    with torch.device("meta"):
        head = None if task == "features" else nn.Linear(model.dim, model.classes)
        return Extractor(_transformer(model, model.depth, rows * columns), task, head)


def load_modules(checkpoint: Checkpoint, task: str) -> tuple[Selector, Extractor]:
    """Return both modules in eval mode, sharing the checkpoint's memory."""
    selector, extractor = selector_module(checkpoint.model), extractor_module(checkpoint.model, task)
    selector.load_state_dict(checkpoint.selector, assign=True)
    extractor.load_state_dict(
        {name: tensor for name, tensor in checkpoint.extractor.items() if extractor.head or not name.startswith("head.")},
        assign=True,
    )
    for module in (selector, extractor):
        module.eval().requires_grad_(False)
    return selector, extractor


def resolve_task(checkpoint: Checkpoint, task: str | None) -> str:
    """Return the task to export; a head has to be named, since classify and segment have the same keys."""
    if task is None and checkpoint.model.classes:
        raise SaccadeError(
            f"{checkpoint.path} has a head of {checkpoint.model.classes} classes, and the file cannot tell what for; "
            "say --task classify or --task segment (or features, to leave the head out)"
        )
    if task not in (None, "features") and not checkpoint.model.classes:
        raise SaccadeError(f"{checkpoint.path} has no head, so --task {task} is not to be had; use --task features")
    return task or "features"
