"""The audit against lines that TensorRT-RTX 1.7.1 really printed, cut to what matters."""
from __future__ import annotations

import msgspec
import pytest

from saccade.engines.audit import Audit, audit_lines, audit_of_text


def tensor(extents: str, datatype: str) -> str:
    return (
        f"{{ Name: t1_myl0, Dimensions: [{extents}], Strides: [64,-1,1], StrideOrder: [1,2,0], "
        f"Datatype: {datatype}, Format: (Linear) Row major linear format }}"
    )


def layer(name: str, kind: str, inputs: list[str], constants: list[str], nodes: list[str]) -> str:
    return (
        f"Name: {name}_myl0_8, LayerType: {kind}, "
        f"Inputs: [ {', '.join(inputs)}], Constants: [ {', '.join(constants)}], "
        f"Outputs: [ {tensor('-1,-1,64', 'Half')}], TacticName: {name}_0x9d104b, StreamId: 0, "
        f"Metadata: {''.join(f'[ONNX Layer: {node}]' for node in nodes)}"
    )


def parsed(name: str, op: str, datatype: str) -> str:
    """The lines of the ONNX parser about one node."""
    return (
        f"Static check for parsing node: {name} [{op}]\nParsing node: {name} [{op}]\n"
        f"{name} [{op}] inputs: [t9 -> (-1, -1, 768)[{datatype}]], [c0 -> (768, 768)[{datatype}]], "
    )


def attention(datatype: str) -> list[str]:
    return [tensor("-1,-1,64", datatype)] * 3


def product(datatype: str, node: str = "MatMul_1", kind: str = "gemm", name: str = "__mye12") -> str:
    constants = [tensor("1,768,2304", datatype), tensor("1", "Float")]
    return layer(name, kind, [tensor("-1,768", datatype)], constants, [node])


SHAPE_CALL = (
    "Name: __mye35044_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, Metadata: "
)
FUSED = layer("_gemm_mha_v2", "kgen", attention("Half"), [], ["MatMul_22", "Softmax_20", "MatMul_18"])
SOFTMAX = layer("__myl_MaxrSubExpSumDivMul", "kgen", [tensor("-1,12,126,126", "Float")], [], ["Softmax_19"])
SOFTMAX_PADDED = layer("__myl_SlicReshMaxrSubExpSumDivMul", "kgen", [tensor("-1,2,-1,-1", "Half")], [], ["Softmax_9"])


def test_fused_attention_is_counted_once_and_is_no_gemm() -> None:
    audit = audit_of_text("\n".join([FUSED, FUSED]), "fp16")
    assert (audit.attention_blocks, audit.fused_attention, audit.softmax_kernels) == (2, 2, 0)
    assert (audit.gemms, audit.kernels) == ({}, 2)


def test_the_parsed_softmaxes_say_how_many_attention_blocks_there_are() -> None:
    parsed_lines = [parsed(f"Softmax_{n}", "Softmax", "FLOAT") for n in range(3)]
    audit = audit_of_text("\n".join([*parsed_lines, FUSED]), "fp16")
    assert (audit.attention_blocks, audit.fused_attention) == (3, 1)


def test_host_work_and_stream_events_are_no_kernels() -> None:
    events = [f"Name: __mye30, LayerType: {kind}, Inputs: [], Outputs: []" for kind in ("wait", "signal")]
    assert audit_of_text("\n".join([SHAPE_CALL, *events, FUSED]), "fp16").kernels == 1


@pytest.mark.parametrize("softmax", [SOFTMAX, SOFTMAX_PADDED])
def test_an_unfused_block_is_a_warning_in_16_bit(softmax: str) -> None:
    audit = audit_of_text("\n".join([FUSED, softmax, product("Half")]), "fp16")
    assert (audit.attention_blocks, audit.fused_attention, audit.softmax_kernels) == (2, 1, 1)
    assert len(audit.warnings) == 1
    assert audit.warnings[0].startswith("1 of 2 attention blocks are not fused")


def test_an_unfused_block_is_expected_in_fp32() -> None:
    audit = audit_of_text("\n".join([SOFTMAX, product("Float")]), "fp32")
    assert audit.warnings == ()
    assert audit.expected == ("TensorRT never fuses attention in fp32; fp16 and bf16 engines do",)


def test_an_unfused_block_around_int8_names_the_recipe() -> None:
    audit = audit_of_text("\n".join([SOFTMAX, product("Int8")]), "int8")
    assert "int8 and fp8 need fp16 around them" in audit.warnings[0]


@pytest.mark.parametrize(
    ("datatype", "precision"),
    [("Float", "fp32"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Int8", "int8"), ("FP8", "fp8")],
)
def test_gemms_are_counted_by_the_precision_of_their_operands(datatype: str, precision: str) -> None:
    audit = audit_of_text(product(datatype) + "\n" + product(datatype, kind="correlation"), precision)
    assert audit.gemms == {precision: 2}
    assert audit.warnings == ()


def test_a_fused_gemm_is_judged_by_its_weight_and_not_by_the_residual_it_adds() -> None:
    inputs, weight = [tensor("-1,768", "Float"), tensor("-1,3072", "Half")], tensor("3072,768", "Half")
    audit = audit_of_text(layer("__myl_FcAddMulAdd", "runtime_fusion", inputs, [weight], ["MatMul_35"]), "fp16")
    assert audit.gemms == {"fp16": 1}


def test_a_gemm_in_another_precision_than_asked_is_a_warning() -> None:
    text = "\n".join([product("Half"), product("Half"), product("Float", "head/MatMul")])
    assert audit_of_text(text, "fp16").warnings == ("GEMM head/MatMul runs in fp32, not in fp16",)


def test_a_gemm_that_its_graph_keeps_in_fp32_is_no_warning() -> None:
    kernels = [product("Half", "a"), product("Half", "b"), product("Float", "head/MatMul")]
    text = "\n".join([parsed("a", "MatMul", "HALF"), parsed("head/MatMul", "MatMul", "FLOAT"), *kernels])
    audit = audit_of_text(text, "fp16")
    assert audit.gemms == {"fp16": 2, "fp32": 1}
    assert audit.warnings == ()


def test_a_graph_of_another_precision_than_its_name_says_is_a_warning() -> None:
    text = "\n".join([parsed("a", "MatMul", "FLOAT"), product("Float", "a")])
    assert audit_of_text(text, "int8").warnings == ("only 0 of 1 GEMMs run in int8: is this the int8 graph?",)


@pytest.mark.parametrize(
    ("name", "datatype", "precision"),
    [
        ("__myl_CastMeanSubMulMeanAddSqrtDivMulMulAddCast", "Half", "fp32"),
        ("__myl_ReshAddReshMeanSubMulMeanAddSqrtDivMulMulAdd", "Float", "fp32"),
        ("__myl_CastReshMeanSubMulMean", "Half", "fp32"),  # scale and shift in the next kernel
        ("__myl_AddMeanSubMulMeanAddSqrtDivMulMulAddCast", "Half", "fp16"),
    ],
)
def test_norms_tell_the_precision_of_their_statistics(name: str, datatype: str, precision: str) -> None:
    audit = audit_of_text(layer(name, "kgen", [tensor("-1,768", datatype)], [], ["LayerNormalization_8"]), "fp16")
    assert audit.norms == {precision: 1}


def test_a_norm_of_mixed_inputs_is_unknown() -> None:
    inputs = [tensor("-1,768", "Half"), tensor("-1,768", "Float")]
    assert audit_of_text(layer("__myl_AddMeanSubMulMeanAdd", "kgen", inputs, [], []), "fp16").norms == {"unknown": 1}


def test_an_inspector_of_tensorrt_10_is_read_too() -> None:
    text = (
        "Name: __myl_Fc_myl0_2, LayerType: runtime_fusion, Inputs: [ { Name: x, Dimensions: [8,768], "
        "Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: y, Dimensions: [8,768], "
        "Format/Datatype: Row major linear FP16 format }], TacticName: , StreamId: 0, Metadata: "
    )
    assert audit_of_text(text, "fp16").gemms == {"fp16": 1}


def test_a_log_without_layers_is_a_warning() -> None:
    audit = audit_of_text("Engine generation completed in 1.6 seconds.", "fp16")
    assert audit.warnings == ("the text lists no layers, so nothing is known of fusion and precision",)


def test_the_lines_summarise_and_remark() -> None:
    audit = Audit(
        precision="fp16",
        kernels=125,
        attention_blocks=12,
        fused_attention=11,
        softmax_kernels=1,
        gemms={"fp16": 49, "fp32": 1},
        norms={"fp32": 25},
        warnings=("one block is not fused",),
    )
    assert audit_lines(msgspec.to_builtins(audit) | {"seconds": {"build": 1.0}}) == [
        "11 of 12 attention blocks fused; 49 GEMMs in fp16; 1 GEMM in fp32; 25 norms in fp32; 125 kernels",
        "warning: one block is not fused",
    ]
