"""Seeded backbones have the layouts of the published files, and training's files hold them under its own names."""
from __future__ import annotations

import argparse

import numpy as np
import pytest

from saccade.errors import SaccadeError
from saccade.export.seeded import seeded_weights, weights_crc32
from saccade.export.seeded_backbones import (
    BACKBONES,
    BackboneSizes,
    backbone_shapes,
    dino_training_checkpoint,
    neco_training_checkpoint,
)

SMALL = BackboneSizes(64, 16, 3, 2, layer_scale=False, mask_token=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "seed", "crc"),
    [
        ("neco-vits14", 5, 1836830772),
        ("neco-vits14-reg4", 6, 2364854629),
        ("dino-vits16", 7, 1918417300),
        ("dino-vits16", 8, 692106102),
    ],
)
def test_full_size_weights_have_the_crc_of_the_golden_files(layout: str, seed: int, crc: int) -> None:
    assert weights_crc32(seeded_weights(backbone_shapes(BACKBONES[layout]), seed)) == crc


@pytest.mark.parametrize(
    ("layout", "tensors", "values"),
    [("neco-vits14", 175, 22_056_576), ("neco-vits14-reg4", 176, 22_058_112), ("neco-vitb14-reg4", 176, 86_583_552)],
)
def test_the_published_layouts_have_the_official_numbers_of_tensors_and_values(
    layout: str, tensors: int, values: int
) -> None:
    shapes = backbone_shapes(BACKBONES[layout])
    assert (len(shapes), sum(int(np.prod(shape)) for shape in shapes.values())) == (tensors, values)


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [
        ("neco-vits14-reg4", "register_tokens", (1, 4, 384)),
        ("neco-vitb14", "pos_embed", (1, 1370, 768)),
        ("neco-vitb14", "mask_token", (1, 768)),
        ("dinov2-vitl14", "blocks.23.mlp.fc1.weight", (4096, 1024)),
        ("dino-vits16", "pos_embed", (1, 197, 384)),
        ("dino-vits8", "pos_embed", (1, 785, 384)),
        ("dino-vits32", "pos_embed", (1, 50, 384)),
        ("dino-vitb8", "patch_embed.proj.weight", (768, 3, 8, 8)),
    ],
)
def test_a_published_key_has_its_shape(layout: str, name: str, shape: tuple[int, ...]) -> None:
    assert backbone_shapes(BACKBONES[layout])[name] == shape


def test_dino_has_neither_layer_scale_nor_a_mask_token() -> None:
    assert not [name for name in backbone_shapes(BACKBONES["dino-vits16"]) if ".ls" in name or "mask" in name]


def test_a_width_that_no_model_has_is_refused() -> None:
    with pytest.raises(SaccadeError, match=r"^dim 100 is not a multiple of 64, the head size of these models$"):
        backbone_shapes(BackboneSizes(100, 14, 3))


def test_a_dino_training_checkpoint_has_its_parts_and_two_networks() -> None:
    content = dino_training_checkpoint(SMALL, 3)
    assert set(content) == {"student", "teacher", "optimizer", "epoch", "args", "dino_loss", "fp16_scaler"}
    assert isinstance(content["args"], argparse.Namespace)
    student, teacher = content["student"], content["teacher"]
    assert {name.split(".")[1] for name in student} == {"backbone", "head"}
    assert {name.removeprefix("module.") for name in student} == set(teacher)
    for part, seed in ((teacher, 3), (student, 4)):
        for name, array in seeded_weights(backbone_shapes(SMALL), seed).items():
            prefix = "module.backbone." if part is student else "backbone."
            np.testing.assert_array_equal(part[f"{prefix}{name}"], array)


def test_a_neco_training_checkpoint_holds_the_student_as_model() -> None:
    weights = neco_training_checkpoint(SMALL, 3)["state_dict"]
    heads = {f"projection_head.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")}
    for prefix, seed in (("teacher.", 3), ("model.", 4)):
        own = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
        assert set(own) == set(backbone_shapes(SMALL)) | heads
        for name, array in seeded_weights(backbone_shapes(SMALL), seed).items():
            np.testing.assert_array_equal(own[name], array)
