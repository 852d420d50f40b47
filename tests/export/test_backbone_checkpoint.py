"""A backbone's checkpoint is known by its content, in every layout; what the content leaves open has to be said."""
from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import SaccadeError
from saccade.export.backbone_checkpoint import BackboneCheckpoint, load_backbone, position_rule, read_backbone
from saccade.export.backbone_reference import BackboneReference
from saccade.export.seeded import Sizes, checkpoint_shapes, seeded_weights
from saccade.export.seeded_backbones import (
    BACKBONES,
    BackboneSizes,
    backbone_shapes,
    dino_training_checkpoint,
    neco_training_checkpoint,
)

DINO = BackboneSizes(64, 16, 3, 2, layer_scale=False, mask_token=False)
DINOV2 = BackboneSizes(64, 14, 3, 2)
REG4 = replace(DINOV2, registers=4)
Content = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other far longer than a small tensor takes: 9 ms for one isfinite."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def tensors(tree: Any) -> Any:
    """Return a tree with its arrays as tensors, and everything else as it is."""
    if isinstance(tree, dict):
        return {name: tensors(node) for name, node in tree.items()}
    return torch.from_numpy(np.asarray(tree)) if isinstance(tree, (np.ndarray, np.generic)) else tree


def weights(sizes: BackboneSizes, seed: int = 1) -> dict[str, Tensor]:
    return tensors(seeded_weights(backbone_shapes(sizes), seed))


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, family: str | None = None, key: str | None = None) -> str:
    """Return the one line with which a file is refused; nothing may be printed or warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SaccadeError) as caught:
            read_backbone(path, family, key)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert len(message) < len(str(path)) + 280
    return message.removeprefix(str(path))


def as_timm(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """Spell a DINOv2 file as timm does: the position of cls in cls_token, no row for it, its own name for registers."""
    spelled = {name: tensor for name, tensor in flat.items() if name not in ("mask_token", "register_tokens")}
    spelled["cls_token"] = flat["cls_token"] + flat["pos_embed"][:, :1]
    spelled["pos_embed"] = flat["pos_embed"][:, 1:]
    if "register_tokens" in flat:
        spelled["reg_token"] = flat["register_tokens"]
    return spelled


def with_prefix(prefix: str, flat: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in flat.items()}


# Every layout reads back to the same facts and tensors


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Content]] = {
    "flat": lambda flat: flat,
    "under model.": lambda flat: with_prefix("model.", flat),
    "in a dict called model": lambda flat: {"model": flat, "epoch": 3},
    "in a state_dict": lambda flat: {"state_dict": with_prefix("backbone.", flat)},
    "of DistributedDataParallel": lambda flat: with_prefix("module.backbone.", flat),
    "compiled": lambda flat: with_prefix("_orig_mod.", flat),
    "with timm's head": lambda flat: flat | {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)},
    "a teacher alone": lambda flat: {"teacher": with_prefix("backbone.", flat), "epoch": 3},
    "double precision": lambda flat: {name: tensor.double() for name, tensor in flat.items()},
    "parameters": lambda flat: {name: torch.nn.Parameter(tensor) for name, tensor in flat.items()},
}


@pytest.mark.parametrize("sizes", [DINO, DINOV2, REG4], ids=["dino", "dinov2", "reg4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_back_to_the_same_facts_and_tensors(tmp_path: Path, layout: str, sizes: BackboneSizes) -> None:
    flat = weights(sizes)
    expected = read_backbone(saved(tmp_path / "flat.pt", flat), "neco")
    found = read_backbone(saved(tmp_path / "other.pt", LAYOUTS[layout](flat)), "neco")
    assert_same(found, expected)
    for name, tensor in expected.tensors.items():
        assert torch.equal(tensor, flat["register_tokens" if name == "reg_token" else name]), name
    assert torch.equal(expected.positions, flat["pos_embed"][0])


WRAPPERS = st.lists(st.sampled_from(["model", "module", "backbone", "encoder", "state_dict", "_orig_mod"]), max_size=5)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wrappers=WRAPPERS, nested=st.integers(0, 5))
def test_whatever_stands_before_the_names_is_the_prefix(path: Path, wrappers: list[str], nested: int) -> None:
    """The innermost wrappers are dots in the names, as modules give them, the others dicts."""
    flat = weights(DINO)
    content: Content = with_prefix("".join(f"{name}." for name in wrappers[nested:]), flat)
    for name in reversed(wrappers[:nested]):
        content = {name: content, "epoch": 3}
    found = read_backbone(saved(path, content))
    assert found.prefix == "".join(f"{name}." for name in wrappers)
    assert torch.equal(found.tensors["norm.weight"], flat["norm.weight"])


def assert_same(found: BackboneCheckpoint, expected: BackboneCheckpoint) -> None:
    assert (found.model, found.spelling) == (expected.model, expected.spelling)
    assert list(found.tensors) == list(expected.tensors)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    assert torch.equal(found.positions, expected.positions)


@pytest.mark.parametrize(("sizes", "names"), [(DINO, "DINO"), (DINOV2, "DINOv2")], ids=["dino", "dinov2"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_classifier_in_names_that_timm_shares_is_taken_for_no_family_without_a_word(
    tmp_path: Path, sizes: BackboneSizes, names: str, prefix: str
) -> None:
    flat = weights(sizes) | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    path = saved(tmp_path / "vit.pt", with_prefix(prefix, flat))
    with pytest.raises(SaccadeError, match=f"has {names}'s names and a classifier's 'head.weight'.*say --family timm"):
        read_backbone(path)
    found = read_backbone(path, "timm").model
    assert (found.family, found.position_rule) == ("timm", "size-antialias")
    assert read_backbone(saved(tmp_path / "bare.pt", weights(sizes))).model.family == names.lower()


@pytest.mark.parametrize(("key", "seed", "prefix"), [("teacher", 3, "teacher."), ("student", 4, "student.module.")])
def test_either_network_of_a_dino_training_checkpoint_is_read(tmp_path: Path, key: str, seed: int, prefix: str) -> None:
    found = read_backbone(saved(tmp_path / "checkpoint.pth", tensors(dino_training_checkpoint(DINO, 3))), key=key)
    assert_same(found, read_backbone(saved(tmp_path / "flat.pt", weights(DINO, seed))))
    assert (found.prefix, found.model.family) == (f"{prefix}backbone.", "dino")
    other = {"teacher": "student", "student": "teacher"}[key]
    assert found.left_out == {other: 30 + 8, f"{prefix}head": 8, "optimizer": 2, "dino_loss": 1}


@pytest.mark.parametrize(("key", "seed", "prefix"), [("teacher", 3, "teacher"), ("student", 4, "model")])
@pytest.mark.parametrize("sizes", [DINO, REG4], ids=["dino", "reg4"])
def test_either_network_of_a_neco_training_checkpoint_is_read(
    tmp_path: Path, sizes: BackboneSizes, key: str, seed: int, prefix: str
) -> None:
    """Its projection head tells the family, so registers leave nothing open."""
    found = read_backbone(saved(tmp_path / "last.ckpt", tensors(neco_training_checkpoint(sizes, 3))), key=key)
    assert_same(found, read_backbone(saved(tmp_path / "flat.pt", weights(sizes, seed)), "neco"))
    assert (found.prefix, found.model.family) == (f"state_dict.{prefix}.", "neco")
    assert found.left_out[f"state_dict.{prefix}.projection_head"] == 6


def test_a_file_without_registers_is_read_as_one(path: Path) -> None:
    """NeCo's XR files were trained from a model with registers and have none; loading them into one leaves them random."""
    found = read_backbone(saved(path, weights(DINOV2)), "neco")
    assert (found.model.registers, found.model.prefix) == (0, 1)
    assert load_backbone(found).reg_token is None


@pytest.mark.parametrize("sizes", [DINOV2, REG4], ids=["dinov2", "reg4"])
def test_timms_spelling_of_a_dinov2_file_gives_the_same_features(tmp_path: Path, sizes: BackboneSizes) -> None:
    flat = weights(sizes)
    ours = read_backbone(saved(tmp_path / "dinov2.pt", flat), "dinov2")
    theirs = read_backbone(saved(tmp_path / "timm.pt", as_timm(flat)), "dinov2")
    assert theirs.spelling == "timm"
    assert not theirs.positions[0].any()
    image = np.random.RandomState(0).randint(0, 256, (5 * 14, 4 * 14, 3)).astype(np.uint8)
    for found, expected in zip(*(BackboneReference(each)([image]).values() for each in (theirs, ours)), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)


# The facts


@pytest.mark.parametrize("dim", [192, 384, 768, 1024])
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_width_and_patch_are_read_from_shapes(path: Path, dim: int, patch: int) -> None:
    found = read_backbone(saved(path, weights(BackboneSizes(dim, patch, 4, 1)))).model
    assert (found.dim, found.heads, found.hidden, found.patch, found.base_grid) == (dim, dim // 64, 4 * dim, patch, (4, 4))


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        (replace(DINO, depth=11), {"depth": 11, "layer_scale": False, "registers": 0}),
        (replace(REG4, registers=2), {"registers": 2, "prefix": 3, "layer_scale": True}),
        (replace(DINOV2, grid=1), {"base_grid": (1, 1)}),
        (replace(DINO, grid=28), {"base_grid": (28, 28)}),
    ],
)
def test_every_other_size_is_read_from_shapes(path: Path, sizes: BackboneSizes, facts: dict[str, object]) -> None:
    model = read_backbone(saved(path, weights(sizes)), "neco").model
    assert {name: getattr(model, name) for name in facts} == facts


def test_a_gated_feed_forward_network_is_recognised(path: Path) -> None:
    flat = weights(DINOV2)
    for index in range(2):
        flat[f"blocks.{index}.mlp.fc2.weight"] = torch.zeros(64, 128)
    found = read_backbone(saved(path, flat)).model
    assert (found.ffn, found.hidden) == ("swiglu", 128)


# The family and its rule


@pytest.mark.parametrize(
    ("family", "registers", "rule"),
    [
        ("neco", 0, "scale-factor"),
        ("neco", 4, "scale-factor"),
        ("dinov2", 0, "scale-factor"),
        ("dinov2", 4, "size-antialias"),
        ("dino", 0, "scale-factor"),
        ("timm", 0, "size-antialias"),
        ("timm", 4, "size-antialias"),
    ],
)
def test_a_family_has_its_rule(family: Any, registers: int, rule: str) -> None:
    assert position_rule(family, registers) == rule


@pytest.mark.parametrize(
    ("content", "family"),
    [
        (weights(DINO), "dino"),
        (weights(DINOV2), "dinov2"),
        (as_timm(weights(DINOV2)), "timm"),
        (as_timm(weights(REG4)), "timm"),
        (with_prefix("model.", weights(REG4)) | {"model.projection_head.0.bias": torch.zeros(4)}, "neco"),
    ],
)
def test_a_family_that_the_file_tells_need_not_be_said(path: Path, content: Content, family: str) -> None:
    model = read_backbone(saved(path, content)).model
    assert (model.family, model.position_rule) == (family, position_rule(family, model.registers))


def test_dinov2s_names_with_registers_leave_the_family_open(path: Path) -> None:
    saved(path, weights(REG4))
    assert refusal(path) == (
        " has DINOv2's names and registers: NeCo and torch.hub's DINOv2 resize the positions of such a model differently, "
        "and the file cannot tell whose it is; say --family neco or --family dinov2"
    )
    assert read_backbone(path, "neco").model.position_rule == "scale-factor"
    assert read_backbone(path, "dinov2").model.position_rule == "size-antialias"


@pytest.mark.parametrize(
    ("sizes", "family", "words"),
    [
        (REG4, "dino", " has registers, which no DINO model has; say --family neco or --family dinov2"),
        (DINOV2, "dino", " has LayerScale, which no DINO model has; say --family neco or --family dinov2"),
        (DINO, "dinov2", " has no LayerScale, which every DINOv2 model has; say --family dino or --family neco"),
    ],
)
def test_a_family_that_the_file_cannot_be_of_is_refused(path: Path, sizes: BackboneSizes, family: str, words: str) -> None:
    assert refusal(saved(path, weights(sizes)), family) == words


def test_an_unknown_family_is_refused_before_the_file_is_read(path: Path) -> None:
    with pytest.raises(SaccadeError, match=r"^--family clip is no backbone's; choose from: neco, dinov2, dino, timm$"):
        read_backbone(path, "clip")


# Which of several networks


BOTH = dino_training_checkpoint(DINO, 1)


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        (tensors(BOTH), None, " holds 'student.module.backbone.' (student), 'teacher.backbone.' (teacher); "
         "say --checkpoint-key teacher or --checkpoint-key student"),
        (tensors(neco_training_checkpoint(DINO, 1)), None, " holds 'state_dict.model.' (student), 'state_dict.teacher.' "
         "(teacher); say --checkpoint-key teacher or --checkpoint-key student"),
        (weights(DINO), "teacher", " holds no teacher, but 'bare names'; leave --checkpoint-key out"),
        ({"model": weights(DINO)}, "student", " holds no student, but 'model.'; leave --checkpoint-key out"),
        ({"teacher": tensors(BOTH["teacher"])}, "student", " holds no student, but 'teacher.backbone.' (teacher); leave "
         "--checkpoint-key out"),
        ({"a": weights(DINO), "b": weights(DINO)}, None, " holds 'a.', 'b.', and nothing tells which is meant; save that "
         "one as a plain state dict"),
        ({"a": weights(DINO), "b": weights(DINO)}, "teacher", " holds no teacher, but 'a.', 'b.'; say another "
         "--checkpoint-key"),
        ({"teacher": {"a": weights(DINO), "b": weights(DINO)}}, "teacher", " holds 'teacher.a.' (teacher), 'teacher.b.' "
         "(teacher), and nothing tells which is meant; save that one as a plain state dict"),
    ],
)  # fmt: skip
def test_a_choice_is_asked_for_and_never_guessed(path: Path, content: Content, key: str | None, words: str) -> None:
    assert refusal(saved(path, content), key=key) == words


# How the file was understood


def test_the_interpretation_is_one_line(path: Path) -> None:
    found = read_backbone(saved(path, tensors(neco_training_checkpoint(BACKBONES["neco-vits14-reg4"], 3))), key="teacher")
    assert found.describe() == (
        "ViT-S/14, 12 blocks of 6 heads, 4 registers, gelu of 1536, LayerScale, DINOv2 names under 'state_dict.teacher.', "
        "family neco: positions of 37x37 resized by scale factor with 0.1 added, no antialias; "
        "left out: state_dict.model (182), state_dict.teacher.mask_token, state_dict.teacher.projection_head (6)"
    )


def test_the_interpretation_of_a_bare_file_names_nothing_left_out(path: Path) -> None:
    assert read_backbone(saved(path, weights(DINO))).describe() == (
        "ViT of width 64/16, 2 blocks of 1 head, no registers, gelu of 256, no LayerScale, DINO names, "
        "family dino: positions of 3x3 resized by scale factor with 0.1 added, no antialias"
    )


# Tensors that are no such backbone


@pytest.mark.parametrize(
    ("sizes", "key", "words"),
    [
        (DINO, "pos_embed", ": backbone lacks key 'pos_embed'; the checkpoint is incomplete"),
        (DINO, "norm.bias", ": backbone lacks key 'norm.bias'; the checkpoint is incomplete"),
        (DINO, "patch_embed.proj.weight", ": backbone lacks key 'patch_embed.proj.weight'; the checkpoint is incomplete"),
        (DINO, "blocks.1.attn.qkv.bias", ": backbone lacks key 'blocks.1.attn.qkv.bias'; the checkpoint is incomplete"),
        (DINO, "blocks.0.mlp.fc2.weight", ": backbone lacks key 'blocks.0.mlp.fc2.weight'; the checkpoint is incomplete"),
        (DINOV2, "blocks.1.ls2.gamma", ": backbone lacks key 'blocks.1.ls2.gamma'; the checkpoint is incomplete"),
        (DINOV2, "blocks.0.ls1.gamma", ": backbone lacks key 'blocks.0.ls1.gamma'; the checkpoint is incomplete"),
        (DINO, "cls_token", ": no key ends in 'cls_token', so it holds no backbone (found keys like 'pos_embed', "
         "'patch_embed.proj.weight', 'patch_embed.proj.bias' and 26 more)"),
    ],
)  # fmt: skip
def test_a_missing_key_is_named(path: Path, sizes: BackboneSizes, key: str, words: str) -> None:
    flat = weights(sizes)
    del flat[key]
    assert refusal(saved(path, flat)) == words


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("blocks.0.attn.q_norm.weight", ": backbone has unexpected key 'blocks.0.attn.q_norm.weight'; this is another"),
        ("fc_norm.weight", ": backbone has unexpected key 'fc_norm.weight'; this is another architecture"),
        ("norm_pre.weight", ": backbone has unexpected key 'norm_pre.weight'; this is another architecture"),
        ("header.weight", ": backbone has unexpected key 'header.weight'; this is another architecture"),
        ("optimizer.state", ": backbone has unexpected key 'optimizer.state'; this is another architecture"),
    ],
)
def test_an_unexpected_key_is_named(path: Path, key: str, words: str) -> None:
    """A loose match of keys would drop it and run another model."""
    assert words in refusal(saved(path, weights(DINO) | {key: torch.zeros(64)}))


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("blocks.1.attn.qkv.weight", (64, 64), "'blocks.1.attn.qkv.weight' has shape [64, 64], expected [192, 64]"),
        ("cls_token", (64,), "'cls_token' has shape [64], expected 3 axes"),
        ("cls_token", (1, 1, 100), ": width 100 is no multiple of 64, the head size of these models"),
        ("cls_token", (1, 2, 64), "'cls_token' has shape [1, 2, 64], expected [1, 1, 64]"),
        ("pos_embed", (10, 64), "'pos_embed' has shape [10, 64], expected 3 axes"),
        ("pos_embed", (2, 10, 64), "'pos_embed' holds 2 tables, expected 1"),
        ("pos_embed", (1, 10, 128), "'pos_embed' is 128 wide, expected 64"),
        ("pos_embed", (1, 12, 64), "'pos_embed' has 12 rows, which is no square grid, with a row for cls or without"),
        ("pos_embed", (1, 14, 64), "'pos_embed' has 14 rows, which is no square grid, with a row for cls or without"),
        ("patch_embed.proj.weight", (64, 3, 16, 8), "expected [64, 3, 8, 8]"),
        ("patch_embed.proj.weight", (64, 1, 16, 16), "expected [64, 3, 16, 16]"),
        ("patch_embed.proj.weight", (64, 768), "'patch_embed.proj.weight' has shape [64, 768], expected 4 axes"),
    ],
)
def test_a_misshapen_key_is_named_with_its_shape(path: Path, key: str, shape: tuple[int, ...], words: str) -> None:
    assert words in refusal(saved(path, weights(DINO) | {key: torch.zeros(shape)}))


@pytest.mark.parametrize("key", ["pos_embed", "cls_token", "blocks.1.mlp.fc2.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(path: Path, key: str, value: float) -> None:
    flat = weights(DINO)
    flat[key].flatten()[-1] = value
    assert refusal(saved(path, flat)) == f": backbone key {key!r} holds NaN or infinity; the checkpoint is damaged"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cls_token": 3}, ": 'cls_token' is of type int, not a floating-point tensor; save weights only"),
        (weights(DINO) | {"epoch": 3}, ": 'epoch' is of type int, not a floating-point tensor; save weights only"),
        (weights(DINO) | {"norm.bias": torch.zeros(64, dtype=torch.int64)}, ": 'norm.bias' is of type torch.int64"),
        (weights(REG4) | {"reg_token": torch.zeros(1, 4, 64)}, ": both 'register_tokens' and 'reg_token'; this is another"),
        ({name: tensor for name, tensor in weights(DINO).items() if "blocks" not in name}, ": the backbone has no blocks"),
        ({}, ": no key ends in 'cls_token', so it holds no backbone (it is empty)"),
        ([torch.zeros(3)], " holds a list, not a dict of tensors; save a state dict"),
    ],
)
def test_content_that_is_no_backbone_is_named(path: Path, content: object, words: str) -> None:
    assert words in refusal(saved(path, content))


@pytest.mark.parametrize("classes", [0, 7])
def test_a_lookwhere_checkpoint_is_known_as_one(path: Path, classes: int) -> None:
    sizes = Sizes(dim=64, depth=1, selector_depth=1, grid=2, classes=classes)
    content = tensors(seeded_weights(checkpoint_shapes("lookwhere-dinov2", sizes), 1))
    assert refusal(saved(path, content)) == " is a LookWhere checkpoint and no plain backbone; leave --family out"


# Files that hold code


class Touch:
    """Unpickling one of these creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


class Sly(argparse.Namespace):
    """Not the one class that is let through."""


REFUSED = " holds objects other than tensors, which could run code: refused; save it again as a plain state dict of tensors"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"args": evil, "teacher": {}},
        lambda evil: {"args": argparse.Namespace(output_dir=evil), "teacher": {}},
        lambda evil: argparse.Namespace(**{"teacher": evil}),
    ],
    ids=["bare", "as args", "in args", "in a Namespace"],
)
def test_code_is_refused_and_does_not_run(path: Path, tmp_path: Path, wrap: Callable[[object], object]) -> None:
    saved(path, wrap(Touch(tmp_path / "ran")))
    assert refusal(path) == REFUSED
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))  # the payload is live
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [Path(), range(3), np.zeros(3), Sly(arch="x"), torch.nn.Linear(2, 2)])
def test_no_class_but_namespace_is_let_through(path: Path, value: object) -> None:
    content = tensors(BOTH) | {"args": argparse.Namespace(extra=value)}
    assert refusal(saved(path, content), key="teacher") == REFUSED


def test_a_namespace_is_let_through_here_only(path: Path) -> None:
    read_backbone(saved(path, tensors(BOTH)), key="teacher")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
