"""Trace modules into ONNX files: opset 20, named dynamic dimensions, the same bytes for the same checkpoint anywhere."""
from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from saccade.bundle import TensorSpec
from saccade.contract import GraphContract
from saccade.errors import SaccadeError
from saccade.export import graph_passes

OPSET = 20  # the first with Gelu as one operator; TensorRT 10.3, OpenVINO and ONNX Runtime all read it
MAX_ONNX_BYTES = (1 << 31) - 1  # protobuf's limit for one message; ViT-L stays below it, in fp32 too
# Not 1 (the exporter would bake a size of one in) and not each other, so that no two dimensions are taken for one.
EXAMPLE_SIZES = {"batch": 2, "k": 9}


def export_graph(
    module: nn.Module, contract: GraphContract, facts: dict[str, str], path: Path, sizes: Mapping[str, int] = EXAMPLE_SIZES
) -> None:
    """Trace `module` and write it to `path`; `facts` become the file's metadata, `sizes` are the example's."""
    model = _traced(module, contract, sizes)
    graph_passes.simplify(model)
    graph_passes.name_dimensions(model.graph, contract)
    graph_passes.check(model.graph)
    model.producer_name, model.producer_version = "saccade", None
    model.metadata_props.clear()
    model.metadata_props.update(facts | {"role": contract.role})
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > MAX_ONNX_BYTES:
        raise SaccadeError(f"the {contract.role} has {size / 1e9:.1f} GB of weights; one ONNX file holds at most 2.1 GB")
    ir.save(model, path)


def _traced(module: nn.Module, contract: GraphContract, sizes: Mapping[str, int]) -> ir.Model:
    """Run PyTorch's exporter and return its graph."""
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(_examples(contract.inputs, sizes)),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            dynamic_shapes=_dynamic_shapes(contract.inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model


def _examples(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Iterator[Tensor]:
    for spec in inputs:
        yield torch.zeros([sizes[extent] if isinstance(extent, str) else extent for extent in spec.shape])


def _dynamic_shapes(inputs: Sequence[TensorSpec]) -> tuple[dict[int, str], ...]:
    """Name the dynamic dimensions; a name leaves it to the tracer which of them follow from others."""
    return tuple({i: name for i, name in enumerate(spec.shape) if isinstance(name, str)} for spec in inputs)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes (torchvision not installed, deprecations inside torch) off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
