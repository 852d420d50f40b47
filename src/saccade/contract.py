"""The boundary of the graphs: their tensors by name, with names for the dynamic dimensions. The bundle's fixed point."""
from __future__ import annotations

from dataclasses import dataclass

from saccade.bundle import Backbone, Manifest, Model, TensorSpec

LOOKWHERE_ROLES = ("selector", "extractor")
ALL_ROLES = (*LOOKWHERE_ROLES, "backbone")


@dataclass(frozen=True)
class GraphContract:
    """The inputs and outputs of one graph."""

    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def contracts_of(manifest: Manifest) -> tuple[GraphContract, ...]:
    """Return the boundary of each graph of a bundle, in the order they run in."""
    if isinstance(manifest.model, Model):
        return selector_contract(manifest.model), extractor_contract(manifest.model, manifest.task)
    return (backbone_contract(manifest.model),)


def selector_contract(model: Model) -> GraphContract:
    """Return the selector's boundary."""
    size, cells = model.selector_size, model.map_size
    outputs = (_tensor("score_map", cells, cells), _tensor("prefix", model.prefix, model.dim))
    return GraphContract("selector", (_tensor("lowres", 3, size, size),), outputs)


def extractor_contract(model: Model, task: str) -> GraphContract:
    """Return the extractor's boundary for one task."""
    inputs = (
        _tensor("patches", "k", 3 * model.patch**2),
        _tensor("positions", "k", model.dim),
        _tensor("prefix", model.prefix, model.dim),
    )
    outputs = {
        "features": (_tensor("cls", model.dim), _tensor("tokens", "k", model.dim)),
        "classify": (_tensor("logits", model.classes), _tensor("tokens", "k", model.dim)),
        "segment": (_tensor("tokens", "k", model.classes),),
    }
    return GraphContract("extractor", inputs, outputs[task])


def backbone_contract(model: Backbone) -> GraphContract:
    """Return the boundary of a plain backbone: the image and its positions, cls first; tokens of patches alone.

    `attention` is the softmax row of cls over the patches in the last block; `cls_last4` are the cls rows of the last four
    blocks after the final norm, earliest first. Height and width have names of their own: no engine may take them for equal.
    """
    image = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
    positions = TensorSpec("positions", "float32", ("rows", model.dim))  # 1 + cells
    outputs = (
        _tensor("cls", model.dim),
        _tensor("tokens", "cells", model.dim),
        _tensor("attention", model.heads, "cells"),
        _tensor("cls_last4", 4, model.dim),
    )
    return GraphContract("backbone", (image, positions), outputs)


def _tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", *shape))
