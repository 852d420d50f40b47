"""The boundary of the graphs: their tensors by name, with names for the dynamic dimensions. The bundle's fixed point."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.bundle import BackboneModel, Manifest, Model, TensorSpec
from saccade.errors import SaccadeError

LOOKWHERE_ROLES = ("selector", "extractor")
ALL_ROLES = (*LOOKWHERE_ROLES, "backbone")
EXTRAS = ("attention", "cls_last4")  # what a backbone gives on request, in this order behind cls and tokens
CLS_BLOCKS = 4  # of cls_last4: as many as DINO's linear probe reads


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
    return (backbone_contract(manifest.model, extras_of(manifest.model)),)


def extras_of(model: BackboneModel) -> tuple[str, ...]:
    """Return which of EXTRAS a bundle's graph gives: all that the model has, since they cost next to nothing."""
    return EXTRAS if model.depth >= CLS_BLOCKS else EXTRAS[:1]


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


def backbone_contract(model: BackboneModel, extras: Sequence[str] = ()) -> GraphContract:
    """Return a plain backbone's boundary: `rows` is 1 + `cells`, and both follow from height and width.

    attention is the softmax row of cls in the last block, at the patches; cls_last4 the cls row of the last four blocks,
    each after the final norm, earliest first. Raises SaccadeError for any other extra and for a model without four blocks.
    """
    for extra in extras:
        if extra not in EXTRAS:
            raise SaccadeError(f"a backbone has no output {extra!r}; on request it gives {' and '.join(EXTRAS)}")
    if "cls_last4" in extras and model.depth < CLS_BLOCKS:
        raise SaccadeError(f"cls_last4 needs {CLS_BLOCKS} blocks, but this model has {model.depth}; leave it out")
    inputs = (_tensor("image", 3, "height", "width"), TensorSpec("positions", "float32", ("rows", model.dim)))
    shapes: dict[str, tuple[int | str, ...]] = {"attention": (model.heads, "cells"), "cls_last4": (CLS_BLOCKS, model.dim)}
    asked = tuple(_tensor(name, *shapes[name]) for name in EXTRAS if name in extras)
    return GraphContract("backbone", inputs, (_tensor("cls", model.dim), _tensor("tokens", "cells", model.dim), *asked))


def _tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", *shape))
