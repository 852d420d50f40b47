"""The files that a precision needs beside the fp32 graphs, and how each is made from them. Needs onnx_ir, not torch."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from saccade.bundle import Variant
from saccade.export.precision import narrow
from saccade.export.quantization import quantize
from saccade.export.rounding import RoundedWeight


@dataclass(frozen=True)
class Recipe:
    """How a variant is made: Q/DQ in a number format, and 16 bits around it."""

    quantized: str | None  # "int8" or "fp8"
    around: str | None  # "fp16" or "bf16"; None leaves float32


RECIPES: dict[Variant, Recipe] = {
    "fp16": Recipe(None, "fp16"),
    "bf16": Recipe(None, "bf16"),
    "int8": Recipe("int8", None),
    "int8-fp16": Recipe("int8", "fp16"),
    "fp8": Recipe("fp8", "fp16"),
}
# One set of int8 scales makes two files: CPU engines want float32 around it, TensorRT fuses attention only in fp16.
VARIANTS_OF: dict[str, tuple[Variant, ...]] = {
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("int8", "int8-fp16"),
    "fp8": ("fp8",),
}


@dataclass(frozen=True)
class Scales:
    """What calibration chose for one graph: the range of each activation, and the weights already rounded."""

    ranges: Mapping[str, float]
    weights: Mapping[str, RoundedWeight]


def write_variant(
    source: Path, target: Path, variant: Variant, scales: Scales | None = None, blocks: Collection[int] | None = None
) -> None:
    """Write the fp32 graph `source` as `variant` to `target`; with `blocks`, only those blocks of it.

    int8 and fp8 need `scales`, taken from the same `source`. Raises SaccadeError where weights do not fit the variant.
    """
    recipe = RECIPES[variant]
    model = ir.load(source)
    if recipe.quantized:
        assert scales is not None
        quantize(model.graph, recipe.quantized, scales.ranges, scales.weights, blocks)
    if recipe.around:
        narrow(model.graph, recipe.around, blocks)
    ir.save(model, target)
