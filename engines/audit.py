"""The audit: what TensorRT made of a graph, read from the text of a DETAILED build log or of an engine inspector.

A machine without a GPU cannot deserialise an engine, so its inspector is out of reach there; but a build with DETAILED
profiling verbosity prints the same lines ("Name: ..., LayerType: ...") into the VERBOSE log. The ONELINE text of an
inspector's `get_engine_information` can be read as well: it lacks the parser's lines, so every product is then compared
with the precision that was asked for, and attention blocks are counted from the kernels alone.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

# How TensorRT spells its types: in an engine's layers (first line; 10.x has FP32 and FP16 there), in its ONNX parser.
PRECISIONS = {
    "Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "Int8": "int8", "FP8": "fp8",
    "FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP32": "fp32", "FP16": "fp16",
}  # fmt: skip
NOT_KERNELS = {"shape_call", "signal", "wait"}  # host work and stream events, seen in RTX 1.7.1 dumps

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Data[tT]ype: [^,}]*?\b(" + "|".join(PRECISIONS) + r")\b")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_ATTENTION_NODE = re.compile(r"^Parsing node: .* \[(?:Softmax|Attention)\]$", re.MULTILINE)
# A backbone's further output: cls's row alone, (batch, heads, 1, tokens), beside the attention of the last block.
_ROW_NODE = re.compile(r"^.+ \[Softmax\] inputs: \[.*? -> \([^)]*, 1, -?\d+\)\[", re.MULTILINE)
_PRODUCT_NODE = re.compile(r"^(.+) \[(?:MatMul|Gemm|Conv)\] inputs: \[.*?\)\[(\w+)\]\]", re.MULTILINE)

# Kernel names are chains of abbreviated operations: Fc = weight product, Maxr = row maximum, Cast, Mean, Sqrt ...
_FUSED_ATTENTION = re.compile(r"mha", re.IGNORECASE)
_SOFTMAX = re.compile(r"MaxrSubExpSum|softmax", re.IGNORECASE)
_PRODUCT_KIND = re.compile(r"gemm|correlation|conv|matrixmultiply", re.IGNORECASE)
_PRODUCT_NAME = re.compile(r"__myl_\w*?Fc(?=[A-Z_])")
_NORM = re.compile(r"Mean\w*Mean")  # mean and variance; scale and shift may sit in another kernel
_CAST_BEFORE_NORM = re.compile(r"Cast(?:Resh|Tran|Move)*Mean")  # the statistics are those of the cast value


class Audit(Struct, frozen=True, kw_only=True):
    """What was found in one engine; `expected` and `warnings` are sentences for a person."""

    precision: str  # as asked
    kernels: int
    attention_blocks: int
    fused_attention: int
    softmax_kernels: int  # a softmax of its own is an attention block that was not fused
    gemms: dict[str, int]  # precision of the operands -> weight and attention products, convolutions among them
    norms: dict[str, int]  # precision of the statistics -> kernels, "unknown" where the name does not tell
    expected: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class _Kernel(Struct, frozen=True):
    """One line of the engine's layers; a tensor is its extents (-1 where dynamic) and its precision."""

    name: str
    kind: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    constants: tuple[tuple[tuple[int, ...], str], ...]
    nodes: tuple[str, ...]


def audit_of_text(text: str, precision: str) -> Audit:
    """Read the layers out of `text` and judge them against the `precision` that was asked for."""
    kernels = [kernel for kernel in _kernels(text) if kernel.kind not in NOT_KERNELS]
    fused = sum(1 for kernel in kernels if _FUSED_ATTENTION.search(kernel.name))
    softmaxes = sum(1 for kernel in kernels if _SOFTMAX.search(kernel.name) and not _is_one_row(kernel))
    blocks = len(_ATTENTION_NODE.findall(text)) - len(_ROW_NODE.findall(text)) or fused + softmaxes
    products = [kernel for kernel in kernels if _is_product(kernel)]
    gemms = _count(_product_precision(kernel) for kernel in products)
    expected, warnings = _attention_findings(precision, blocks, fused)
    if not kernels:
        expected, warnings = [], ["the text lists no layers, so nothing is known of fusion and precision"]
    warnings += _product_findings(precision, products, dict(_PRODUCT_NODE.findall(text)))
    return Audit(
        precision=precision,
        kernels=len(kernels),
        attention_blocks=blocks,
        fused_attention=fused,
        softmax_kernels=softmaxes,
        gemms=gemms,
        norms=_count(_norm_precision(kernel) for kernel in kernels if _NORM.search(kernel.name)),
        expected=tuple(expected),
        warnings=tuple(warnings),
    )


def audit_lines(finding: dict[str, Any]) -> list[str]:
    """Say in words what the JSON form of an Audit holds: one summary, then a line for every remark."""
    audit = msgspec.convert(finding, Audit)
    parts = [f"{audit.fused_attention} of {audit.attention_blocks} attention blocks fused"]
    parts += [f"{count} {'GEMM' if count == 1 else 'GEMMs'} in {name}" for name, count in audit.gemms.items()]
    parts += [f"{count} {'norm' if count == 1 else 'norms'} in {name}" for name, count in audit.norms.items()]
    parts.append(f"{audit.kernels} kernels")
    remarks = [f"expected: {text}" for text in audit.expected] + [f"warning: {text}" for text in audit.warnings]
    return ["; ".join(parts), *remarks]


def _count(names: Iterable[str]) -> dict[str, int]:
    """Count, most frequent first."""
    return dict(Counter(names).most_common())


def _kernels(text: str) -> Iterable[_Kernel]:
    """Take every layer line of the text apart."""
    for match in _LAYER.finditer(text):
        operands, _, rest = match["rest"].partition(", Outputs: [")
        inputs, _, constants = operands.partition(", Constants: [")
        tactic = re.search(r"TacticName: (\w+)", rest)
        yield _Kernel(
            # A generated kernel has its operations in its name; a library kernel may have them in its tactic only.
            name=f"{match['name']} {tactic[1]}" if tactic else match["name"],
            kind=match["kind"],
            inputs=_tensors(inputs),
            constants=_tensors(constants),
            nodes=tuple(_NODE.findall(rest)),
        )


def _tensors(section: str) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Return extents and precision of each tensor in "[ { Name: ..., Dimensions: [..], Datatype: Half, ..."."""
    found = _TENSOR.findall(section)
    return tuple((tuple(int(x) for x in extents.split(",") if x), PRECISIONS[spelt]) for extents, spelt in found)


def _is_product(kernel: _Kernel) -> bool:
    """Whether a kernel is a matrix product or convolution, with whatever was fused to its end."""
    if _FUSED_ATTENTION.search(kernel.name):
        return False
    return bool(_PRODUCT_KIND.search(kernel.kind) or _PRODUCT_NAME.search(kernel.name))


def _is_one_row(kernel: _Kernel) -> bool:
    """Whether a kernel works on a single query: nothing that a fused kernel is for."""
    return any(len(extents) > 2 and extents[-2] == 1 for extents, _ in kernel.inputs)


def _product_precision(kernel: _Kernel) -> str:
    """Return the precision of the operands: the weight's if an input shares it, else the first input's.

    The first input alone will not do: a fused product may list the residual it adds before what it multiplies.
    """
    inputs = [precision for _, precision in kernel.inputs]
    weights = [precision for extents, precision in kernel.constants if sum(x != 1 for x in extents) >= 2]
    return next((precision for precision in weights if precision in inputs), inputs[0] if inputs else "unknown")


def _norm_precision(kernel: _Kernel) -> str:
    """Return the precision of a norm's statistics: fp32 after a cast, else that of the inputs where they agree."""
    if _CAST_BEFORE_NORM.search(kernel.name):
        return "fp32"  # TensorRT casts up by itself too: LayerNormalization on fp16 was never seen to compute in fp16
    inputs = {precision for _, precision in kernel.inputs}
    return inputs.pop() if len(inputs) == 1 else "unknown"


def _attention_findings(precision: str, blocks: int, fused: int) -> tuple[list[str], list[str]]:
    """Judge the fusion of attention: what is expected, what is a warning."""
    if fused >= blocks:
        return [], []
    if precision == "fp32":
        return ["TensorRT never fuses attention in fp32; fp16 and bf16 engines do"], []
    remedy = "int8 and fp8 need fp16 around them, and no int8 on attention" if precision in ("int8", "fp8") else (
        "the graph should be MatMul, Softmax, MatMul on (batch, heads, tokens, 64) in one 16-bit type"
    )
    return [], [f"{blocks - fused} of {blocks} attention blocks are not fused: slower than it need be; {remedy}"]


def _product_findings(precision: str, products: list[_Kernel], declared: dict[str, str]) -> list[str]:
    """Warn of products in a precision that neither the request nor their own ONNX node says, and of a minority.

    A graph may hold some products in another precision on purpose (the selector's head stays fp32): its nodes say so.
    """
    warnings = []
    for kernel in products:
        realised = _product_precision(kernel)
        allowed = {precision} | {PRECISIONS.get(declared[node], "") for node in kernel.nodes if node in declared}
        if realised not in allowed:
            node = next(iter(kernel.nodes), kernel.name)
            warnings.append(f"GEMM {node} runs in {realised}, not in {' or '.join(sorted(allowed - {''}))}")
    as_asked = sum(1 for kernel in products if _product_precision(kernel) == precision)
    if 4 * as_asked < len(products):  # a selector of one block has three of seven
        warnings.append(f"only {as_asked} of {len(products)} GEMMs run in {precision}: is this the {precision} graph?")
    return warnings
