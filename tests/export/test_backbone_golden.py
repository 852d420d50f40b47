"""The acceptance test of plain backbones: seeded full-size ViT-S, exported, against the official codes' outputs.

tests/golden/neco_*.npz and pwself_*.npz were made by vpariza/NeCo at 3932160 and by
alijavidani/Local_Global_Representation_Learning at 7eeff8c on the same seeded weights. Bounds are those suggested with the
files, about five times float32's own noise. Engines run as `saccade.load` opens them, from uint8 pixels to features.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import saccade
from saccade.export.backbone_checkpoint import BackboneCheckpoint, read_backbone
from saccade.export.backbone_export import write_backbone_bundle
from saccade.export.backbone_reference import BackboneReference
from saccade.export.seeded import seeded_tensor, seeded_weights, weights_crc32
from saccade.export.seeded_backbones import BACKBONES, backbone_shapes
from saccade.runtime.backbone import BackbonePipeline

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parents[1] / "golden"
EXTRAS = ("attention", "cls_last4")
BOUNDS = {
    "cls": 2e-5, "patch_tokens": 2e-5, "patch_projection": 2e-5, "tokens": 2e-5, "cls_last4": 2e-5, "cls_attention": 2e-7,
}  # fmt: skip
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made, and the golden files that belong to it."""

    layout: str
    seed: int
    family: str | None
    files: tuple[str, ...]


RECIPES = {
    "neco": Recipe("neco-vits14", 5, "neco", ("neco_vits14_448", "neco_vits14_518")),
    "neco-reg4": Recipe("neco-vits14-reg4", 6, "neco", ("neco_vits14_reg4_448", "neco_vits14_reg4_518")),
    "neco-dino": Recipe("dino-vits16", 7, "neco", ("neco_dino_vits16_448",)),
    "pwself": Recipe("dino-vits16", 8, None, ("pwself_vits16_224", "pwself_vits16_320x480")),
}
FILES = [(name, file) for name, recipe in RECIPES.items() for file in recipe.files]
ENGINES = ("onnxruntime", "openvino")
RUNNERS = ("pytorch", *ENGINES)


@dataclass
class Model:
    """A full-size checkpoint with the bundle made from it on both engines; each output is computed once."""

    recipe: Recipe
    crc: int
    checkpoint: BackboneCheckpoint
    run: dict[str, Callable[[np.ndarray], Outputs]]
    outputs: dict[tuple[str, str], Outputs] = field(default_factory=dict)

    def on(self, file: str, runner: str) -> Outputs:
        if (file, runner) not in self.outputs:
            self.outputs[file, runner] = self.run[runner](images_of(load_golden(file)))
        return self.outputs[file, runner]


def load_golden(file: str) -> Outputs:
    with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as stored:
        return dict(stored)


def images_of(golden: Outputs) -> np.ndarray:
    return golden["images"] if "images" in golden else golden["image"][None]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """Return a function from a recipe's name to its model; each is made once."""
    made: dict[str, Model] = {}
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Model:
            if name not in made:
                made[name] = model_from(RECIPES[name], tmp_path_factory.mktemp(name), stack)
            return made[name]

        yield make
        made.clear()


def model_from(recipe: Recipe, folder: Path, stack: contextlib.ExitStack) -> Model:
    weights = seeded_weights(backbone_shapes(BACKBONES[recipe.layout]), recipe.seed)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, folder / "weights.pt")
    checkpoint = read_backbone(folder / "weights.pt", recipe.family)
    (folder / "bundle").mkdir()
    write_backbone_bundle(checkpoint, None, folder / "bundle", lambda phase: None)
    reference = BackboneReference(checkpoint, EXTRAS)
    run: dict[str, Callable[[np.ndarray], Outputs]] = {"pytorch": lambda images: reference(list(images))}
    for engine in ENGINES:
        pipeline = stack.enter_context(saccade.load(folder / "bundle", engine=engine, note=lambda line: None))
        assert isinstance(pipeline, BackbonePipeline)
        run[engine] = functools.partial(on_engine, pipeline)
    return Model(recipe, weights_crc32(weights), checkpoint, run)


def on_engine(pipeline: BackbonePipeline, images: np.ndarray) -> Outputs:
    return pipeline(list(images), size=(images.shape[1], images.shape[2])).arrays()


def compared(model: Model, golden: Outputs, ours: Outputs) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each golden array by name with ours; of the attention its patches, which the graph gives, without its prefix."""
    if "patch_tokens" in golden:
        projection = seeded_tensor("golden.projection", (4, 384), 0).astype(np.float64)
        yield "cls", ours["cls"], golden["cls"]
        yield "patch_tokens", ours["tokens"][:, golden["patch_indices"]], golden["patch_tokens"]
        yield "patch_projection", ours["tokens"].astype(np.float64) @ projection.T, golden["patch_projection"]
        yield "cls_attention", ours["attention"], golden["cls_attention"][..., model.checkpoint.model.registers :]
    else:
        yield "tokens", np.concatenate([ours["cls"], ours["tokens"][0]]), golden["tokens"]
        yield "cls_attention", ours["attention"][0], golden["cls_attention"][:, 1:]
        yield "cls_last4", ours["cls_last4"][0], golden["cls_last4"]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_the_weights_are_those_of_the_golden_file(model_of: Callable[[str], Model], name: str, file: str) -> None:
    golden, model = load_golden(file), model_of(name)
    assert (model.crc, model.recipe.seed) == (golden["weights_crc32"], golden["seed"])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_every_output_equals_the_official_codes(
    model_of: Callable[[str], Model], name: str, file: str, runner: str, record_property: Callable[[str, object], None]
) -> None:
    model, golden = model_of(name), load_golden(file)
    for array, ours, expected in compared(model, golden, model.on(file, runner)):
        assert ours.shape == expected.shape
        largest = np.abs(ours.astype(np.float64) - expected.astype(np.float64)).max()
        line = f"{file} {runner} {array}: largest {largest:.1e}"
        record_property("difference", line)
        assert largest <= BOUNDS[array], f"{line}, bound {BOUNDS[array]:.0e}"


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_the_last_of_the_four_cls_rows_is_cls(model_of: Callable[[str], Model], name: str, file: str, runner: str) -> None:
    ours = model_of(name).on(file, runner)
    np.testing.assert_allclose(ours["cls_last4"][:, 3], ours["cls"], atol=5e-6)


@pytest.mark.parametrize(("file", "differs"), [("neco_vits14_reg4_448", True), ("neco_vits14_reg4_518", False)])
def test_the_hubs_rule_gives_other_features_but_at_the_training_size(
    model_of: Callable[[str], Model], file: str, differs: bool
) -> None:
    model, golden = model_of("neco-reg4"), load_golden(file)
    as_hub = BackboneReference(read_backbone(model.checkpoint.path, "dinov2"))(list(images_of(golden)))
    largest = np.abs(as_hub["tokens"][:, golden["patch_indices"]] - golden["patch_tokens"]).max()
    assert (largest > 0.1) if differs else (largest < BOUNDS["patch_tokens"])


def test_every_golden_file_of_a_backbone_is_compared() -> None:
    found = {path.stem for pattern in ("neco_*vits*", "pwself_vits*") for path in GOLDEN.glob(f"{pattern}.npz")}
    assert found == {file for _, file in FILES}
