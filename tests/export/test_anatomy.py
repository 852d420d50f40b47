"""Which part of a transformer each node is: compared with the names that the checkpoint's modules have."""
from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from saccade.export.anatomy import block_numbers, block_products, depth_of_file, tail_nodes, weight_name

DEPTH = {"selector": 1, "extractor": 2}  # of the small models
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture
def path(small_bundle: Callable[[str], Path], kind: str, role: str) -> Path:
    return small_bundle(kind) / f"{role}.onnx"


@pytest.fixture
def graph(path: Path) -> ir.Graph:
    return ir.load(path).graph


def test_block_products_are_the_four_layers_of_each_block_in_order(graph: ir.Graph, role: str) -> None:
    expected = [f"backbone.blocks.{i}.{layer}.weight" for i in range(DEPTH[role]) for layer in LAYERS]
    assert [weight_name(node) for node in block_products(graph)] == expected


def test_products_of_computed_factors_have_no_weight(graph: ir.Graph, role: str) -> None:
    products = [node for node in graph if node.op_type == "MatMul"]
    assert sum(weight_name(node) is None for node in products) == 2 * DEPTH[role]  # queries x keys, shares x values
    assert all(weight_name(node) is None for node in graph if node.op_type != "MatMul")


def test_each_block_has_two_norms_and_one_softmax(graph: ir.Graph, role: str) -> None:
    numbers = block_numbers(graph)
    for op_type, count in (("LayerNormalization", 2), ("Softmax", 1)):
        nodes = [node for node in graph if node.op_type == op_type][: count * DEPTH[role]]  # without the last norm
        assert Counter(numbers[node] for node in nodes) == dict.fromkeys(range(DEPTH[role]), count)


def test_what_is_before_the_first_block_and_behind_the_last_norm_is_in_no_block(graph: ir.Graph) -> None:
    numbers = block_numbers(graph)
    first = next(node for node in graph if node.op_type == "LayerNormalization")
    before = list(itertools.takewhile(lambda node: node is not first, graph))
    assert before
    assert {numbers[node] for node in before} == {None}
    assert {numbers[node] for node in tail_nodes(graph)} == {None}


def test_blocks_follow_each_other(graph: ir.Graph, role: str) -> None:
    numbers = block_numbers(graph)
    found = [number for node in graph if (number := numbers[node]) is not None]
    assert found == sorted(found)
    assert set(found) == set(range(DEPTH[role]))


def test_the_tail_is_what_the_last_norm_reaches(graph: ir.Graph, path: Path) -> None:
    """Followed in the protobuf by the names of values, and not through onnx_ir's uses."""
    nodes = onnx.load(path).graph.node
    (reached,) = [{node.output[0]} for node in nodes if "backbone.norm.weight" in node.input]
    expected = set()
    for node in nodes:
        if reached & set(node.input):
            reached |= set(node.output)
            expected |= set(node.output)
    assert {output.name for node in tail_nodes(graph) for output in node.outputs} == expected


def test_everything_that_leaves_the_graph_comes_from_the_tail(graph: ir.Graph) -> None:
    assert {output.producer() for output in graph.outputs} <= tail_nodes(graph)


def test_the_depth_is_the_models(path: Path, role: str) -> None:
    assert depth_of_file(path) == DEPTH[role]
