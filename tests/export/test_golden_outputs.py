"""The acceptance test: seeded full-size models, exported, on both CPU engines, against the official code's outputs.

tests/golden/lookwhere_*.npz were made by antofuller/lookwhere at e7e5dc1 on the same seeded weights. PyTorch stands for
`export.reference`. Bounds are those suggested with the files, about five times float32's own noise.
"""
from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saccade
from saccade.bundle import Bundle, read_bundle
from saccade.export.bundle_export import resolve_defaults, write_bundle
from saccade.export.checkpoint import Checkpoint, read_checkpoint
from saccade.export.reference import Reference, fill
from saccade.export.seeded import Sizes, checkpoint_shapes, nested, seeded_tensor, seeded_weights, weights_crc32
from saccade.runtime import kernels

GOLDEN = Path(__file__).parents[1] / "golden"
RUNNERS = ("pytorch", "openvino", "onnxruntime")

# Absolute bounds by array of the golden files; all values have a spread near 1, scores one of 0.4.
BOUNDS = {
    "score_map_44": 1e-4,
    "score_map": 1e-4,
    "prefix_tokens": 5e-5,
    "cls": 5e-5,
    "kept_tokens": 2e-5,
    "dense_values": 2e-5,
    "dense_projection": 2e-5,
    "logits": 2e-5,
}
LOWRES_BOUND = 2e-4
SELECTOR = ("score_map_44", "score_map", "prefix_tokens")
FEATURES = (*SELECTOR, "cls", "kept_tokens", "dense_values", "dense_projection")
HEAD = (*SELECTOR, "kept_tokens", "logits")


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made, and the golden files that belong to it with the arrays to compare."""

    family: str
    sizes: Sizes
    seed: int
    task: str
    files: tuple[str, ...]
    arrays: tuple[str, ...]


RECIPES = {
    "dinov2": Recipe(
        "lookwhere-dinov2", Sizes(), 1, "features", ("dinov2_224", "dinov2_518", "dinov2_1036"), FEATURES
    ),
    "franca": Recipe("lookwhere-franca", Sizes(), 2, "features", ("franca_224", "franca_518"), FEATURES),
    "classify": Recipe(
        "lookwhere-dinov2", Sizes(grid=16, classes=10), 3, "classify", ("finetuned_cls_224",), HEAD
    ),
    "segment": Recipe(
        "lookwhere-dinov2", Sizes(grid=16, classes=7), 4, "segment", ("finetuned_seg_224",), HEAD
    ),
}
WITH_LOWRES = ("dinov2_224", "dinov2_518", "dinov2_1036")


@dataclass
class Model:
    """A full-size checkpoint and the one bundle made from it, with one pipeline for each engine."""

    recipe: Recipe
    crc: int
    checkpoint: Checkpoint
    bundle: Bundle
    pipelines: dict[str, saccade.Pipeline] = field(default_factory=dict)
    outputs: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)

    def run(self, file: str, runner: str) -> dict[str, np.ndarray]:
        """Return the outputs of one runner on one file's image, under the golden names; each is computed once."""
        if (file, runner) not in self.outputs:
            golden = load_golden(file)
            run = self._run_pytorch if runner == "pytorch" else self._run_engine
            self.outputs[file, runner] = run(image_of(golden), int(golden["k"]), runner)
        return self.outputs[file, runner]

    def _run_pytorch(self, image: np.ndarray, k: int, runner: str) -> dict[str, np.ndarray]:
        out = Reference(self.checkpoint, self.recipe.task)([image], k)
        grid = (out.score_map.shape[1], out.score_map.shape[2])
        dense = fill(torch.from_numpy(out.tokens), torch.from_numpy(out.indices), grid).numpy()
        pooled = {"features": "cls", "classify": "logits"}.get(self.recipe.task, "nothing")
        return by_golden_name(out.raw_score_map, out.score_map, out.prefix, out.indices, out.tokens, dense) | {
            pooled: out.pooled[0]
        }

    def _run_engine(self, image: np.ndarray, k: int, runner: str) -> dict[str, np.ndarray]:
        if runner not in self.pipelines:
            self.pipelines[runner] = saccade.load(self.bundle, engine=runner, note=lambda line: None)
        out = self.pipelines[runner](image, k=k, size=(image.shape[0], image.shape[1]), dense=True)
        assert out.dense is not None
        pooled = {name: array[0] for name in ("cls", "logits") if (array := getattr(out, name)) is not None}
        found = by_golden_name(out.raw_score_map, out.score_map, out.prefix, out.indices, out.tokens, out.dense)
        return found | pooled


def by_golden_name(
    raw: np.ndarray, scores: np.ndarray, prefix: np.ndarray, indices: np.ndarray, tokens: np.ndarray, dense: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the arrays of the only image by name."""
    names = ("score_map_44", "score_map", "prefix_tokens", "kept", "tokens", "dense")
    return dict(zip(names, (array[0] for array in (raw, scores, prefix, indices, tokens, dense)), strict=True))


def load_golden(file: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"lookwhere_{file}.npz", allow_pickle=False) as stored:
        return dict(stored)


def image_of(golden: dict[str, np.ndarray]) -> np.ndarray:
    """Return the image as upstream saw it: at 1036 px every pixel of the stored one is a 2x2 block."""
    repeat = int(golden["image_repeat"])
    image: np.ndarray = golden["image"].repeat(repeat, axis=0).repeat(repeat, axis=1)
    assert image.shape == (golden["high_res_size"], golden["high_res_size"], 3)
    return image


def tensors(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: tensors(node) if isinstance(node, dict) else torch.from_numpy(node) for name, node in tree.items()}


@pytest.fixture(scope="class")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Make one model, export it, and delete everything (1.3 GB) before the next one is made."""
    recipe = RECIPES[request.cls.name]
    folder = tmp_path_factory.mktemp(request.cls.name)
    path, target = folder / "weights.pt", folder / "bundle"
    weights = seeded_weights(checkpoint_shapes(recipe.family, recipe.sizes), recipe.seed)
    crc = weights_crc32(weights)
    torch.save(tensors(weights if recipe.sizes.classes else nested(weights)), path)
    del weights
    checkpoint = read_checkpoint(path)
    target.mkdir()
    write_bundle(checkpoint, recipe.task, resolve_defaults(checkpoint, None, None, None), target, lambda phase: None)
    made = Model(recipe, crc, checkpoint, read_bundle(target))
    yield made
    for pipeline in made.pipelines.values():
        pipeline.close()
    shutil.rmtree(folder)


def compared(model: Model, file: str, runner: str, array: str) -> tuple[np.ndarray, np.ndarray]:
    """Return our numbers and the official code's for one array, on what is defined."""
    golden, ours = load_golden(file), model.run(file, runner)
    if array == "kept_tokens":
        return tokens_by_cell(model, golden, ours)
    if array == "dense_values":
        return ours["dense"].reshape(len(ours["dense"]), -1)[:, golden["dense_cells"]].T, golden["dense_values"]
    if array == "dense_projection":
        matrix = seeded_tensor("golden.projection", (4, 768), 0).astype(np.float64)
        projected = np.einsum("drc,pd->rcp", ours["dense"].astype(np.float64), matrix)
        return projected[defined(golden)], golden["dense_projection"][defined(golden)]
    if array == "logits" and model.recipe.task == "segment":
        return ours["dense"][:, defined(golden)], golden["logits"][:, defined(golden)]
    return ours[array], golden[array]


def tokens_by_cell(
    model: Model, golden: dict[str, np.ndarray], ours: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides' tokens in the order of the cells; near ties may order the kept cells differently.

    Segment tokens are logits; there the official tokens go through the head, in float64.
    """
    expected = golden["kept_tokens"][np.argsort(golden["kept"])]
    if model.recipe.task == "segment":
        weight, bias = (model.checkpoint.extractor[f"head.{part}"].double().numpy() for part in ("weight", "bias"))
        expected = expected @ weight.T + bias
    return ours["tokens"][np.argsort(ours["kept"])], expected


def defined(golden: dict[str, np.ndarray]) -> np.ndarray:
    """Return where dense output is defined, (G, G): cells that are kept or whose 5th and 6th neighbours differ."""
    cells: np.ndarray = golden["dense_tie_free"].copy()
    cells.flat[golden["kept"]] = True
    return cells


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each class the files and arrays of its own model."""
    if metafunc.cls is None:
        return
    recipe = RECIPES[metafunc.cls.name]
    for name, values in (("file", recipe.files), ("runner", RUNNERS), ("array", recipe.arrays)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)


class OfficialOutputs:
    """The tests of one model; a subclass names it, and pytest runs a class at a time, with one bundle."""

    name: str

    def test_the_weights_are_those_of_the_golden_file(self, model: Model, file: str) -> None:
        golden = load_golden(file)
        assert (model.crc, model.recipe.seed) == (golden["weights_crc32"], golden["seed"])

    def test_an_output_equals_the_official_codes(
        self, model: Model, file: str, runner: str, array: str, record_property: Callable[[str, object], None]
    ) -> None:
        ours, expected = compared(model, file, runner, array)
        assert ours.shape == expected.shape
        differences = np.abs(ours.astype(np.float64) - expected.astype(np.float64))
        line = f"{file} {runner} {array}: largest {differences.max():.1e}, mean {differences.mean():.1e}"
        print(line)
        record_property("difference", line)
        assert differences.max() <= BOUNDS[array], f"{line}, bound {BOUNDS[array]:.0e}"

    def test_the_same_patches_are_kept(self, model: Model, file: str, runner: str) -> None:
        golden, ours = load_golden(file), model.run(file, runner)
        assert len(ours["kept"]) == golden["k"]
        assert sorted(ours["kept"].tolist()) == sorted(golden["kept"].tolist())

    def test_the_kept_patches_are_ordered_by_their_scores(self, model: Model, file: str, runner: str) -> None:
        ours = model.run(file, runner)
        assert (np.diff(ours["score_map"].ravel()[ours["kept"]]) <= 0).all()

    def test_one_engine_of_each_kind_serves_every_size(self, model: Model) -> None:
        for file in model.recipe.files:
            for engine in RUNNERS[1:]:
                model.run(file, engine)
        built = sorted(path.name.rsplit("-", 1)[0] for path in model.bundle.engines_path.iterdir())
        assert built == ["onnxruntime-fp32", "openvino-fp32"]


@pytest.mark.slow
class TestDinov2(OfficialOutputs):
    name = "dinov2"


@pytest.mark.slow
class TestFranca(OfficialOutputs):
    name = "franca"


@pytest.mark.slow
class TestClassify(OfficialOutputs):
    name = "classify"


@pytest.mark.slow
class TestSegment(OfficialOutputs):
    name = "segment"


@pytest.mark.parametrize("file", WITH_LOWRES)
def test_the_selectors_input_equals_upstreams_resize(file: str) -> None:
    golden = load_golden(file)
    table = kernels.normalization_table((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    differences = np.abs(kernels.lowres_from_image(image_of(golden), table, 154) - golden["lowres"])
    assert differences.max() <= LOWRES_BOUND, f"{file} lowres: largest {differences.max():.1e}"


def test_every_golden_file_of_lookwhere_is_compared() -> None:
    assert {path.stem for path in GOLDEN.glob("lookwhere_*.npz")} == {
        f"lookwhere_{file}" for recipe in RECIPES.values() for file in recipe.files
    }
