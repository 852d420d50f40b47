"""Seeded weights are a pure function of name, shape and seed, in the layouts of the real files."""
from __future__ import annotations

import re
import zlib

import numpy as np
import pytest

from saccade.errors import SaccadeError
from saccade.export.seeded import (
    Sizes,
    checkpoint_shapes,
    nested,
    seeded_tensor,
    seeded_weights,
    weights_crc32,
)

SMALL = Sizes(dim=64, depth=2, selector_depth=1, grid=3, selector_grid=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes", "seed", "crc"),
    [
        ("lookwhere-dinov2", Sizes(), 1, 4290036745),
        ("lookwhere-franca", Sizes(), 2, 3419956588),
        ("lookwhere-dinov2", Sizes(grid=16, classes=10), 3, 2465339857),
        ("lookwhere-dinov2", Sizes(grid=16, classes=7), 4, 161449532),
    ],
    ids=["dinov2", "franca", "classify", "segment"],
)
def test_full_size_weights_have_the_crc_of_the_golden_files(family: str, sizes: Sizes, seed: int, crc: int) -> None:
    assert weights_crc32(seeded_weights(checkpoint_shapes(family, sizes), seed)) == crc


@pytest.mark.parametrize(
    ("family", "selector", "extractor", "head"),
    [
        ("lookwhere-dinov2", (49, 21_818_880), (175, 86_582_016), 2_411_536),
        ("lookwhere-franca", (48, 21_818_880), (174, 86_591_232), 2_411_536),
    ],
)
def test_the_published_layouts_have_upstreams_numbers_of_tensors_and_values(
    family: str, selector: tuple[int, int], extractor: tuple[int, int], head: int
) -> None:
    shapes = checkpoint_shapes(family, Sizes())

    def count(prefix: str) -> tuple[int, int]:
        found = [shape for name, shape in shapes.items() if name.startswith(prefix)]
        return len(found), sum(int(np.prod(shape)) for shape in found)

    assert (count("selector.backbone."), count("extractor.")) == (selector, extractor)
    assert count("selector.head.") == (4, head)


def test_the_fine_tuned_layout_has_upstreams_number_of_tensors_and_a_head() -> None:
    shapes = checkpoint_shapes("lookwhere-dinov2", Sizes(grid=16, classes=1000))
    assert len(shapes) == 230
    assert (shapes["head.weight"], shapes["head.bias"]) == ((1000, 768), (1000,))
    assert shapes["extractor.model.pos_embed"] == (1, 256, 768)
    assert {name.split(".")[1] for name in shapes if name.startswith("selector.")} == {"model", "head"}


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("lookwhere-dinov2", "extractor.reg_token", (1, 4, 768)),
        ("lookwhere-dinov2", "selector.backbone.pos_embed", (1, 121, 768)),
        ("lookwhere-dinov2", "extractor.pos_embed", (1, 1369, 768)),
        ("lookwhere-dinov2", "extractor.blocks.11.mlp.fc1.weight", (3072, 768)),
        ("lookwhere-franca", "extractor.blocks.11.mlp.fc1.weight", (4096, 768)),
        ("lookwhere-franca", "extractor.blocks.11.mlp.fc2.weight", (768, 2048)),
        ("lookwhere-franca", "selector.backbone.blocks.2.ls2.gamma", (768,)),
        ("lookwhere-franca", "selector.head.w2.weight", (16, 3072)),
    ],
)
def test_a_published_key_has_its_shape(family: str, name: str, shape: tuple[int, ...]) -> None:
    assert checkpoint_shapes(family, Sizes())[name] == shape


def test_franca_has_no_registers() -> None:
    assert not [name for name in checkpoint_shapes("lookwhere-franca", Sizes()) if "reg_token" in name]


# The rules as golden/README.md and seeded_weights.py state them, written once more.
@pytest.mark.parametrize(
    ("name", "shape", "scale"),
    [
        ("extractor.blocks.0.ls1.gamma", (5,), lambda uniform, normal: 0.1 + 0.5 * uniform),
        ("extractor.blocks.0.norm1.weight", (5,), lambda uniform, normal: 1 + 0.1 * normal),
        ("extractor.norm.bias", (5,), lambda uniform, normal: 0.02 * normal),
        ("extractor.cls_token", (1, 1, 5), lambda uniform, normal: 0.2 * normal),
        ("extractor.pos_embed", (1, 4, 5), lambda uniform, normal: 0.2 * normal),
        ("extractor.patch_embed.proj.weight", (2, 3, 14, 14), lambda uniform, normal: normal / np.sqrt(3 * 14 * 14)),
        ("extractor.blocks.0.attn.qkv.weight", (6, 2), lambda uniform, normal: normal / np.sqrt(2)),
        ("head.bias", (5,), lambda uniform, normal: 0.02 * normal),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_tensor_follows_the_rule_of_its_name(name: str, shape: tuple[int, ...], scale, seed: int) -> None:
    start = (zlib.crc32(name.encode()) + seed) % 2**32
    uniform = np.random.RandomState(start).random_sample(shape)
    normal = np.random.RandomState(start).standard_normal(shape)
    expected = scale(uniform, normal).astype(np.float32)
    found = seeded_tensor(name, shape, seed)
    assert (found.dtype, found.shape) == (np.float32, shape)
    np.testing.assert_array_equal(found, expected)


def test_a_tensor_does_not_depend_on_the_others_beside_it() -> None:
    shapes = checkpoint_shapes("lookwhere-dinov2", SMALL)
    few = dict(list(shapes.items())[-3:])
    all_weights = seeded_weights(shapes, 5)
    for name, array in seeded_weights(few, 5).items():
        np.testing.assert_array_equal(array, all_weights[name])


def test_another_seed_gives_other_weights() -> None:
    assert not np.array_equal(seeded_tensor("x.weight", (4, 4), 1), seeded_tensor("x.weight", (4, 4), 2))


def test_progress_hears_every_name_once_in_order() -> None:
    shapes, heard = checkpoint_shapes("lookwhere-franca", SMALL), []
    seeded_weights(shapes, 1, heard.append)
    assert heard == list(shapes)


def test_the_crc_runs_over_sorted_names_and_little_endian_bytes() -> None:
    weights = {"b": np.array([1.5, -2.0], np.float32), "a": np.array([[3.25]], ">f4")}
    stream = b"a" + b"\x00\x00\x50\x40" + b"b" + b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"
    assert weights_crc32(weights) == zlib.crc32(stream)


def test_the_crc_does_not_depend_on_the_order_of_the_dict() -> None:
    weights = seeded_weights(checkpoint_shapes("lookwhere-dinov2", SMALL), 1)
    assert weights_crc32(weights) == weights_crc32(dict(reversed(weights.items())))


def test_nesting_keeps_every_tensor_under_its_path() -> None:
    weights = seeded_weights(checkpoint_shapes("lookwhere-dinov2", SMALL), 1)
    tree = nested(weights)
    assert set(tree) == {"selector", "extractor"}
    assert set(tree["selector"]) == {"backbone", "head"}
    found = {f"selector.{part}.{name}": array for part in tree["selector"] for name, array in tree["selector"][part].items()}
    found |= {f"extractor.{name}": array for name, array in tree["extractor"].items()}
    assert {name: id(array) for name, array in found.items()} == {name: id(array) for name, array in weights.items()}


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("vit", Sizes(), "unknown family 'vit'; choose from: lookwhere-dinov2, lookwhere-franca"),
        ("lookwhere-dinov2", Sizes(dim=100), "dim 100 is not a multiple of 64, the head size of these models"),
        ("lookwhere-dinov2", Sizes(classes=-1), "classes -1 is out of range; give 0 for no head, or at least 1"),
    ],
)
def test_sizes_that_no_model_has_are_refused(family: str, sizes: Sizes, message: str) -> None:
    with pytest.raises(SaccadeError, match=f"^{re.escape(message)}$"):
        checkpoint_shapes(family, sizes)
