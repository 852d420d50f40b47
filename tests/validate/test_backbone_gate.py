"""The judge of converted backbones: its references are the pipeline's own, and good and bad graphs are told apart."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import saccade
from saccade import read_bundle
from saccade.validate.backbone_gate import BackboneJudge, open_judge
from saccade.validate.gate import Judge

NUMBERS = ["cls", "patches", "patches_p1", "cls_last4", "attention", "difference"]


@pytest.fixture
def judge(small_backbone: Callable[[str], Path]) -> Iterator[BackboneJudge]:
    with open_judge(read_bundle(small_backbone("neco"))) as judge:
        assert isinstance(judge, BackboneJudge)
        yield judge


def spoiled(source: Path, target: Path, name: str, factor: float) -> Path:
    """Write a graph with every other channel of one constant scaled."""
    model = ir.load(source)
    array = np.array(model.graph.initializers[name].const_value.numpy())
    array[..., ::2] *= factor
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    ir.save(model, target)
    return target


def test_a_case_is_what_the_pipeline_gives_at_the_bundles_size(
    judge: BackboneJudge, small_backbone: Callable[[str], Path], photo_folder: Path
) -> None:
    path = photo_folder / "03.png"
    case = judge.case(path)
    assert case.images.shape == (1, 126, 126, 3)
    with saccade.load(small_backbone("neco"), engine="onnxruntime") as pipeline:
        for name, array in pipeline(path).arrays().items():
            np.testing.assert_allclose(case.outputs[name], array, atol=2e-5, err_msg=name)


def test_the_graph_is_fed_what_the_pipeline_feeds_it(judge: BackboneJudge, photo_folder: Path) -> None:
    feed = judge.feed("backbone", photo_folder / "03.png")
    assert {name: array.shape for name, array in feed.items()} == {"image": (1, 3, 126, 126), "positions": (82, 128)}
    assert abs(feed["image"].mean()) < 2 < feed["image"].max() - feed["image"].min()  # normalised


def test_the_fp32_graph_passes_on_golden_images_and_photographs(judge: BackboneJudge, photo_folder: Path) -> None:
    cases = [*judge.golden_cases(), judge.case(photo_folder / "00.png")]
    assert len({case.images.shape for case in cases}) == 2  # the bundle's size alone, and a batch of another
    result = judge.judge({"backbone": judge.graph_path("backbone")}, cases, "fp32")
    assert [measure.name for measure in result.measures] == NUMBERS
    assert result.passed


# What is spoiled -> the numbers that see it: each output is judged, and none by another's.
SPOILED = {
    ("blocks.1.norm1.weight", 1.5): set(NUMBERS),
    ("blocks.3.mlp.fc2.bias", 8.0): {"cls", "patches", "patches_p1", "cls_last4", "difference"},
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_graph_fails_by_the_numbers_of_what_it_spoils(
    case: tuple[str, float], judge: BackboneJudge, tmp_path: Path
) -> None:
    path = spoiled(judge.graph_path("backbone"), tmp_path / "spoiled.onnx", *case)
    result = judge.judge({"backbone": path}, judge.golden_cases(), "fp16")
    assert {measure.name for measure in result.measures if not measure.passed} == SPOILED[case]


def test_candidates_are_compared_by_their_worst_patches(judge: BackboneJudge, tmp_path: Path) -> None:
    cases = judge.golden_cases()
    scores = []
    for factor in (1.1, 1.5):
        path = spoiled(judge.graph_path("backbone"), tmp_path / "spoiled.onnx", "blocks.1.norm1.weight", factor)
        trial = judge.try_one("backbone", "spoiled", path, cases, "int8")
        assert trial.score == trial.measures["patches_p1"]
        scores.append(trial.score)
    assert 0 < scores[0] < scores[1]


def test_a_bundle_gets_the_judge_of_its_kind(small_bundle: Callable[[str], Path]) -> None:
    with open_judge(read_bundle(small_bundle("dinov2"))) as judge:
        assert isinstance(judge, Judge)
