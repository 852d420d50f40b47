"""A backbone's graph: plain operators, dimensions of their own, the same bytes anywhere, a plain transformer's numbers."""
from __future__ import annotations

import collections
import getpass
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.contract import backbone_contract
from saccade.engines import tensorrt_build
from saccade.engines.audit import audit_of_text
from saccade.errors import SaccadeError
from saccade.export import anatomy
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone, read_backbone
from saccade.export.backbone_export import example_sizes, export_backbone
from saccade.export.seeded import seeded_weights
from saccade.export.seeded_backbones import BackboneSizes, backbone_shapes
from saccade.export.variants import write_variant

EXTRAS = ("attention", "cls_last4")
D, DEPTH = 128, 4
DINOV2 = BackboneSizes(D, 14, 5, DEPTH)
KINDS = {
    "dino": BackboneSizes(D, 8, 5, DEPTH, layer_scale=False, mask_token=False),
    "dinov2": DINOV2,
    "reg4": replace(DINOV2, registers=4),
}
PLAIN = {
    "Add", "Concat", "Conv", "Expand", "Gather", "Gelu", "LayerNormalization", "MatMul", "Mul", "Reshape", "Shape",
    "Slice", "Softmax", "Split", "Transpose",
}  # fmt: skip
BOUND = 1e-5  # values are near 1; measured: 4.3e-6. LayerNorm with eps 1e-5 is 5e-5 away and more.
ATTENTION_BOUND = 2e-6  # measured: 5.7e-7
Feed = dict[str, np.ndarray]
Run = Callable[[Feed], dict[str, np.ndarray]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other far longer than a small tensor takes: 9 ms for one isfinite."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def raw(kind: str) -> dict[str, Tensor]:
    """Return the tensors as they are in the file."""
    return {name: torch.from_numpy(array) for name, array in seeded_weights(backbone_shapes(KINDS[kind]), 1).items()}


@pytest.fixture(scope="module")
def checkpoint(kind: str, raw: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> BackboneCheckpoint:
    path = tmp_path_factory.mktemp(kind) / "weights.pt"
    torch.save(raw, path)
    return read_backbone(path, "neco")


@pytest.fixture(scope="module")
def graph_path(checkpoint: BackboneCheckpoint) -> Path:
    path = checkpoint.path.with_name("graph.onnx")
    export_backbone(checkpoint, path, EXTRAS)
    return path


@pytest.fixture(scope="module")
def bare_path(checkpoint: BackboneCheckpoint) -> Path:
    """Return the graph without extras."""
    path = checkpoint.path.with_name("bare.onnx")
    export_backbone(checkpoint, path)
    return path


def feed_for(checkpoint: BackboneCheckpoint, batch: int, height: int, width: int) -> Feed:
    random, model = np.random.default_rng(1000 * height + width), checkpoint.model
    cells = (height // model.patch) * (width // model.patch)
    positions = np.float32(0.2) * random.standard_normal((1 + cells, model.dim), dtype=np.float32)
    return {"image": random.standard_normal((batch, 3, height, width), dtype=np.float32), "positions": positions}


# A vision transformer once more, from the file's own tensors and PyTorch's functions; nothing of the package.


def plain_transformer(raw: dict[str, Tensor], image: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Return cls, tokens, attention and cls_last4, computed as DINOv2's code describes them."""
    weight = raw["patch_embed.proj.weight"]
    patches = F.conv2d(image, weight, raw["patch_embed.proj.bias"], stride=weight.shape[-1])
    x = torch.cat([raw["cls_token"].expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], 1) + positions
    registers = raw.get("register_tokens", torch.zeros(1, 0, D))
    x = torch.cat([x[:, :1], registers.expand(len(image), -1, -1), x[:, 1:]], 1)
    rows = []
    for index in range(DEPTH):
        start = f"blocks.{index}."
        own = {name.removeprefix(start): tensor for name, tensor in raw.items() if name.startswith(start)}
        x, weights = plain_block(own, x)
        rows.append(norm(x, raw, "norm"))
    count = 1 + registers.shape[1]
    last4 = torch.stack([row[:, 0] for row in rows[-4:]], 1)
    return {"cls": rows[-1][:, 0], "tokens": rows[-1][:, count:], "attention": weights[:, :, 0, count:], "cls_last4": last4}


def plain_block(own: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    batch, count, width = x.shape
    qkv = F.linear(norm(x, own, "norm1"), own["attn.qkv.weight"], own["attn.qkv.bias"])
    q, k, v = qkv.reshape(batch, count, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT * 64**-0.5).softmax(-1)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
    x = x + own.get("ls1.gamma", 1) * F.linear(attended, own["attn.proj.weight"], own["attn.proj.bias"])
    hidden = F.gelu(F.linear(norm(x, own, "norm2"), own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
    return x + own.get("ls2.gamma", 1) * F.linear(hidden, own["mlp.fc2.weight"], own["mlp.fc2.bias"]), weights


def norm(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], eps=1e-6)


@pytest.fixture(scope="module")
def runners(graph_path: Path, checkpoint: BackboneCheckpoint) -> dict[str, Run]:
    """Return the module and both engines on the graph, each by name."""
    module, names = load_backbone(checkpoint, EXTRAS), ["cls", "tokens", *EXTRAS]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph_path), options, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(graph_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def in_pytorch(feed: Feed) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(array) for array in feed.values()))
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    def in_openvino(feed: Feed) -> dict[str, np.ndarray]:
        found = compiled(feed)
        return {name: found[name] for name in names}

    def in_onnxruntime(feed: Feed) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, feed), strict=True))

    return {"pytorch": in_pytorch, "onnxruntime": in_onnxruntime, "openvino": in_openvino}


# Batch, and height and width in patches; square, wide and high, one patch, and the training size.
SIZES = [(1, 5, 5), (2, 3, 5), (1, 3, 3), (3, 2, 9), (2, 9, 2), (1, 1, 1), (5, 1, 4), (1, 20, 13)]


@pytest.mark.parametrize("runner", ["pytorch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(("batch", "high", "wide"), SIZES)
def test_every_runner_gives_a_plain_transformers_numbers_at_any_size(
    runners: dict[str, Run], raw: dict[str, Tensor], checkpoint: BackboneCheckpoint,
    runner: str, batch: int, high: int, wide: int,
) -> None:  # fmt: skip
    patch = checkpoint.model.patch
    feed = feed_for(checkpoint, batch, high * patch, wide * patch)
    with torch.inference_mode():
        expected = plain_transformer(raw, *(torch.from_numpy(array) for array in feed.values()))
    found = runners[runner](feed)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape), name
        difference = np.abs(found[name] - tensor.numpy()).max()
        assert difference < (ATTENTION_BOUND if name == "attention" else BOUND), (name, difference)


@pytest.mark.parametrize("runner", ["pytorch", "onnxruntime", "openvino"])
def test_what_is_right_of_and_below_the_last_whole_patch_is_left_out(
    runners: dict[str, Run], checkpoint: BackboneCheckpoint, runner: str
) -> None:
    patch = checkpoint.model.patch
    feed = feed_for(checkpoint, 2, 3 * patch + 5, 5 * patch - 1)
    whole = feed | {"image": np.ascontiguousarray(feed["image"][:, :, : 3 * patch, : 4 * patch])}
    found, expected = runners[runner](feed), runners[runner](whole)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=BOUND)


def test_an_image_gets_the_same_numbers_alone_and_in_a_batch(
    runners: dict[str, Run], checkpoint: BackboneCheckpoint
) -> None:
    feed = feed_for(checkpoint, 3, 4 * checkpoint.model.patch, 6 * checkpoint.model.patch)
    together, alone = (runners["onnxruntime"](each) for each in (feed, feed | {"image": feed["image"][1:2]}))
    for name, array in alone.items():
        np.testing.assert_allclose(array[0], together[name][1], atol=BOUND)


def test_attention_at_the_patches_is_what_the_prefix_leaves_of_one(
    runners: dict[str, Run], checkpoint: BackboneCheckpoint
) -> None:
    attention = runners["pytorch"](feed_for(checkpoint, 2, 160, 112))["attention"]
    assert (attention > 0).all()
    assert (attention.sum(-1) < 1).all()
    assert (attention.sum(-1) > 0.5).all()


# The graph as a file


def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def test_batch_height_width_and_rows_are_dimensions_of_their_own(graph_path: Path, bare_path: Path) -> None:
    inputs = {"image": ["batch", 3, "height", "width"], "positions": ["rows", D]}
    outputs = {"cls": ["batch", D], "tokens": ["batch", "cells", D]}
    extras = {"attention": ["batch", D // 64, "cells"], "cls_last4": ["batch", 4, D]}
    for path, expected in ((bare_path, outputs), (graph_path, outputs | extras)):
        graph = onnx.load(path).graph
        assert (shapes(graph.input), shapes(graph.output)) == (inputs, expected)
        assert list(shapes(graph.output)) == list(expected)


def test_the_contract_says_what_the_graph_has(graph_path: Path, checkpoint: BackboneCheckpoint) -> None:
    contract, graph = backbone_contract(checkpoint.model, ("cls_last4", "attention")), onnx.load(graph_path).graph
    for specs, values in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
        assert {spec.name: list(spec.shape) for spec in specs} == shapes(values)


def test_no_two_sizes_of_the_traced_example_are_alike(checkpoint: BackboneCheckpoint) -> None:
    sizes = example_sizes(checkpoint.model).values()
    assert len({*sizes, D, checkpoint.model.patch}) == len(sizes) + 2


@pytest.mark.parametrize(("extras", "softmaxes", "norms"), [(False, DEPTH, 2 * DEPTH + 1), (True, DEPTH + 1, 2 * DEPTH + 2)])
def test_the_operators_are_plain(graph_path: Path, bare_path: Path, extras: bool, softmaxes: int, norms: int) -> None:
    counts = collections.Counter(node.op_type for node in onnx.load(graph_path if extras else bare_path).graph.node)
    assert not set(counts) - PLAIN
    assert (counts["Softmax"], counts["LayerNormalization"], counts["Conv"]) == (softmaxes, norms, 1)
    assert counts["MatMul"] == 6 * DEPTH + extras  # qkv, two products, projection and two layers; one row of one product


def test_the_attention_is_read_beside_each_blocks_own_softmax(graph_path: Path) -> None:
    """An engine fuses a softmax only where nothing but the product with the values reads it."""
    nodes = onnx.load(graph_path).graph.node
    softmaxes = [node.output[0] for node in nodes if node.op_type == "Softmax"]
    readers = {name: [node.op_type for node in nodes if name in node.input] for name in softmaxes}
    assert sorted(map(tuple, readers.values())) == [("Gather",), *[("MatMul",)] * DEPTH]


def test_the_blocks_products_and_the_tail_are_told_apart(graph_path: Path, bare_path: Path) -> None:
    for path in (graph_path, bare_path):
        graph = ir.load(path).graph
        assert anatomy.depth_of_file(path) == DEPTH
        assert len(anatomy.block_products(graph)) == 4 * DEPTH
        assert {value.name for node in anatomy.tail_nodes(graph) for value in node.outputs} == {"cls", "tokens"}


def test_every_weight_is_stored_once_under_the_modules_name(graph_path: Path, checkpoint: BackboneCheckpoint) -> None:
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(graph_path).graph.initializer}
    for name, tensor in checkpoint.tensors.items():
        values = tensor.numpy()
        np.testing.assert_array_equal(held[name], values.T if values.ndim == 2 else values, err_msg=name)
    others = [name for name in held if name not in checkpoint.tensors and held[name].size > 8]
    assert not others
    assert not [name for name, array in held.items() if array.dtype not in (np.float32, np.int64)]


def test_the_facts_of_the_model_travel_in_the_graph(graph_path: Path, checkpoint: BackboneCheckpoint) -> None:
    facts = {entry.key: entry.value for entry in onnx.load(graph_path).metadata_props}
    model = json.loads(facts.pop("model"))
    assert facts == {"saccade": "1", "role": "backbone"}
    assert (model["dim"], model["family"], model["position_rule"]) == (D, "neco", "scale-factor")
    assert model["registers"] == checkpoint.model.registers


def test_nothing_of_the_machine_or_the_exporter_is_in_the_bytes(graph_path: Path) -> None:
    data = graph_path.read_bytes()
    machine = [str(Path.cwd()), str(Path.home()), sys.prefix, socket.gethostname(), f"{getpass.getuser()}@", "/tmp"]
    exporter = ["torch", "pkg.", "stack_trace", "site-packages", ".py", "namespace", "forward"]
    assert not [text for text in machine + exporter if len(text) > 2 and text.encode() in data]


def saved(path: Path, sizes: BackboneSizes) -> Path:
    weights = seeded_weights(backbone_shapes(sizes), 1)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, path)
    return path


def test_another_process_elsewhere_writes_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pt", replace(DINOV2, registers=4))
    export_backbone(read_backbone(path, "neco"), tmp_path / "here.onnx", EXTRAS)
    script = (
        "import sys, pathlib; from saccade.export import backbone_checkpoint as c, backbone_export as e\n"
        "e.export_backbone(c.read_backbone(sys.argv[1], 'neco'), pathlib.Path('there.onnx'), ('attention', 'cls_last4'))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "LANG": "C"}
    subprocess.run([sys.executable, "-c", script, path], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "there.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


# What is not to be had


def test_an_unknown_output_is_named(checkpoint: BackboneCheckpoint) -> None:
    message = "a backbone has no output 'logits'; on request it gives attention and cls_last4"
    with pytest.raises(SaccadeError, match=f"^{message}$"):
        backbone_contract(checkpoint.model, ("logits",))


def test_four_blocks_are_not_taken_from_three(tmp_path: Path) -> None:
    checkpoint = read_backbone(saved(tmp_path / "weights.pt", BackboneSizes(64, 16, 2, 3)))
    with pytest.raises(SaccadeError, match=r"^cls_last4 needs 4 blocks, but this model has 3; leave it out$"):
        export_backbone(checkpoint, tmp_path / "graph.onnx", ("cls_last4",))
    assert not (tmp_path / "graph.onnx").exists()


# TensorRT-RTX, which builds without a GPU


@pytest.fixture(scope="session")
def rtx_log() -> Any:
    """Return the one logger of this process: TensorRT sends everything to the first that it was given."""
    missing = "tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]' in the clone"
    return tensorrt_build.process_log(pytest.importorskip("tensorrt_rtx", reason=missing), keep_lines=True)


def test_tensorrt_rtx_takes_any_size_and_fuses_attention_in_every_block(
    graph_path: Path, checkpoint: BackboneCheckpoint, tmp_path: Path, rtx_log: Any
) -> None:
    import tensorrt_rtx

    write_variant(graph_path, tmp_path / "fp16.onnx", "fp16")
    rtx_log.lines.clear()
    builder = tensorrt_rtx.Builder(rtx_log)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, rtx_log)
    assert parser.parse_from_file(str(tmp_path / "fp16.onnx")), parser.get_error(0).desc()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = {each.name: [each.get_dimension_name(axis) for axis in range(len(each.shape))] for each in inputs}
    assert names == {"image": ["batch", None, "height", "width"], "positions": ["rows", None]}
    assert builder.build_serialized_network(network, any_size(tensorrt_rtx, builder, checkpoint)) is not None, rtx_log.errors
    assert audit_of_text("\n".join(rtx_log.lines), "fp16").fused_attention == DEPTH


def any_size(rtx: Any, builder: Any, checkpoint: BackboneCheckpoint) -> Any:
    """Return a config for 2x2 to 40x40 patches, tuned for 6x9."""
    model, config, profile = checkpoint.model, builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    grids = [(1, 2, 2), (1, 6, 9), (4, 40, 40)]
    profile.set_shape("image", *((batch, 3, rows * model.patch, columns * model.patch) for batch, rows, columns in grids))
    profile.set_shape("positions", *((1 + rows * columns, model.dim) for _, rows, columns in grids))
    assert config.add_optimization_profile(profile) == 0
    return config
