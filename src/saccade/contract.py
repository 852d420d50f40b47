"""The boundary of the graphs: their tensors by name, with names for the dynamic dimensions. The bundle's fixed point."""
from __future__ import annotations

from dataclasses import dataclass

from saccade.bundle import Model, TensorSpec


@dataclass(frozen=True)
class GraphContract:
    """The inputs and outputs of one graph."""

    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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


def _tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", *shape))
